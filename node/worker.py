"""The trainer's thread: it owns the replicated state, and does what the protocol wishes, in order.

Work is interrupted as soon as an entry for its round is at hand, so a slow peer keeps pace with the
ledger. Every so many rounds the state goes to disk, beside the work, as a snapshot.

Model and data may take minutes to load. The chain comes meanwhile, and with it a snapshot may.
"""

import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from torch import Tensor

from node.attachments import Attachments
from node.keeper import StateKeeper
from node.methods.base import Method, Overtime, RoundContext
from node.ports import Disk
from node.replica import LackingError, Progress, Replica, is_on_chain, on_chain
from node.snapshots import Record, Snapshots
from protocol.entries import Attachment, Entry
from protocol.events import (
    Applied,
    Apply,
    Behind,
    Event,
    GiveBack,
    Hold,
    Note,
    Patch,
    Patched,
    Proceed,
    Rebuild,
    Restore,
    ServeMend,
    StartWork,
    TakeChecks,
    WorkDone,
)
from protocol.ids import Hash, PeerId, RunId
from protocol.ledger import round_key
from protocol.messages import Message
from protocol.restore import snapshots_on_chain
from protocol.roster import Roster
from protocol.rules import Rules
from protocol.snapshots import SnapshotAt, established, is_taken, named_in

_FAR_ROUNDS: Final = 8  # farther behind than this, the chain on disk is read instead of the queue
_TELL_S: Final = 0.5
_LOOK_S: Final = 0.1  # how often a chain that grows while the trainer is made is looked at
_TRUSTED_SNAPSHOTS: Final = 8
_SNAPSHOT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Trainer:
    """What the thread works with."""

    method: Method
    heldout: Callable[[], float]
    initial_state: Callable[[], Mapping[str, Tensor]]  # made anew: the state before round 0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker lives and whom it serves."""

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


@dataclass(frozen=True, slots=True)
class _Close:
    pass


@dataclass(frozen=True, slots=True)
class _Work:
    task: StartWork
    asked_s: float


_Command = _Work | Apply | Rebuild | Restore | Patch | Proceed | GiveBack | _Close


class TrainingWorker:
    """A `Worker` port. `make` loads model and data, and is called on a thread."""

    def __init__(
        self,
        make: Callable[[], Trainer],
        place: Place,
        disk: Disk,
        snapshots: Snapshots,
        attachments: Attachments,
        reports: Reports,
    ) -> None:
        self._make, self._place, self._disk, self._reports = make, place, disk, reports
        self._snapshots, self._attachments = snapshots, attachments
        self._trainer: Trainer  # these three are there once `_is_ready` is set
        self._replica: Replica
        self._keeper: StateKeeper
        self._is_ready = threading.Event()
        self._commands: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._urgent = threading.Event()  # a command that work must not keep waiting
        self._is_held = False  # a snapshot is on its way: no replaying
        self._is_lacking = False  # attachments are on their way: the same
        self._postponed: _Work | None = None
        self._was_behind = False  # the open round began without us
        self._handed_in: RoundContext | None = None  # of the work that was done last
        self._overtime_end_s = 0.0
        self._target: tuple[int, Hash] = (0, Hash(place.run))  # where all that is queued leads
        self._thread = threading.Thread(target=self._main, name="trainer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    # The port, called on the driver's thread

    def start_work(self, task: StartWork) -> None:
        self._target = (task.round, task.parent)
        self._commands.put(_Work(task, time.monotonic()))

    def stop_work(self) -> None:
        self._stop.set()

    def apply(self, task: Apply) -> None:
        self._target = (task.entry.round + 1, task.entry.hash)
        self._commands.put(task)

    def rebuild(self, task: Rebuild) -> None:
        self._target = (task.round, task.parent)
        self._commands.put(task)

    def give_back(self, task: GiveBack) -> None:
        self._commands.put(task)

    def proceed(self, task: Proceed) -> None:
        self._commands.put(task)

    def hold(self, task: Hold) -> None:
        self._is_held = True

    def restore(self, task: Restore) -> None:
        self._urgent.set()
        self._commands.put(task)

    def take_checks(self, task: TakeChecks) -> None:
        if self._is_ready.is_set():
            self._keeper.take_checks(task)

    def serve_mend(self, task: ServeMend) -> None:
        if self._is_ready.is_set():  # else we have nothing: the asker turns to another
            self._keeper.serve_mend(task)

    def patch(self, task: Patch) -> None:
        self._urgent.set()
        self._commands.put(task)

    def close(self, timeout_s: float) -> bool:
        """Finish what is queued, put the state on disk, end. False if that took too long."""
        self._stop.set()
        self._commands.put(_Close())
        self._thread.join(timeout_s)
        if self._is_ready.is_set():
            self._keeper.close(_SNAPSHOT_S)
        return not self._thread.is_alive()

    # The thread

    def _main(self) -> None:
        try:
            trainer = self._wait_for_trainer()
            if trainer is None:
                return
            self._set_up(trainer)
            while self._perform(self._next()):
                pass
        except BaseException as error:  # whatever it is, the process must hear of it
            self._reports.failed(error)

    def _next(self) -> _Command:
        """What to do. Nobody sits idle who has handed in what an overdue round needs of it."""
        done, self._handed_in = self._handed_in, None
        method = self._replica.method
        if done is None or not isinstance(method, Overtime):
            return self._commands.get()
        try:
            return self._commands.get(timeout=self._place.rules.deadline_floor_ms / 1000)
        except queue.Empty:
            method.overtime(replace(done, expired=self._is_wanted))
            self._overtime_end_s = time.monotonic()
            return self._commands.get()

    def _is_wanted(self) -> bool:
        return not self._commands.empty() or self._stop.is_set() or self._urgent.is_set()

    def _wait_for_trainer(self) -> Trainer | None:
        """None if we are to end before it is made."""
        made: queue.SimpleQueue[Trainer | BaseException] = queue.SimpleQueue()

        def make() -> None:
            try:
                made.put(self._make())
            except BaseException as error:
                made.put(error)

        threading.Thread(target=make, name="loader", daemon=True).start()
        told = 0
        while not self._stop.is_set():
            try:
                found = made.get(timeout=_LOOK_S)
            except queue.Empty:
                told = self._tell_loading(told)
                continue
            if isinstance(found, BaseException):
                raise found
            return found
        return None

    def _tell_loading(self, told: int) -> int:
        """How far the chain leads from where we will start, when it leads farther than was told."""
        target = self._target[0]
        if target > told:
            ours = [round for round, _ in on_chain(self._disk, self._snapshots)]
            self._tell_behind(max(ours, default=0), None)
        return target

    def _set_up(self, trainer: Trainer) -> None:
        place, reports = self._place, self._reports
        self._trainer = trainer
        self._replica = Replica(
            trainer.method,
            trainer.initial_state,
            place.run,
            place.me,
            place.founders,
            self._attachments,
        )
        self._replica.unusable = self._tell_unusable
        self._keeper = StateKeeper(
            self._replica, self._snapshots, reports.post, reports.send, reports.note, reports.failed
        )
        self._keeper.start()
        self._is_ready.set()

    def _perform(self, command: _Command) -> bool:
        match command:
            case _Work():
                self._work(command)
            case Apply():
                self._apply(command)
            case Rebuild():
                self._rebuild(command)
            case Restore():
                self._restore(command)
            case Patch():
                self._patch(command)
            case Proceed():
                self._is_lacking = False
                self._catch_up()
            case GiveBack():
                self._give_back(command)
            case _Close():
                if self._replica.round > 0:
                    self._keeper.take_snapshot()
                return False
        return True

    def _work(self, work: _Work) -> None:
        task = work.task
        place = (task.round, task.parent)
        if self._target != place:
            return  # the round closed before we came to it
        if self._replica.place != place:
            self._postponed = work  # the state waits for a snapshot
            return
        state = self._replica.digest()
        # Measuring the held-out loss is part of the window, or this peer would be late by it. Who
        # comes to a round late works for what is left of it: the others do not wait.
        now_s = time.monotonic()
        lost_s = max(0.0, (now_s if self._was_behind else self._overtime_end_s) - work.asked_s)
        self._was_behind = False
        left_ms = max(0, self._place.rules.window_ms - task.late_ms)
        end_s = now_s + left_ms / 1000 - lost_s
        heldout = self._trainer.heldout() if task.heldout else None
        context = RoundContext(
            self._place.run,
            task.round,
            self._place.me,
            task.seats,
            lambda: (
                self._target != place
                or self._stop.is_set()
                or self._urgent.is_set()
                or time.monotonic() >= end_s
            ),
        )
        done = self._replica.method.work(context)
        scalars = _finite(done.loss), _finite(heldout)
        root = self._root_named_in(task.round)
        attached = None
        if done.attachment:
            attached = self._attachments.add(task.round, done.attachment)
        self._reports.post(WorkDone(*place, state, done.payload, *scalars, root, attached))
        self._handed_in = context

    def _give_back(self, task: GiveBack) -> None:
        data = b"" if task.attached is None else self._attachments.read(task.attached)
        if data is None:
            self._reports.note(Note("error", "work-lost", {"round": task.round}))
        else:
            self._replica.method.give_back(task.round, task.payload, data)

    def _root_named_in(self, round: int) -> Hash | None:
        """Of our snapshot whose turn it is to be named, if it is ready and of this chain."""
        taken = named_in(round, self._place.rules)
        record = None if taken is None else self._on_chain(taken)
        return None if record is None else record.root

    def _on_chain(self, round: int) -> Record | None:
        entry = self._disk.get("chain", round_key(round - 1))
        return None if entry is None else self._snapshots.find(round, entry)

    # Along the chain

    def _apply(self, task: Apply) -> None:
        replica = self._replica
        self._compare_roots(task.entry, len(task.seats))
        if task.entry.round < replica.round or self._is_held:
            return  # a snapshot was past it, or will be
        far = self._target[0] - replica.round > _FAR_ROUNDS
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
        if self._target == replica.place:
            self._tell_state()  # while catching up, only the last digest is worth its time

    def _take_if_due(self) -> None:
        """And remove what nobody will replay."""
        round, rules = self._replica.round, self._place.rules
        if not is_taken(round, rules):
            return
        self._keeper.take_snapshot()
        for named in snapshots_on_chain(self._disk, self._replica.founders, round, rules, 1):
            self._attachments.collect(self._snapshots.establish(named.root))

    def _compare_roots(self, entry: Entry, members: int) -> None:
        """P1, byte for byte: is our snapshot the one that most have?"""
        if named_in(entry.round, self._place.rules) is None:
            return
        agreed = established(entry, self._place.rules, members)
        ours = None if agreed is None else self._on_chain(agreed.round)
        if agreed is None or ours is None or ours.root == agreed.root:
            return
        self._snapshots.drop(ours.root)
        fields = {"round": agreed.round, "mine": ours.root, "theirs": agreed.root}
        self._reports.note(Note("error", "snapshot-mismatch", fields))

    def _catch_up(self) -> None:
        """From the chain on disk, as far as it leads; says how fast that goes."""
        replica = self._replica
        first, told_s, told_round = replica.round, time.monotonic(), replica.round
        self._was_behind = True
        if self._target[0] - first > _FAR_ROUNDS and not self._should_pause():
            self._tell_behind(first, None)  # one round may take long, and a snapshot be on its way
        while not self._should_pause() and replica.round < self._target[0]:
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
                self._tell_behind(replica.round, 1000 * passed_s / (replica.round - told_round))
                told_s, told_round = time.monotonic(), replica.round
        if replica.place == self._target:
            self._tell_state()

    def _should_pause(self) -> bool:
        """A snapshot is awaited, or here; or we are to end."""
        return self._is_held or self._urgent.is_set() or self._stop.is_set()

    def _progress(self, first: int) -> None:
        now, target = self._replica.round, self._target[0]
        self._reports.progress("replaying round", now - first, target - first)

    def _tell_lacking(self, error: LackingError) -> None:
        self._is_lacking = True
        self._tell_behind(error.round, None, error.attachments)

    def _tell_behind(
        self, now: int, ms_per_round: float | None, lacking: tuple[Attachment, ...] = ()
    ) -> None:
        """Of the chain's snapshots that the state has not come to, those that are partly here come
        first.
        """
        target, founders = self._target[0], Roster(self._place.founders)
        found = snapshots_on_chain(self._disk, founders, target, self._place.rules)
        ahead = sorted(
            (snapshot for snapshot in found if snapshot.round > now),
            key=lambda one: (self._snapshots.files.partial_bytes(one.root), one.round),
            reverse=True,
        )
        self._reports.post(Behind(now, target, ms_per_round, tuple(ahead), lacking))

    def _rebuild(self, task: Rebuild) -> None:
        replica = self._replica
        self._is_held = self._is_lacking = False
        if task.from_scratch:
            replica.start_over()
            replica.find_start(self._disk, self._agreed(task.round), task.round)
        else:
            replica.find_start(self._disk, self._snapshots, task.round)
        self._catch_up()

    def _agreed(self, head: int) -> "_Agreed":
        found = snapshots_on_chain(
            self._disk, self._replica.founders, head, self._place.rules, _TRUSTED_SNAPSHOTS
        )
        return _Agreed(self._snapshots, {snapshot.root for snapshot in found})

    def _restore(self, task: Restore) -> None:
        self._urgent.clear()
        self._is_held = self._is_lacking = False
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

    def _patch(self, task: Patch) -> None:
        self._urgent.clear()
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
        if place != self._target:
            self._catch_up()

    def _tell_unusable(self, round: int, author: PeerId, why: str) -> None:
        fields = {"round": round, "peer": author, "error": why}
        self._reports.note(Note("error", "attachment-unusable", fields))

    def _tell_state(self) -> None:
        replica, work = self._replica, self._postponed
        if work is not None and (work.task.round, work.task.parent) == replica.place:
            self._postponed = None
            self._commands.put(work)
        self._reports.post(Applied(replica.round, replica.hash, replica.digest()))


@dataclass(frozen=True, slots=True)
class _Agreed:
    """Of our snapshots, those whose root is in the ledger."""

    snapshots: Snapshots
    roots: set[Hash]

    def newest(self) -> list[Record]:
        return [record for record in self.snapshots.newest() if record.root in self.roots]

    def load(self, record: Record) -> dict[str, Tensor] | None:
        return self.snapshots.load(record)


def _finite(value: float | None) -> float | None:
    """Only finite 32-bit numbers travel; anything else is unknown."""
    return value if value is not None and abs(value) < 3e38 else None
