"""What a person sees of a running peer: only what was measured; the rest is None, and shown as
"unknown".
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from node.metrics import Metrics
from node.telemetry import Rates
from protocol.entries import Entry

_STATES_KEPT = 64


@dataclass(slots=True)
class Stats:
    """Kept by the driver, read by `peer status`."""

    weigh: Callable[[bytes], int]
    metrics: Metrics
    train_loss: float | None = None
    heldout_loss: float | None = None
    heldout_round: int | None = None
    work_total: int = 0  # committed by all since this process started
    work_made: int = 0  # on this machine
    contributors: int | None = None
    took_ms: int | None = None
    state: int | None = None
    state_round: int | None = None
    activity: str = "starting"
    states: dict[int, str] = field(default_factory=dict)  # digests of the last rounds
    mismatches: int = 0
    switches: int = 0
    repairs: int = 0
    late: int = 0
    _work: Rates = field(default_factory=lambda: Rates(_now_ms(), 20_000))
    _moved: Rates = field(default_factory=lambda: Rates(_now_ms(), 20_000))
    _moved_total: int = 0

    def closed(self, entry: Entry) -> None:
        """An entry joined the chain."""
        lines = entry.body.lines
        work = sum(self.weigh(line.payload) for line in lines)
        self.work_total += work
        self._work.add(_now_ms(), work)
        self.contributors, self.took_ms = len(lines), entry.body.took_ms
        losses = [line.loss for line in lines if line.loss is not None]
        self.train_loss = sum(losses) / len(losses) if losses else self.train_loss
        self.metrics.set("peer_round", entry.round + 1)
        if self.train_loss is not None:
            self.metrics.set("peer_train_loss", self.train_loss)
        for line in lines:
            if line.heldout is not None:
                self.heldout_loss, self.heldout_round = line.heldout, entry.round
                self.metrics.set("peer_heldout_loss", line.heldout)

    def worked(self, payload: bytes) -> None:
        """A window of work ended on this machine."""
        work = self.weigh(payload)
        self.work_made += work
        self.metrics.add("peer_work", work)

    def applied(self, round: int, state: int) -> None:
        self.state, self.state_round = state, round
        self.states[round] = f"{state:016x}"
        while len(self.states) > _STATES_KEPT:
            del self.states[next(iter(self.states))]

    def traffic(self, bytes_in: int, bytes_out: int) -> None:
        """Totals so far."""
        moved = bytes_in + bytes_out
        self._moved.add(_now_ms(), moved - self._moved_total)
        self._moved_total = moved

    def as_json(self) -> dict[str, Any]:
        shown = {
            name: value
            for name, value in ((name, getattr(self, name)) for name in self.__slots__)
            if not name.startswith("_") and name not in ("weigh", "metrics")
        }
        shown["state"] = None if self.state is None else f"{self.state:016x}"
        shown["work_per_s"] = self._work.per_s(_now_ms())
        shown["bytes_per_s"] = self._moved.per_s(_now_ms())
        return shown


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000
