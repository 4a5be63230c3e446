"""Chunks on disk, for others and for ourselves: a `Blobs` port with a thread of its own.

Whoever asks for pieces gets them in turns with others, no faster than this machine's cap allows;
what we fetch is written down as it comes.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from node.snapshots import Snapshots
from protocol.codec import CHUNK_BYTES
from protocol.events import BlobOpened, Event, OpenBlob, ServePieces, StorePiece
from protocol.ids import Hash, PeerId
from protocol.messages import Level, Message, Piece, PieceRefused

_WAITING_MAX: Final = 64  # pieces that one asker may have queued here
_ASKERS_MAX: Final = 1_024
_BUSY_MS: Final = 2_000
_BURST_S: Final = 0.1

_Job = ServePieces | OpenBlob | None


@dataclass(slots=True)
class Cap:
    """A token bucket in bytes: so many a second (0: no limit)."""

    bytes_per_s: float
    clock: Callable[[], float] = time.monotonic
    _free_at: float = 0.0

    def wait_s(self, size: int) -> float:
        """Books `size` bytes; how long to wait before they may go."""
        if not self.bytes_per_s:
            return 0.0
        now = self.clock()
        self._free_at = max(self._free_at, now - _BURST_S)
        wait = max(0.0, self._free_at - now)
        self._free_at += size / self.bytes_per_s
        return wait


@dataclass(slots=True)
class _Asker:
    waiting: deque[tuple[Hash, Level, int]] = field(default_factory=deque)


class Donor:
    def __init__(
        self,
        snapshots: Snapshots,
        send: Callable[[PeerId, Message], None],
        post: Callable[[Event], None],
        failed: Callable[[BaseException], None],
        upload_bytes_per_s: float = 0.0,
    ) -> None:
        self._snapshots, self._send, self._post, self._failed = snapshots, send, post, failed
        self._cap = Cap(upload_bytes_per_s)
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._askers: dict[PeerId, _Asker] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._main, name="donor", daemon=True)
        self.served_bytes = 0
        self.fetched_bytes = 0

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._jobs.put(None)
        self._thread.join(10.0)

    # The port, called on the driver's thread

    def offer(self, to: PeerId, root: Hash) -> None:
        offer = self._snapshots.offer(root)
        if offer is not None:
            self._send(to, offer)

    def serve(self, task: ServePieces) -> None:
        self._jobs.put(task)

    def open(self, task: OpenBlob) -> None:
        self._jobs.put(task)

    def put(self, task: StorePiece) -> None:
        self._snapshots.put(task.root, task.number, task.data)
        self.fetched_bytes += len(task.data)

    def drop(self, root: Hash) -> None:
        self._snapshots.close(root)

    # The thread

    def _main(self) -> None:
        try:
            while not self._stop.is_set():
                self._take_jobs()
                self._serve_one()
        except BaseException as error:  # whatever it is, the process must hear of it
            self._failed(error)

    def _take_jobs(self) -> None:
        """Everything that was asked for; waits only if there is nothing to send."""
        while not self._stop.is_set():
            try:
                job = self._jobs.get(block=not self._askers)
            except queue.Empty:
                return
            match job:
                case ServePieces():
                    self._queue(job)
                case OpenBlob():
                    have = self._snapshots.open(job.root, job.size, job.chunk_ids)
                    self._post(BlobOpened(job.root, have.encode()))
                case None:
                    return

    def _queue(self, task: ServePieces) -> None:
        asker = self._askers.get(task.to)
        if asker is None:
            if len(self._askers) >= _ASKERS_MAX:
                self._refuse(task, task.numbers, _BUSY_MS)
                return
            asker = self._askers[task.to] = _Asker()
        room = max(0, _WAITING_MAX - len(asker.waiting))
        asker.waiting.extend((task.root, task.level, number) for number in task.numbers[:room])
        if task.numbers[room:]:
            self._refuse(task, task.numbers[room:], _BUSY_MS)

    def _refuse(self, task: ServePieces, numbers: tuple[int, ...], wait_ms: int) -> None:
        self._send(task.to, PieceRefused(task.root, task.level, numbers, wait_ms))

    def _serve_one(self) -> None:
        """One piece for whoever has waited longest since its last."""
        if not self._askers:
            return
        to = next(iter(self._askers))
        asker = self._askers.pop(to)
        root, level, number = asker.waiting.popleft()
        if asker.waiting:
            self._askers[to] = asker
        data = self._snapshots.read(root, level, number)
        if data is None:
            self._send(to, PieceRefused(root, level, (number,), 0))
            return
        self._stop.wait(self._cap.wait_s(len(data)))
        self.served_bytes += len(data)
        self._send(to, Piece(root, level, number, data))


assert _WAITING_MAX * CHUNK_BYTES <= 16 << 20, "what one asker can make us hold"
