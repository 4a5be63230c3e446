"""What two threads of a peer that gossips tell each other: who trains counts, and who speaks for
the peer in the ledger reads. Safe to call from both.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

from node.training.inner import InnerReport

_PARTNERS_MAX: Final = 64
_REASONS_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class Counts:
    batches: int = 0
    steps: int = 0
    tokens: int = 0
    number: int = 0
    done: int = 0
    given_up: int = 0
    heldout: float | None = None
    heldout_number: int | None = None
    loss: float | None = None


@dataclass(slots=True)
class _Lease:
    """Slots that are ours to look at."""

    round: int
    seats: tuple[bytes, ...]
    slots: Iterator[int]
    drawn: int = 0


@dataclass(slots=True)
class Tally:
    """Slots come from the lease of the newest round; none before there is one."""

    _lock: threading.Lock = field(default_factory=threading.Lock)
    _counts: Counts = Counts()
    _lease: _Lease | None = None
    has_lease: threading.Event = field(default_factory=threading.Event)
    partners: dict[bytes, int] = field(default_factory=dict)  # exchanges that counted, by partner
    reasons: dict[str, int] = field(default_factory=dict)  # those that did not, by reason
    activity: str = "waiting to be a member"

    # Who trains

    def slots(self) -> Iterator[int]:
        """Without end, once there is a lease."""
        while True:
            with self._lock:
                assert self._lease is not None, "nobody trains without one"
                slot = next(self._lease.slots)
                self._lease.drawn += 1
            yield slot

    def worked(self, report: InnerReport) -> None:
        with self._lock:
            now = self._counts
            self._counts = replace(
                now,
                batches=now.batches + report.batches,
                steps=now.steps + report.steps,
                tokens=now.tokens + report.tokens,
                loss=report.loss if report.loss is not None else now.loss,
            )

    def at(self, number: int) -> None:
        with self._lock:
            self._counts = replace(self._counts, number=number)

    def measured(self, heldout: float) -> None:
        with self._lock:
            self._counts = replace(
                self._counts, heldout=heldout, heldout_number=self._counts.number
            )

    def met(self, partners: tuple[bytes, ...]) -> None:
        with self._lock:
            self._counts = replace(self._counts, done=self._counts.done + 1)
            for peer in partners:
                self.partners[peer] = self.partners.pop(peer, 0) + 1  # the last one is the newest
            while len(self.partners) > _PARTNERS_MAX:
                del self.partners[next(iter(self.partners))]

    def gave_up(self, reason: str) -> None:
        with self._lock:
            self._counts = replace(self._counts, given_up=self._counts.given_up + 1)
            if reason in self.reasons or len(self.reasons) < _REASONS_MAX:
                self.reasons[reason] = self.reasons.get(reason, 0) + 1

    # Who speaks

    def now(self) -> Counts:
        with self._lock:
            return self._counts

    def take(self) -> tuple[Counts, int]:
        """Work since it was taken last, and slots drawn from the lease."""
        with self._lock:
            found, drawn = self._counts, 0 if self._lease is None else self._lease.drawn
            self._counts = replace(found, batches=0, steps=0, tokens=0)
            return found, drawn

    def holds(self, round: int, seats: tuple[bytes, ...]) -> bool:
        """Are these the slots that are being looked at?"""
        with self._lock:
            lease = self._lease
            return lease is not None and (lease.round, lease.seats) == (round, seats)

    def lease(self, round: int, seats: tuple[bytes, ...], slots: Iterator[int]) -> None:
        with self._lock:
            self._lease = _Lease(round, seats, slots)
        self.has_lease.set()

    def facts(self) -> dict[str, Any]:
        """For people."""
        with self._lock:
            now = self._counts
            return {
                "exchange": now.number,
                "exchanges_done": now.done,
                "exchanges_given_up": now.given_up,
                "given_up_why": dict(self.reasons),
                "met": {peer.hex(): count for peer, count in self.partners.items()},
                "own_heldout_loss": now.heldout,
                "own_heldout_exchange": now.heldout_number,
                "own_train_loss": now.loss,
            }
