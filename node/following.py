"""Keeps the replicated state with the ledger, on the trainer's thread: entry by entry, from the
chain on disk when it is far behind, from a snapshot when one is here, and mended where it differs.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from node.attachments import Attachments
from node.keeper import StateKeeper
from node.ports import Disk
from node.replica import LackingError, Place, Progress, Replica, is_on_chain, on_chain
from node.snapshots import Record, Snapshots
from protocol.effects import Apply, Note, Patch, Rebuild, Restore
from protocol.entries import Attachment, Entry
from protocol.events import Applied, Behind, Event, Patched, SumRefused
from protocol.ids import Hash, PeerId, RunId
from protocol.ledger import round_key
from protocol.messages import Message
from protocol.parts import SumName
from protocol.restore import snapshots_on_chain
from protocol.roster import Roster
from protocol.rules import Rules
from protocol.snapshots import SnapshotAt, established, is_taken, named_in, naming_round

if TYPE_CHECKING:
    from torch import Tensor

_FAR_ROUNDS: Final = 8  # farther behind than this, the chain on disk is read instead of the queue
_TELL_S: Final = 0.5
_TRUSTED_SNAPSHOTS: Final = 8


@dataclass(frozen=True, slots=True)
class Setting:
    """The run that a worker serves, and as whom."""

    run: RunId
    me: PeerId
    founders: tuple[PeerId, ...]
    rules: Rules


@dataclass(frozen=True, slots=True)
class Reports:
    """Where results go; called on the worker's thread."""

    post: Callable[[Event], None]
    send: Callable[[PeerId, Message], None]
    note: Callable[[Note], None]
    failed: Callable[[BaseException], None]
    progress: Progress
    merged: Callable[[float], None]  # how many seconds one entry took


@dataclass(slots=True)
class Wishes:
    """What the driver's thread wants meanwhile; whoever works looks here between steps."""

    target: Place  # where all that is queued leads
    is_held: bool = False  # a snapshot is on its way: no replaying
    urgent: threading.Event = field(default_factory=threading.Event)  # do not keep it waiting
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def is_pressing(self) -> bool:
        return self.urgent.is_set() or self.stop.is_set()


@dataclass(frozen=True, slots=True)
class Lag:
    """Tells the protocol how far the state is behind, and what could take it along."""

    setting: Setting
    disk: Disk
    snapshots: Snapshots
    wishes: Wishes
    post: Callable[[Event], None]

    def tell(
        self,
        now: int,
        ms_per_round: float | None,
        lacking: tuple[Attachment, ...] = (),
        sums: tuple[SumName, ...] = (),
    ) -> None:
        """Of the chain's snapshots that the state has not come to, those that are partly here come
        first.
        """
        target, founders = self.wishes.target[0], Roster(self.setting.founders)
        found = snapshots_on_chain(self.disk, founders, target, self.setting.rules)
        ahead = sorted(
            (snapshot for snapshot in found if snapshot.round > now),
            key=lambda one: (self.snapshots.files.partial_bytes(one.root), one.round),
            reverse=True,
        )
        self.post(Behind(now, target, ms_per_round, tuple(ahead), lacking, sums))

    def tell_from_disk(self) -> None:
        """Before there is a state: where it will start."""
        ours = [round for round, _ in on_chain(self.disk, self.snapshots)]
        self.tell(max(ours, default=0), None)


class Follower:
    """`arrived` is called whenever the state has come to a place that is told, before that.

    Every so many rounds the state goes to disk, beside the work, as a snapshot; `taken` is called
    when one is begun at the chain's head.
    """

    def __init__(
        self,
        replica: Replica,
        keeper: StateKeeper,
        attachments: Attachments,
        lag: Lag,
        reports: Reports,
        arrived: Callable[[], None],
        taken: Callable[[], None],
    ) -> None:
        self._replica, self._keeper, self._attachments = replica, keeper, attachments
        self._lag, self._reports, self._arrived, self._taken = lag, reports, arrived, taken
        self._rules, self._disk, self._snapshots = lag.setting.rules, lag.disk, lag.snapshots
        self._wishes = lag.wishes
        self._is_lacking = False  # attachments are on their way: no replaying
        self.was_behind = False  # the open round began without us
        replica.unusable = self._tell_unusable

    # Entry by entry

    def apply(self, task: Apply) -> None:
        replica = self._replica
        self._compare_roots(task.entry, len(task.seats))
        if task.entry.round < replica.round or self._wishes.is_held:
            return  # a snapshot was past it, or will be
        far = self._wishes.target[0] - replica.round > _FAR_ROUNDS
        if far or self._is_lacking or task.entry.body.parent != replica.hash:
            self._catch_up()
            return
        started = time.monotonic()
        try:
            replica.merge(task.entry, task.seats)
        except LackingError as error:
            self._tell_lacking(error)
            return
        self._reports.merged(time.monotonic() - started)
        self._take_if_due()
        if self._wishes.target == replica.place:
            self._tell_state()  # while catching up, only the last digest is worth its time

    def _take_if_due(self) -> None:
        """And remove what nobody will replay."""
        round, rules = self._replica.round, self._rules
        if not is_taken(round, rules):
            return
        if not self._can_skip(round):
            self._keeper.take_snapshot()
        if round >= self._wishes.target[0]:
            self._taken()
        for named in snapshots_on_chain(self._disk, self._replica.founders, round, rules, 1):
            self._attachments.collect(self._snapshots.establish(named.root))

    def _can_skip(self, round: int) -> bool:
        """Who replays what others closed long ago takes every other one. They have it, and named
        it, and writing it would take time from catching up.
        """
        if naming_round(round, self._rules) >= self._wishes.target[0]:
            return False
        before = round - self._rules.snapshot_every
        return before in (at for at, _ in on_chain(self._disk, self._snapshots))

    def _compare_roots(self, entry: Entry, members: int) -> None:
        """P1, byte for byte: is our snapshot the one that most have?"""
        if named_in(entry.round, self._rules) is None:
            return
        agreed = established(entry, self._rules, members)
        ours = None if agreed is None else self._on_chain(agreed.round)
        if agreed is None or ours is None or ours.root == agreed.root:
            return
        self._snapshots.drop(ours.root)
        fields = {"round": agreed.round, "mine": ours.root, "theirs": agreed.root}
        self._reports.note(Note("error", "snapshot-mismatch", fields))

    # Along the chain on disk

    def proceed(self) -> None:
        """What was lacking is here."""
        self._is_lacking = False
        self._catch_up()

    def _catch_up(self) -> None:
        """From the chain on disk, as far as it leads; says how fast that goes."""
        replica = self._replica
        first, told_s, told_round = replica.round, time.monotonic(), replica.round
        self.was_behind = True
        if self._wishes.target[0] - first > _FAR_ROUNDS and not self._should_pause():
            self._lag.tell(first, None)  # one round may take long, and a snapshot be on its way
        while not self._should_pause() and replica.round < self._wishes.target[0]:
            try:
                if not replica.step(self._disk):
                    return  # the chain moved under us; a rebuild is queued
            except LackingError as error:
                self._tell_lacking(error)
                return
            self._take_if_due()
            passed_s = time.monotonic() - told_s
            if passed_s >= _TELL_S:
                self._progress(first)
                self._lag.tell(replica.round, 1000 * passed_s / (replica.round - told_round))
                told_s, told_round = time.monotonic(), replica.round
        if replica.place == self._wishes.target:
            self._tell_state()

    def _should_pause(self) -> bool:
        """A snapshot is awaited, or here; or we are to end."""
        return self._wishes.is_held or self._wishes.is_pressing

    def _progress(self, first: int) -> None:
        now, target = self._replica.round, self._wishes.target[0]
        self._reports.progress("replaying round", now - first, target - first)

    def _tell_lacking(self, error: LackingError) -> None:
        self._is_lacking = True
        for name in error.refused:
            self._reports.note(
                Note("error", "sum-refused", {"round": error.round, "part": name.number})
            )
            self._reports.post(SumRefused(name, error.round))
        self._lag.tell(error.round, None, error.attachments, error.sums)

    # In one leap

    def rebuild(self, task: Rebuild) -> None:
        replica = self._replica
        self._wishes.is_held = self._is_lacking = False
        if task.from_scratch:
            replica.start_over()
            replica.find_start(self._disk, self._agreed(task.round), task.round)
        else:
            replica.find_start(self._disk, self._snapshots, task.round)
        self._catch_up()

    def _agreed(self, head: int) -> "_Agreed":
        found = snapshots_on_chain(
            self._disk, self._replica.founders, head, self._rules, _TRUSTED_SNAPSHOTS
        )
        return _Agreed(self._snapshots, {snapshot.root for snapshot in found})

    def restore(self, task: Restore) -> None:
        self._wishes.urgent.clear()
        self._wishes.is_held = self._is_lacking = False
        self._load(task.snapshot)
        self._catch_up()

    def _load(self, snapshot: SnapshotAt) -> None:
        """A snapshot that was fetched, unless the chain has left it behind."""
        entry = self._disk.get("chain", round_key(snapshot.round - 1))
        record = self._snapshots.finish(snapshot.root, snapshot.round, entry or b"")
        if record is None or snapshot.round <= self._replica.round:
            return
        if not is_on_chain(self._disk, snapshot.round, record.entry):
            return
        tensors = self._snapshots.load(record)
        if tensors is None:
            return  # the disk lost what was checked when it came; it is fetched again
        try:
            place = (snapshot.round, Hash(record.entry))
            self._replica.load(tensors, place, self._disk)
        except (ValueError, KeyError) as error:
            self._snapshots.drop(record.root)
            fields = {"round": snapshot.round, "root": snapshot.root, "error": str(error)}
            self._reports.note(Note("error", "snapshot-unusable", fields))

    # Repairs

    def patch(self, task: Patch) -> None:
        self._wishes.urgent.clear()
        place = (task.round, task.parent)
        if self._replica.place != place:
            self._catch_up()
            return  # it came too late; what is damaged still is, at the next place
        try:
            names, changed = self._replica.patch(task.chunks)
        except ValueError as error:
            fields = {"round": task.round, "error": str(error)}
            self._reports.note(Note("warning", "repair-failed", fields))
            return
        self._reports.post(Patched(*place, tuple(names), changed))
        self._tell_state()
        if place != self._wishes.target:
            self._catch_up()

    # What is told

    def _tell_unusable(self, round: int, author: PeerId, why: str) -> None:
        fields = {"round": round, "peer": author, "error": why}
        self._reports.note(Note("error", "attachment-unusable", fields))

    def _tell_state(self) -> None:
        replica = self._replica
        self._arrived()
        self._reports.post(Applied(replica.round, replica.hash, replica.digest()))

    def root_named_in(self, round: int) -> Hash | None:
        """Of our snapshot whose turn it is to be named, if it is ready and of this chain."""
        taken = named_in(round, self._rules)
        record = None if taken is None else self._on_chain(taken)
        return None if record is None else record.root

    def _on_chain(self, round: int) -> Record | None:
        entry = self._disk.get("chain", round_key(round - 1))
        return None if entry is None else self._snapshots.find(round, entry)


@dataclass(frozen=True, slots=True)
class _Agreed:
    """Of our snapshots, those whose root is in the ledger."""

    snapshots: Snapshots
    roots: set[Hash]

    def newest(self) -> list[Record]:
        return [record for record in self.snapshots.newest() if record.root in self.roots]

    def load(self, record: Record) -> "dict[str, Tensor] | None":
        return self.snapshots.load(record)
