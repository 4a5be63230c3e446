"""The trainer's thread: it owns the replicated state, and does what the protocol wishes, in order.

Work is interrupted as soon as an entry for its round is at hand, so a slow peer keeps pace with the ledger. The state
is put on disk now and then; after a start or a switch of chains it is brought to the ledger's head from the newest
file that is on the chain, or from the very beginning.
"""

import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torch import Tensor

from node import checkpoints
from node.methods.base import Contribution, Method, RoundContext
from node.ports import Disk
from protocol.codec import decode
from protocol.entries import Entry
from protocol.events import Applied, Apply, Event, Rebuild, StartWork, WorkDone
from protocol.ids import Hash, PeerId, RunId, digest
from protocol.ledger import round_key
from protocol.messages import Contribute
from protocol.restore import entry_at
from protocol.roster import Roster

SETTLED_ROUNDS: Final = 64  # how far back own work is looked up; older is too late to be offered
_CHECKPOINT_COST: Final = 20  # time between checkpoints is at least this many times what one takes
_TELL_MS: Final = 500


@dataclass(frozen=True, slots=True)
class Trainer:
    """What the thread works with."""

    method: Method
    heldout: Callable[[], float]
    initial_state: Callable[[], Mapping[str, Tensor]]  # made anew: the state before round 0


@dataclass(frozen=True, slots=True)
class _GiveBack:
    round: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class _Close:
    pass


Progress = Callable[[str, int, int], None]  # what, done, total


class TrainingWorker:
    """A `Worker` port. `post` is called on this object's thread."""

    def __init__(
        self,
        trainer: Trainer,
        run: RunId,
        me: PeerId,
        window_ms: int,
        disk: Disk,
        home: Path,
        checkpoint_s: float,
        post: Callable[[Event], None],
        failed: Callable[[BaseException], None],
        progress: Progress,
        founders: tuple[PeerId, ...],
    ) -> None:
        self._trainer, self._method = trainer, trainer.method
        self._run, self._me, self._window_s = run, me, window_ms / 1000
        self._disk, self._home = disk, home
        self._post, self._failed, self._progress = post, failed, progress
        self._founders = founders
        self._round, self._hash = 0, Hash(run)
        self._commands: queue.SimpleQueue[StartWork | Apply | Rebuild | _GiveBack | _Close] = (
            queue.SimpleQueue()
        )
        self._interrupt = threading.Event()
        self._newest = 0  # the round that is open once all that is queued is done
        self._checkpoint_s = checkpoint_s
        self._next_checkpoint_s = time.monotonic() + checkpoint_s
        self._thread = threading.Thread(target=self._main, name="trainer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    # The port, called on the driver's thread

    def start_work(self, task: StartWork) -> None:
        self._newest = task.round
        self._interrupt.clear()
        self._commands.put(task)

    def stop_work(self) -> None:
        self._interrupt.set()

    def apply(self, task: Apply) -> None:
        self._newest = task.entry.round + 1
        self._interrupt.set()
        self._commands.put(task)

    def rebuild(self, task: Rebuild) -> None:
        self._newest = task.round
        self._interrupt.set()
        self._commands.put(task)

    def give_back(self, round: int, payload: bytes) -> None:
        self._commands.put(_GiveBack(round, payload))

    def close(self, timeout_s: float) -> bool:
        """Finish what is queued, put the state on disk, end. False if that took too long."""
        self._interrupt.set()
        self._commands.put(_Close())
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # The thread

    def _main(self) -> None:
        try:
            while True:
                command = self._commands.get()
                match command:
                    case StartWork():
                        self._work(command)
                    case Apply():
                        self._apply(command)
                    case Rebuild():
                        self._rebuild(command)
                    case _GiveBack():
                        self._method.give_back(command.round, command.payload)
                    case _Close():
                        self._save()
                        return
        except BaseException as error:  # whatever it is, the process must hear of it
            self._failed(error)

    def _work(self, task: StartWork) -> None:
        if task.round != self._newest or task.parent != self._hash:
            return  # the round closed before we came to it
        state = self._state()
        end_s = time.monotonic() + self._window_s
        heldout = self._trainer.heldout() if task.heldout else None
        context = RoundContext(
            self._run,
            task.round,
            self._me,
            task.seats,
            lambda: self._interrupt.is_set() or time.monotonic() >= end_s,
        )
        result = self._method.work(context)
        done = WorkDone(
            task.round, task.parent, state, result.payload, _finite(result.loss), _finite(heldout)
        )
        self._post(done)

    def _apply(self, task: Apply) -> None:
        if task.entry.round < self._round:
            return  # a rebuild has been past it
        self._merge(task.entry, task.seats)
        self._tell_state()
        if time.monotonic() >= self._next_checkpoint_s:
            self._save()

    def _merge(self, entry: Entry, seats: tuple[PeerId, ...]) -> None:
        assert entry.body.parent == self._hash, "entries are applied in the ledger's order"
        context = RoundContext(self._run, entry.round, self._me, seats, lambda: False)
        lines = [Contribution(seats[line.seat], line.payload) for line in entry.body.lines]
        self._method.merge(context, lines)
        self._round, self._hash = entry.round + 1, entry.hash

    def _state(self) -> int:
        return self._method.state_digest(state_key(self._run, self._round, self._hash))

    def _tell_state(self) -> None:
        self._post(Applied(self._round, self._hash, self._state()))

    def _save(self) -> None:
        """A checkpoint, and a date for the next that keeps their cost low."""
        started = time.monotonic()
        state = self._method.replicated_state()
        checkpoints.save(self._home, self._round, self._hash, state, {"run": self._run.hex()})
        now = time.monotonic()
        self._next_checkpoint_s = now + max(self._checkpoint_s, _CHECKPOINT_COST * (now - started))

    # Rebuilding

    def _rebuild(self, task: Rebuild) -> None:
        if task.from_scratch or not self._stands_on_chain(task.round):
            self._go_back(task)
        first, told = self._round, time.monotonic()
        seats = self._seats_at(self._round) if self._round < task.round else None
        while self._round < task.round:
            entry = entry_at(self._disk, self._round)
            if entry is None or seats is None:
                return  # the chain moved under us; another rebuild is queued
            self._merge(entry, seats.members)
            seats = seats.after(entry.body)
            if time.monotonic() - told > _TELL_MS / 1000:
                told = time.monotonic()
                self._progress("replaying", self._round - first, task.round - first)
        if self._hash == task.parent:
            self._tell_state()

    def _stands_on_chain(self, round_max: int) -> bool:
        if self._round > round_max:
            return False
        return self._round == 0 or self._chain_has(self._round, self._hash)

    def _chain_has(self, round: int, name: bytes) -> bool:
        """Is the entry before `round` the one of this name?"""
        return self._disk.get("chain", round_key(round - 1)) == name

    def _go_back(self, task: Rebuild) -> None:
        """To the newest checkpoint on the chain, or to the beginning."""
        for round in (
            [] if task.from_scratch else sorted(checkpoints.rounds(self._home), reverse=True)
        ):
            if not 0 < round <= task.round:
                continue
            found = checkpoints.load(self._home, round)
            if found is not None and self._chain_has(round, found.entry_hash):
                self._method.load_replicated_state(found.tensors)
                self._round, self._hash = round, Hash(found.entry_hash)
                self._settle()
                return
        self._method.load_replicated_state(self._trainer.initial_state())
        self._round, self._hash = 0, Hash(self._run)

    def _settle(self) -> None:
        """Tell the method which of our recent work is part of the state that was loaded."""
        first = max(0, self._round - SETTLED_ROUNDS)
        for key, raw in self._disk.scan("outbox", round_key(first)):
            round = int.from_bytes(key, "big")
            message = decode(raw)
            assert isinstance(message, Contribute)
            entry = entry_at(self._disk, round) if round < self._round else None
            if entry is not None and any(
                line.payload == message.payload for line in entry.body.lines
            ):
                self._method.settled(round, message.payload)

    def _seats_at(self, round: int) -> Roster | None:
        """The roster of a round: from the nearest mark before it, and the entries since."""
        roster, start = Roster(self._founders), 0
        for key, raw in self._disk.scan("marks"):
            at = int.from_bytes(key, "big")
            if start < at <= round:
                names = decode_roster_name(raw)
                kept = self._disk.get("rosters", names)
                if kept is not None:
                    roster, start = Roster.decode(kept), at
                elif names == Roster(self._founders).hash:
                    roster, start = Roster(self._founders), at
        for between in range(start, round):
            entry = entry_at(self._disk, between)
            if entry is None:
                return None
            roster = roster.after(entry.body)
        return roster


def decode_roster_name(mark: bytes) -> bytes:
    return mark[40:72]


def state_key(run: RunId, round: int, parent: Hash) -> int:
    """The key of a state digest: nobody can know it before the entry before is closed."""
    return int.from_bytes(digest("state", run, round.to_bytes(8, "big"), parent)[:8], "big")


def _finite(value: float | None) -> float | None:
    """Only finite 32-bit numbers travel; anything else is unknown."""
    return value if value is not None and abs(value) < 3e38 else None
