"""The trainer's thread: it owns the replicated state, and does what the protocol wishes, in order.

Work is interrupted as soon as an entry for its round is at hand, so a slow peer keeps pace with the
ledger. The state is put on disk now and then, as seldom as its cost demands.
"""

import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torch import Tensor

from node.methods.base import Method, RoundContext
from node.ports import Disk
from node.replica import Progress, Replica
from protocol.events import Applied, Apply, Event, Rebuild, StartWork, WorkDone
from protocol.ids import Hash, PeerId, RunId

_CHECKPOINT_COST: Final = 20  # time between checkpoints is at least this many times what one takes


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
    window_ms: int
    home: Path
    checkpoint_s: float


@dataclass(frozen=True, slots=True)
class Reports:
    """Where results go; called on the worker's thread."""

    post: Callable[[Event], None]
    failed: Callable[[BaseException], None]
    progress: Progress
    merged: Callable[[float], None]  # how many seconds one entry took


@dataclass(frozen=True, slots=True)
class _GiveBack:
    round: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class _Close:
    pass


_Command = StartWork | Apply | Rebuild | _GiveBack | _Close


class TrainingWorker:
    """A `Worker` port."""

    def __init__(self, trainer: Trainer, place: Place, disk: Disk, reports: Reports) -> None:
        self._trainer, self._place, self._disk, self._reports = trainer, place, disk, reports
        self._replica = Replica(
            trainer.method, trainer.initial_state, place.run, place.me, place.founders
        )
        self._commands: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._target: tuple[int, Hash] = (0, Hash(place.run))  # where all that is queued leads
        self._next_checkpoint_s = time.monotonic() + place.checkpoint_s
        self._thread = threading.Thread(target=self._main, name="trainer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    # The port, called on the driver's thread

    def start_work(self, task: StartWork) -> None:
        self._target = (task.round, task.parent)
        self._commands.put(task)

    def stop_work(self) -> None:
        self._stop.set()

    def apply(self, task: Apply) -> None:
        self._target = (task.entry.round + 1, task.entry.hash)
        self._commands.put(task)

    def rebuild(self, task: Rebuild) -> None:
        self._target = (task.round, task.parent)
        self._commands.put(task)

    def give_back(self, round: int, payload: bytes) -> None:
        self._commands.put(_GiveBack(round, payload))

    def close(self, timeout_s: float) -> bool:
        """Finish what is queued, put the state on disk, end. False if that took too long."""
        self._stop.set()
        self._commands.put(_Close())
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # The thread

    def _main(self) -> None:
        try:
            while self._perform(self._commands.get()):
                pass
        except BaseException as error:  # whatever it is, the process must hear of it
            self._reports.failed(error)

    def _perform(self, command: _Command) -> bool:
        match command:
            case StartWork():
                self._work(command)
            case Apply():
                self._apply(command)
            case Rebuild():
                self._rebuild(command)
            case _GiveBack():
                self._replica.method.give_back(command.round, command.payload)
            case _Close():
                self._save()
                return False
        return True

    def _work(self, task: StartWork) -> None:
        place = (task.round, task.parent)
        if self._target != place or (self._replica.round, self._replica.hash) != place:
            return  # the round closed before we came to it
        state = self._replica.digest()
        # Measuring the held-out loss is part of the window, or this peer would be late by it.
        end_s = time.monotonic() + self._place.window_ms / 1000
        heldout = self._trainer.heldout() if task.heldout else None
        context = RoundContext(
            self._place.run,
            task.round,
            self._place.me,
            task.seats,
            lambda: self._target != place or self._stop.is_set() or time.monotonic() >= end_s,
        )
        done = self._replica.method.work(context)
        scalars = _finite(done.loss), _finite(heldout)
        self._reports.post(WorkDone(task.round, task.parent, state, done.payload, *scalars))

    def _apply(self, task: Apply) -> None:
        if task.entry.round < self._replica.round:
            return  # a rebuild has been past it
        started = time.monotonic()
        self._replica.merge(task.entry, task.seats)
        self._reports.merged(time.monotonic() - started)
        if self._target == (self._replica.round, self._replica.hash):
            self._tell_state()  # while catching up, only the last digest is worth its time
        if time.monotonic() >= self._next_checkpoint_s:
            self._save()

    def _rebuild(self, task: Rebuild) -> None:
        replica, progress = self._replica, self._reports.progress
        replica.rebuild(
            self._disk, self._place.home, task.round, progress, from_scratch=task.from_scratch
        )
        if (replica.round, replica.hash) == (task.round, task.parent):
            self._tell_state()

    def _tell_state(self) -> None:
        replica = self._replica
        self._reports.post(Applied(replica.round, replica.hash, replica.digest()))

    def _save(self) -> None:
        """A checkpoint, and a date for the next that keeps their cost low."""
        started = time.monotonic()
        self._replica.save(self._place.home)
        now = time.monotonic()
        pause = max(self._place.checkpoint_s, _CHECKPOINT_COST * (now - started))
        self._next_checkpoint_s = now + pause


def _finite(value: float | None) -> float | None:
    """Only finite 32-bit numbers travel; anything else is unknown."""
    return value if value is not None and abs(value) < 3e38 else None
