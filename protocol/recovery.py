"""Bringing a state that is far behind to the head: entry by entry, or from a snapshot?

Whatever this machine and this link do faster. Replaying begins as soon as the model is loaded, and
is measured; if it will take long, or nobody can tell yet and there are many rounds, a snapshot is
asked for beside it and that is measured too; then the slower way is given up, and a person is told
which, and why.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from protocol.blobs import Fetch
from protocol.core import Core
from protocol.events import Behind, Hold, Rebuild, Restore
from protocol.ids import Hash, Millis
from protocol.snapshots import SnapshotAt
from protocol.transfers import Transfers

TRIVIAL_MS: Final = 3_000  # a replay that takes less is not worth anybody's uplink
_FAR_ROUNDS: Final = 32  # so many are not waited for until one of them was measured
_CLEARLY: Final = 1.5  # until one way takes so many times as long, both are gone
_STUCK_MS: Final = 30_000
_NOBODY_MS: Final = 8_000  # nobody has it: it was collected perhaps, and there is a newer one
_TELL_MS: Final = 2_000
_REFUSED_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class Choice:
    by_snapshot: bool
    why: str


def choose(
    behind: Behind, snapshot: SnapshotAt, missing_bytes: int, bytes_per_ms: float
) -> Choice | None:
    """Which way is clearly faster from here; None while both are about as good, or replaying has
    not been measured. The first seconds of either say little.
    """
    if behind.ms_per_round is None:
        return None
    replay_ms = (behind.target - behind.round) * behind.ms_per_round
    fetch_ms = missing_bytes / max(bytes_per_ms, 1e-9)
    tail_ms = max(0, behind.target - snapshot.round) * behind.ms_per_round
    replay = (
        f"replaying {behind.target - behind.round} rounds at {behind.ms_per_round:.1f} ms"
        f" takes {replay_ms / 1000:.0f} s"
    )
    fetch = (
        f"fetching {missing_bytes / 1e6:.1f} MB at {bytes_per_ms / 1000:.2f} MB/s and replaying"
        f" {max(0, behind.target - snapshot.round)} rounds takes"
        f" {(fetch_ms + tail_ms) / 1000:.0f} s"
    )
    if max(fetch_ms + tail_ms, replay_ms) < _CLEARLY * min(fetch_ms + tail_ms, replay_ms):
        return None
    if fetch_ms + tail_ms < replay_ms:
        return Choice(True, f"{fetch}; {replay}")
    return Choice(False, f"{replay}; {fetch}")


def _is_long(behind: Behind) -> bool:
    """Is the replay worth somebody's uplink, as far as is known?"""
    rounds = behind.target - behind.round
    if behind.ms_per_round is None:
        return rounds >= _FAR_ROUNDS
    return rounds * behind.ms_per_round >= TRIVIAL_MS


class Recovery:
    """`is_reading`: is more of the chain on its way? Then it may name newer snapshots, and nobody
    has the old ones any more.
    """

    def __init__(self, core: Core, transfers: Transfers, is_reading: Callable[[], bool]) -> None:
        self._core, self._transfers, self._is_reading = core, transfers, is_reading
        self._wanted: SnapshotAt | None = None
        self._fetch: Fetch | None = None
        self._is_held = False  # replaying was stopped for it
        self._refused: dict[Hash, None] = {}
        self._told_ms = 0
        self._last: tuple[int, float] | None = None  # size and rate of the last one fetched
        self._behind: Behind | None = None  # the last word on replaying, before it was stopped
        self._is_measured = False  # is it known how long a round takes to replay?
        self._done_ms: float | None = None  # when the state will be at the head, as far as we know

    def is_nearly_done(self, within_ms: int) -> bool:
        """Will the state be at the head so soon? By then we may be a member, and lose no round."""
        return self._done_ms is not None and self._done_ms - self._core.now <= within_ms

    def caught_up(self) -> None:
        """The state is at the head."""
        self._done_ms = None
        if self._wanted is not None and not self._is_held:
            self._give_up("the replay is past it")

    def _estimate(self) -> None:
        """How long the rest of the snapshot and the rounds after it will take, as measured."""
        fetch, wanted, behind = self._fetch, self._wanted, self._behind
        if not self._is_held or fetch is None or wanted is None or behind is None:
            return
        rate, missing = fetch.per_ms(self._core.now), fetch.missing_bytes
        if rate is None or missing is None or behind.ms_per_round is None:
            return
        tail_ms = max(0, self._core.head.round - wanted.round) * behind.ms_per_round
        self._done_ms = self._core.now + missing / rate + tail_ms

    @property
    def busy(self) -> bool:
        """Is the state waiting for a snapshot?"""
        return self._is_held

    @property
    def wake_ms(self) -> Millis | None:
        return Millis(self._told_ms + _TELL_MS) if self._fetch is not None else None

    def behind(self, event: Behind) -> None:
        if self._is_held:
            return
        if event.ms_per_round is not None:
            self._is_measured = True
            left_ms = (event.target - event.round) * event.ms_per_round
            self._done_ms = self._core.now + left_ms
        if self._wanted is None or self._fetch is None:
            self._consider(event)
            return
        rate, missing = self._fetch.per_ms(self._core.now), self._fetch.missing_bytes
        if event.round >= self._wanted.round:
            self._give_up("the replay is past it")
        elif not _is_long(event):
            self._give_up("replaying takes no time")
        elif rate is not None and missing is not None:
            self._behind = event
            choice = choose(event, self._wanted, missing, rate)
            if choice is not None:
                self._follow(choice)

    def _consider(self, event: Behind) -> None:
        if event.ms_per_round is None and self._is_measured:
            return  # it will be measured again, soon
        is_old = event.target < self._core.head.round  # it was told before the newest entries came
        if is_old or self._is_reading() or not _is_long(event):
            return
        for snapshot in self._usable(event):
            choice = None if self._last is None else choose(event, snapshot, *self._last)
            if choice is None or choice.by_snapshot:
                self._try(snapshot)
                return

    def _usable(self, event: Behind) -> list[SnapshotAt]:
        ahead = (one for one in event.snapshots if one.round > event.round)
        return [one for one in ahead if one.root not in self._refused]

    def _try(self, snapshot: SnapshotAt) -> None:
        self._wanted = snapshot
        self._told_ms = self._core.now
        self._fetch = self._transfers.start(snapshot.root, self._arrived)

    def instead(self, event: Behind) -> bool:
        """Replaying cannot go on, so a snapshot it is, if there is one; False if not."""
        usable = self._usable(event)
        if self._wanted is None and usable:
            self._try(usable[0])
        if self._wanted is not None and not self._is_held:
            self._follow(Choice(True, f"nobody sends what round {event.round} lists"))
        return self._wanted is not None

    def _follow(self, choice: Choice) -> None:
        assert self._wanted is not None
        way = "snapshot" if choice.by_snapshot else "replay"
        self._core.note(
            "info", "catching-up", way=way, why=choice.why, snapshot_round=self._wanted.round
        )
        if choice.by_snapshot:
            self._is_held = True
            self._core.out.append(Hold(choice.why))
        else:
            self._give_up("replaying is faster")

    def _arrived(self) -> None:
        wanted, fetch = self._wanted, self._fetch
        assert wanted is not None
        assert fetch is not None
        now = self._core.now
        self._estimate()
        rate = fetch.per_ms(now)
        if fetch.size is not None and rate is not None:
            self._last = fetch.size, rate
        self._core.note(
            "info",
            "snapshot-fetched",
            round=wanted.round,
            root=wanted.root,
            bytes=fetch.size,
            received=fetch.received_bytes,
            repeated=fetch.repeated,
            holders=fetch.holders,
            took_ms=now - fetch.started_ms,
        )
        self._forget()
        self._core.out.append(Restore(wanted))

    def _give_up(self, why: str) -> None:
        assert self._wanted is not None
        self._refused[self._wanted.root] = None
        while len(self._refused) > _REFUSED_MAX:
            del self._refused[next(iter(self._refused))]
        self._transfers.cancel(self._wanted.root)
        self._core.note("debug", "snapshot-not-used", round=self._wanted.round, why=why)
        self._done_ms = None
        self._forget()

    def _forget(self) -> None:
        self._wanted = self._fetch = None
        self._is_held = False

    def moved(self) -> None:
        """The chain switched: another rebuild is under way, and the snapshot may be the wrong
        chain's.
        """
        if self._wanted is not None:
            self._give_up("the chain switched")

    def tick(self) -> None:
        core, fetch, wanted = self._core, self._fetch, self._wanted
        if fetch is None or wanted is None or core.now < self._told_ms + _TELL_MS:
            return
        self._told_ms = core.now
        self._estimate()
        rate, missing = fetch.per_ms(core.now), fetch.missing_bytes
        core.note(
            "info",
            "fetching-snapshot",
            round=wanted.round,
            bytes=fetch.size,
            missing_bytes=missing,
            bytes_per_s=None if rate is None else round(rate * 1000),
            left_s=None if rate is None or missing is None else round(missing / rate / 1000, 1),
            holders=fetch.holders,
        )
        patience_ms = _NOBODY_MS if fetch.size is None else _STUCK_MS
        if core.now - fetch.moved_ms < patience_ms:
            return
        was_held = self._is_held
        self._give_up("nobody sends it")
        if was_held:
            reason = f"the snapshot of round {wanted.round} cannot be had: replaying instead"
            core.note("warning", "catching-up", way="replay", why=reason)
            core.out.append(
                Rebuild(
                    core.head.round,
                    core.head.hash,
                    switched=False,
                    from_scratch=False,
                    reason=reason,
                )
            )
