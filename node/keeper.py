"""Looks after the replicated state beside the trainer: snapshots, checks, and chunks for whoever
has damaged ones.

A thread of its own reads while training goes on (`guard`), so nobody waits for a disk or a hash.
"""

import os
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from node.guard import StateGuard
from node.replica import Place, Replica
from node.snapshots import Snapshots
from node.store import StoreError
from protocol.blobs import chunk_id
from protocol.codec import MENDED_MAX
from protocol.effects import Note, ServeMend, TakeChecks
from protocol.events import ChecksTaken, Event
from protocol.ids import PeerId
from protocol.mending import CHECK_BYTES
from protocol.messages import Mend, Message

if TYPE_CHECKING:
    from node.stream import StateStream

_SOON_S: Final = 0.05  # how often a place that the state has not reached yet is looked for
_SOON_MAX: Final = 100
# A file that is forced onto the disk in one go makes every other writer wait, and the round's
# records are among them.
_SYNC_CHUNKS: Final = 32


@dataclass(slots=True)
class _Taking:
    """A snapshot under way: what a merge must save of it before it writes."""

    place: Place
    stream: "StateStream"
    done: int = 0  # bytes that are on disk
    rest: bytes | None = None  # what follows them, once the state has moved on

    def save_rest(self) -> None:
        self.rest = self.stream.read(self.done, self.stream.size)


@dataclass(frozen=True, slots=True)
class _Close:
    pass


@dataclass(slots=True)
class _Mend:
    task: ServeMend
    looks: int = 0


@dataclass(slots=True)
class StateKeeper:
    replica: Replica
    snapshots: Snapshots
    post: Callable[[Event], None]
    send: Callable[[PeerId, Message], None]
    note: Callable[[Note], None]
    failed: Callable[[BaseException], None]
    _jobs: "queue.SimpleQueue[_Taking | TakeChecks | _Mend | _Close]" = field(
        default_factory=queue.SimpleQueue
    )
    _taking: _Taking | None = None
    _thread: threading.Thread | None = None

    @property
    def _guard(self) -> StateGuard:
        return self.replica.guard

    def start(self) -> None:
        self._thread = threading.Thread(target=self._main, name="state-keeper", daemon=True)
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        self._jobs.put(_Close())
        if self._thread is not None:
            self._thread.join(timeout_s)

    def take_snapshot(self) -> bool:
        """Of the state as it stands now, in the background. Called by the trainer, between two
        merges. False when the one before is not done yet.
        """
        if self._taking is not None:
            return False
        if self.snapshots.find(*self.replica.place) is not None:
            return True
        taking = _Taking(self.replica.place, self.replica.stream())
        self._taking = taking
        self._guard.watch(taking.save_rest)
        self._jobs.put(taking)
        return True

    def take_checks(self, task: TakeChecks) -> None:
        self._jobs.put(task)

    def serve_mend(self, task: ServeMend) -> None:
        self._jobs.put(_Mend(task))

    # The thread

    def _main(self) -> None:
        try:
            while True:
                job = self._jobs.get()
                match job:
                    case _Taking():
                        self._snapshot(job)
                    case TakeChecks():
                        self._checks(job)
                    case _Mend():
                        self._mend(job)
                    case _Close():
                        return
        except BaseException as error:  # whatever it is, the process must hear of it
            self.failed(error)

    def _snapshot(self, taking: _Taking) -> None:
        round, entry = taking.place
        path = self.snapshots.files.partial_path(f"taking-{round}")
        names: list[bytes] = []
        stream = taking.stream
        try:
            with path.open("wb") as file:
                for number in range(stream.chunks):
                    data = self._next_chunk(taking, number)
                    file.write(data)
                    names.append(chunk_id(data))
                    if number % _SYNC_CHUNKS == 0:
                        file.flush()
                        os.fdatasync(file.fileno())
            self.snapshots.add(path, round, entry, stream.size, b"".join(names))
        except (OSError, StoreError) as error:
            # Training can do without; a start from here will replay more.
            self.note(Note("warning", "snapshot-failed", {"round": round, "error": str(error)}))
            path.unlink(missing_ok=True)
        finally:
            self._guard.watch(None)
            self._taking = None

    def _next_chunk(self, taking: _Taking, number: int) -> bytes:
        stream = taking.stream
        with self._guard.reading():
            if taking.rest is None:
                data = stream.chunk(number)
                taking.done += len(data)
                return data
        start = len(taking.rest) - (stream.size - taking.done)
        data = taking.rest[start : start + stream.length(number)]
        taking.done += len(data)
        return data

    def _checks(self, task: TakeChecks) -> None:
        checks = self._read_checks((task.round, task.parent))
        if checks is not None:
            self.post(ChecksTaken(task.round, task.parent, checks))

    def _read_checks(self, place: Place) -> bytes | None:
        """None if the state does not stand there all the while."""
        with self._guard.reading() as version:
            if self.replica.place != place:
                return None
            stream = self.replica.stream()
        found = []
        for number in range(stream.chunks):
            with self._guard.reading() as now:
                if now != version:
                    return None
                data = stream.chunk(number)
            found.append(chunk_id(data)[:CHECK_BYTES])
        return b"".join(found)

    def _mend(self, job: _Mend) -> None:
        """Answer once the state stands where the asker's does, if that is soon."""
        task, place = job.task, (job.task.round, job.task.parent)
        if self.replica.round < task.round and job.looks < _SOON_MAX:
            job.looks += 1
            timer = threading.Timer(_SOON_S, self._jobs.put, (job,))
            timer.daemon = True
            timer.start()
            return
        ours = self._read_checks(place)
        if ours is None or len(ours) != len(task.checks):
            return
        count = len(ours) // CHECK_BYTES
        differing = [n for n in range(count) if _check(ours, n) != _check(task.checks, n)]
        chunks: list[tuple[int, bytes]] = []
        with self._guard.reading():
            if self.replica.place != place:
                return
            stream = self.replica.stream()
            chunks = [(number, stream.chunk(number)) for number in differing[:MENDED_MAX]]
        self.send(task.to, Mend(*place, len(differing), tuple(chunks)))


def _check(checks: bytes, number: int) -> bytes:
    return checks[number * CHECK_BYTES : (number + 1) * CHECK_BYTES]
