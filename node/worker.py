"""The trainer's thread: it owns the replicated state, and does what the protocol wishes, in order.

Work is interrupted as soon as an entry for its round is at hand, so a slow peer keeps pace with the
ledger.

Model and data may take minutes to load. The chain comes meanwhile, and with it a snapshot may.
"""

import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from node.attachments import Attachments
from node.following import Follower, Lag, Reports, Setting, Wishes
from node.keeper import StateKeeper
from node.local import LocalState
from node.methods.base import Contribution, GoesOn, Method, Overtime, RoundContext, Summing
from node.ports import Disk
from node.replica import Place, Replica
from node.snapshots import Snapshots
from node.store import StoreError
from protocol.effects import (
    AddUp,
    Apply,
    GiveBack,
    Hold,
    Note,
    Patch,
    Proceed,
    Rebuild,
    Restore,
    ServeMend,
    StartWork,
    TakeChecks,
)
from protocol.events import Summed, WorkDone
from protocol.ids import Hash
from protocol.parts import whole_of

if TYPE_CHECKING:
    from torch import Tensor

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
    initial_state: Callable[[], "Mapping[str, Tensor]"]  # made anew: the state before round 0


@dataclass(frozen=True, slots=True)
class _Close:
    pass


@dataclass(frozen=True, slots=True)
class _Work:
    task: StartWork
    asked_s: float


_Command = _Work | Apply | AddUp | Rebuild | Restore | Patch | Proceed | GiveBack | _Close


class TrainingWorker:
    """A `Worker` port. `make` loads model and data, and is called on a thread."""

    def __init__(
        self,
        make: Callable[[], Trainer],
        setting: Setting,
        disk: Disk,
        snapshots: Snapshots,
        attachments: Attachments,
        local: LocalState,
        reports: Reports,
    ) -> None:
        self._make, self._setting, self._reports = make, setting, reports
        self._snapshots, self._attachments, self._local = snapshots, attachments, local
        self._trainer: Trainer  # these four are there once `_is_ready` is set
        self._replica: Replica
        self._keeper: StateKeeper
        self._follower: Follower
        self._is_ready = threading.Event()
        self._commands: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._wishes = Wishes((0, Hash(setting.run)))
        self._lag = Lag(setting, disk, snapshots, self._wishes, reports.post)
        self._postponed: _Work | None = None
        # The work that was done last: where the state stood, and of what round.
        self._handed_in: tuple[Place, RoundContext] | None = None
        self._overtime_end_s = 0.0
        self._ahead_s = 0.0  # that went into the next round's work since then
        self._thread = threading.Thread(target=self._main, name="trainer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    # The port, called on the driver's thread

    def start_work(self, task: StartWork) -> None:
        self._wishes.target = (task.round, task.parent)
        self._commands.put(_Work(task, time.monotonic()))

    def stop_work(self) -> None:
        self._wishes.stop.set()

    def apply(self, task: Apply) -> None:
        self._wishes.target = (task.entry.round + 1, task.entry.hash)
        self._commands.put(task)

    def add_up(self, task: AddUp) -> None:
        self._commands.put(task)

    def rebuild(self, task: Rebuild) -> None:
        self._wishes.target = (task.round, task.parent)
        self._commands.put(task)

    def give_back(self, task: GiveBack) -> None:
        self._commands.put(task)

    def proceed(self, task: Proceed) -> None:
        self._commands.put(task)

    def hold(self, task: Hold) -> None:
        self._wishes.is_held = True

    def restore(self, task: Restore) -> None:
        self._wishes.urgent.set()
        self._commands.put(task)

    def take_checks(self, task: TakeChecks) -> None:
        if self._is_ready.is_set():
            self._keeper.take_checks(task)

    def serve_mend(self, task: ServeMend) -> None:
        if self._is_ready.is_set():  # else we have nothing: the asker turns to another
            self._keeper.serve_mend(task)

    def patch(self, task: Patch) -> None:
        self._wishes.urgent.set()
        self._commands.put(task)

    def close(self, timeout_s: float) -> bool:
        """Finish what is queued, put the state on disk, end. False if that took too long."""
        self._wishes.stop.set()
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
        """What to do. Nobody sits idle who has handed in what an open round needs of it."""
        method, handed_in = self._replica.method, self._handed_in
        if handed_in is None or not isinstance(method, Overtime):
            return self._commands.get()
        place, done = handed_in
        if place != self._replica.place or method.goes_on is GoesOn.NEVER:
            return self._commands.get()
        floor_s = self._setting.rules.deadline_floor_ms / 1000
        try:
            return self._commands.get(timeout=0 if method.goes_on is GoesOn.AT_ONCE else floor_s)
        except queue.Empty:
            began_s = time.monotonic()
            method.overtime(replace(done, expired=self._is_wanted))
            self._overtime_end_s = time.monotonic()
            if method.goes_on is GoesOn.AT_ONCE:
                self._ahead_s += self._overtime_end_s - began_s
            return self._commands.get()

    def _is_wanted(self) -> bool:
        return not self._commands.empty() or self._wishes.is_pressing

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
        while not self._wishes.stop.is_set():
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
        target = self._wishes.target[0]
        if target > told:
            self._lag.tell_from_disk()
        return target

    def _set_up(self, trainer: Trainer) -> None:
        setting, reports = self._setting, self._reports
        self._trainer = trainer
        self._replica = Replica(
            trainer.method,
            trainer.initial_state,
            setting.run,
            setting.me,
            setting.founders,
            self._attachments,
            setting.rules.parts,
        )
        self._keeper = StateKeeper(
            self._replica, self._snapshots, reports.post, reports.send, reports.note, reports.failed
        )
        self._follower = Follower(
            self._replica,
            self._keeper,
            self._attachments,
            self._lag,
            reports,
            self._resume,
            self._save_local,
        )
        self._load_local()
        self._keeper.start()
        self._is_ready.set()

    def _perform(self, command: _Command) -> bool:
        match command:
            case _Work():
                self._work(command)
            case Apply():
                self._follower.apply(command)
            case AddUp():
                self._add_up(command)
            case Rebuild():
                self._follower.rebuild(command)
            case Restore():
                self._follower.restore(command)
            case Patch():
                self._follower.patch(command)
            case Proceed():
                self._follower.proceed()
            case GiveBack():
                self._give_back(command)
            case _Close():
                if self._replica.round > 0:
                    self._keeper.take_snapshot()
                    self._save_local()
                return False
        return True

    def _work(self, work: _Work) -> None:
        task = work.task
        place = (task.round, task.parent)
        if self._wishes.target != place:
            return  # the round closed before we came to it
        if self._replica.place != place:
            self._postponed = work  # the state waits for a snapshot
            return
        state = self._replica.digest()
        # Measuring the held-out loss is part of the window, or this peer would be late by it.
        end_s = self._window_end_s(work)
        heldout = self._trainer.heldout() if task.heldout else None
        context = RoundContext(
            self._setting.run,
            task.round,
            self._setting.me,
            task.seats,
            lambda: (
                self._wishes.target != place
                or self._wishes.is_pressing
                or time.monotonic() >= end_s
            ),
            self._setting.rules.parts(len(task.seats)),
        )
        self._ahead_s = 0.0
        done = self._replica.method.work(context)
        scalars = _finite(done.loss), _finite(heldout)
        root = self._follower.root_named_in(task.round)
        attached, parts = None, self._attachments.add_parts(task.round, done.parts)
        if parts:
            attached = whole_of(parts)
        elif done.attachment:
            attached = self._attachments.add(task.round, done.attachment)
        self._reports.post(WorkDone(*place, state, done.payload, *scalars, root, attached, parts))
        self._handed_in = place, context

    def _add_up(self, task: AddUp) -> None:
        """For everybody. The state is not touched."""
        method, number = self._replica.method, task.name.number
        assert isinstance(method, Summing), "only these have attachments in parts"
        lines = [line for line in task.entry.body.lines if line.attached is not None]
        found: list[Contribution] = []
        for line, part in zip(lines, task.parts, strict=True):
            data = self._attachments.read(part)
            if data is None:
                self._reports.post(Summed(task.name, None))
                return
            found.append(Contribution(task.seats[line.seat], line.payload, data))
        round, setting = task.entry.round, self._setting
        context = RoundContext(
            setting.run,
            round,
            setting.me,
            task.seats,
            lambda: False,
            setting.rules.parts(len(task.seats)),
            number if task.is_first else None,
        )
        made = self._attachments.put(round, method.add_up(context, number, found))
        self._reports.post(Summed(task.name, made))

    def _window_end_s(self, work: _Work) -> float:
        """Who comes to a round late works for what is left of it: the others do not wait. What was
        worked for it before it opened is part of its window.
        """
        now_s = time.monotonic()
        began_s = now_s if self._follower.was_behind else self._overtime_end_s
        self._follower.was_behind = False
        left_ms = max(0, self._setting.rules.window_ms - work.task.late_ms)
        worked_s = max(0.0, began_s - work.asked_s, self._ahead_s)
        return now_s + left_ms / 1000 - worked_s

    def _give_back(self, task: GiveBack) -> None:
        data = b"" if task.attached is None else self._attachments.read(task.attached)
        if data is None:
            self._reports.note(Note("error", "work-lost", {"round": task.round}))
        else:
            self._replica.method.give_back(task.round, task.payload, data)

    # What is this machine's alone

    def _load_local(self) -> None:
        try:
            state = self._local.load()
            if state is not None:
                self._replica.method.load_local_state(state)
        except (ValueError, KeyError) as error:
            self._reports.note(Note("warning", "local-state-unusable", {"error": str(error)}))

    def _save_local(self) -> None:
        try:
            self._local.save(self._replica.method.local_state())
        except StoreError as error:  # a full disk: the ledger and the state are what counts
            self._reports.note(Note("error", "local-state-not-saved", {"error": str(error)}))

    # Coming to work that waits

    def _resume(self) -> None:
        """The state has come to where work was asked for before."""
        work = self._postponed
        if work is not None and (work.task.round, work.task.parent) == self._replica.place:
            self._postponed = None
            self._commands.put(work)


def _finite(value: float | None) -> float | None:
    """Only finite 32-bit numbers travel; anything else is unknown."""
    return value if value is not None and abs(value) < 3e38 else None
