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
from protocol.effects import Hold, Rebuild, Restore
from protocol.events import Behind
from protocol.ids import Hash, Millis
from protocol.ledger import Ledger
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


class Pace:
    """How long rounds take to replay: as long as those that were measured, for the work in them. A
    swarm that has grown does more in a round than when it was young.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._told: int | None = None  # where the state was when it was last heard of
        self._ms_per_round: float | None = None
        self._ms_per_unit = 0.0

    @property
    def is_measured(self) -> bool:
        return self._ms_per_round is not None

    def heard(self, event: Behind) -> None:
        first, self._told = self._told, event.round
        if event.ms_per_round is None:
            return
        self._ms_per_round = event.ms_per_round
        work = 0.0 if first is None else self._work(first, event.round)
        passed_ms = event.ms_per_round * (event.round - (first or 0))
        self._ms_per_unit = passed_ms / work if work > 0 else 0.0

    def ms(self, first: int, last: int) -> float:
        """From where the round `first` is open to where `last` is."""
        assert self._ms_per_round is not None, "it was measured"
        rounds = max(0, last - first)
        if self._ms_per_unit and last <= self._ledger.head.round:
            return self._work(first, first + rounds) * self._ms_per_unit
        return rounds * self._ms_per_round

    def _work(self, first: int, last: int) -> float:
        return self._ledger.weight_at(last) - self._ledger.weight_at(first)


def choose(
    behind: Behind, snapshot: SnapshotAt, missing_bytes: int, bytes_per_ms: float, pace: Pace
) -> Choice | None:
    """Which way is clearly faster from here; None while both are about as good, or replaying has
    not been measured. The first seconds of either say little.
    """
    rounds, after = behind.target - behind.round, max(0, behind.target - snapshot.round)
    if not pace.is_measured or not rounds:
        return None
    replay_ms = pace.ms(behind.round, behind.target)
    fetch_ms = missing_bytes / max(bytes_per_ms, 1e-9)
    tail_ms = pace.ms(snapshot.round, behind.target)
    replay = (
        f"replaying {rounds} rounds at {replay_ms / rounds:.1f} ms takes {replay_ms / 1000:.0f} s"
    )
    fetch = (
        f"fetching {missing_bytes / 1e6:.1f} MB at {bytes_per_ms / 1000:.2f} MB/s and replaying"
        f" {after} rounds takes {(fetch_ms + tail_ms) / 1000:.0f} s"
    )
    if max(fetch_ms + tail_ms, replay_ms) < _CLEARLY * min(fetch_ms + tail_ms, replay_ms):
        return None
    if fetch_ms + tail_ms < replay_ms:
        return Choice(True, f"{fetch}; {replay}")
    return Choice(False, f"{replay}; {fetch}")


@dataclass(slots=True)
class _Trial:
    """A snapshot that is being fetched."""

    snapshot: SnapshotAt
    fetch: Fetch
    told_ms: Millis
    is_held: bool = False  # replaying was stopped for it


class Recovery:
    """`is_reading`: is more of the chain on its way? Then it may name newer snapshots, and nobody
    has the old ones any more.
    """

    def __init__(self, core: Core, transfers: Transfers, is_reading: Callable[[], bool]) -> None:
        self._core, self._transfers, self._is_reading = core, transfers, is_reading
        self._trial: _Trial | None = None
        self._refused: dict[Hash, None] = {}
        self._last: tuple[int, float] | None = None  # size and rate of the last one fetched
        self._pace = Pace(core.ledger)
        self._since_ms: Millis | None = None  # when the state was first heard to be behind
        self._done_ms: float | None = None  # when the state will be at the head, as far as we know

    def is_nearly_done(self, within_ms: int) -> bool:
        """Will the state be at the head so soon? By then we may be a member, and lose no round."""
        return self._done_ms is not None and self._done_ms - self._core.now <= within_ms

    def caught_up(self) -> None:
        """The state is at the head."""
        if self._since_ms is not None:
            core = self._core
            core.note("info", "caught-up", round=core.head.round, took_ms=core.now - self._since_ms)
        self._done_ms = self._since_ms = None
        if self._trial is not None and not self._trial.is_held:
            self._give_up(self._trial, "the replay is past it")

    @property
    def wake_ms(self) -> Millis | None:
        return None if self._trial is None else Millis(self._trial.told_ms + _TELL_MS)

    def behind(self, event: Behind) -> None:
        trial = self._trial
        if self._since_ms is None and event.target > event.round + 1:
            self._since_ms = self._core.now  # what the newest entry attaches takes its time, always
        if trial is not None and trial.is_held:
            return
        self._pace.heard(event)
        if event.ms_per_round is not None:
            self._done_ms = self._core.now + self._pace.ms(event.round, event.target)
        if trial is None:
            self._consider(event)
            return
        rate, missing = trial.fetch.per_ms(self._core.now), trial.fetch.missing_bytes
        if event.round >= trial.snapshot.round:
            self._give_up(trial, "the replay is past it")
        elif not self._is_long(event):
            self._give_up(trial, "replaying takes no time")
        elif rate is not None and missing is not None:
            choice = choose(event, trial.snapshot, missing, rate, self._pace)
            if choice is not None:
                self._follow(trial, choice)

    def _consider(self, event: Behind) -> None:
        if event.ms_per_round is None and self._pace.is_measured:
            return  # it will be measured again, soon
        is_old = event.target < self._core.head.round  # it was told before the newest entries came
        if is_old or self._is_reading() or not self._is_long(event):
            return
        for snapshot in self._usable(event):
            choice = None
            if self._last is not None:
                choice = choose(event, snapshot, *self._last, self._pace)
            if choice is None or choice.by_snapshot:
                self._try(snapshot)
                return

    def _is_long(self, event: Behind) -> bool:
        """Is the replay worth somebody's uplink, as far as is known?"""
        if event.ms_per_round is None:
            return event.target - event.round >= _FAR_ROUNDS
        return self._pace.ms(event.round, event.target) >= TRIVIAL_MS

    def _usable(self, event: Behind) -> list[SnapshotAt]:
        ahead = (one for one in event.snapshots if one.round > event.round)
        return [one for one in ahead if one.root not in self._refused]

    def _try(self, snapshot: SnapshotAt) -> _Trial:
        fetch = self._transfers.start(snapshot.root, self._arrived)
        self._trial = _Trial(snapshot, fetch, self._core.now)
        return self._trial

    def instead(self, event: Behind) -> bool:
        """Replaying cannot go on, so a snapshot it is, if there is one; False if not."""
        trial, usable = self._trial, self._usable(event)
        if trial is None:
            if not usable:
                return False
            trial = self._try(usable[0])
        if not trial.is_held:
            self._follow(trial, Choice(True, f"nobody sends what round {event.round} lists"))
        return True

    def _follow(self, trial: _Trial, choice: Choice) -> None:
        way = "snapshot" if choice.by_snapshot else "replay"
        self._core.note(
            "info", "catching-up", way=way, why=choice.why, snapshot_round=trial.snapshot.round
        )
        if choice.by_snapshot:
            trial.is_held = True
            self._core.out.append(Hold())
        else:
            self._give_up(trial, "replaying is faster")

    def _arrived(self) -> None:
        trial, now = self._trial, self._core.now
        assert trial is not None
        fetch = trial.fetch
        self._estimate(trial)
        rate = fetch.per_ms(now)
        if fetch.size is not None and rate is not None:
            self._last = fetch.size, rate
        self._core.note(
            "info",
            "snapshot-fetched",
            round=trial.snapshot.round,
            root=trial.snapshot.root,
            bytes=fetch.size,
            received=fetch.received_bytes,
            repeated=fetch.repeated,
            holders=fetch.holders,
            took_ms=now - fetch.started_ms,
        )
        self._trial = None
        self._core.out.append(Restore(trial.snapshot))

    def _estimate(self, trial: _Trial) -> None:
        """How long the rest of the snapshot and the rounds after it will take, as measured."""
        if not trial.is_held or not self._pace.is_measured:
            return
        rate, missing = trial.fetch.per_ms(self._core.now), trial.fetch.missing_bytes
        if rate is None or missing is None:
            return
        tail_ms = self._pace.ms(trial.snapshot.round, self._core.head.round)
        fetch_ms = missing / rate if missing else 0.0  # all of it may have been here before
        self._done_ms = self._core.now + fetch_ms + tail_ms

    def _give_up(self, trial: _Trial, why: str) -> None:
        self._refused[trial.snapshot.root] = None
        while len(self._refused) > _REFUSED_MAX:
            del self._refused[next(iter(self._refused))]
        self._transfers.cancel(trial.snapshot.root)
        self._core.note("debug", "snapshot-not-used", round=trial.snapshot.round, why=why)
        self._done_ms = None
        self._trial = None

    def moved(self) -> None:
        """The chain switched: another rebuild is under way, and the snapshot may be the wrong
        chain's.
        """
        if self._trial is not None:
            self._give_up(self._trial, "the chain switched")

    def tick(self) -> None:
        core, trial = self._core, self._trial
        if trial is None or core.now < trial.told_ms + _TELL_MS:
            return
        trial.told_ms = core.now
        self._estimate(trial)
        fetch = trial.fetch
        rate, missing = fetch.per_ms(core.now), fetch.missing_bytes
        core.note(
            "info",
            "fetching-snapshot",
            round=trial.snapshot.round,
            bytes=fetch.size,
            missing_bytes=missing,
            bytes_per_s=None if rate is None else round(rate * 1000),
            left_s=None if rate is None or missing is None else round(missing / rate / 1000, 1),
            holders=fetch.holders,
        )
        patience_ms = _NOBODY_MS if fetch.size is None else _STUCK_MS
        if core.now - fetch.moved_ms < patience_ms:
            return
        self._give_up(trial, "nobody sends it")
        if trial.is_held:
            self._replay_instead(trial.snapshot)

    def _replay_instead(self, snapshot: SnapshotAt) -> None:
        core = self._core
        reason = f"the snapshot of round {snapshot.round} cannot be had: replaying instead"
        core.note("warning", "catching-up", way="replay", why=reason)
        head = core.head
        core.out.append(
            Rebuild(head.round, head.hash, switched=False, from_scratch=False, reason=reason)
        )
