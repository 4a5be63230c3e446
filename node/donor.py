"""Chunks on disk, for others and for ourselves: a `Blobs` port with a thread of its own.

Whoever asks for pieces gets them in turns with others, attachments before snapshots, no faster than
this machine's cap allows; what we fetch is written down as it comes.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from node.attachments import Attachments
from node.chunks import Blob, ChunkFiles
from node.snapshots import Snapshots
from protocol.codec import CHUNK_BYTES
from protocol.effects import (
    BlobKind,
    KeepBlob,
    OfferSum,
    OpenBlob,
    ServePieces,
    StorePiece,
)
from protocol.events import BlobKept, BlobOpened, Event
from protocol.ids import Hash, PeerId
from protocol.messages import Level, Message, Piece, PieceRefused

_WAITING_MAX: Final = 64  # pieces that one asker may have queued here
_ASKERS_MAX: Final = 1_024
_BUSY_MS: Final = 2_000
_BURST_S: Final = 0.1

_Job = ServePieces | OpenBlob | KeepBlob | None


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
    """Serves the chunk files of a machine, the more urgent ones first."""

    def __init__(
        self,
        attachments: Attachments,
        snapshots: Snapshots,
        send: Callable[[PeerId, Message], None],
        post: Callable[[Event], None],
        failed: Callable[[BaseException], None],
        upload_bytes_per_s: float = 0.0,
    ) -> None:
        self._attachments = attachments
        self._shelves = {
            BlobKind.ATTACHMENT: attachments.files,
            BlobKind.SNAPSHOT: snapshots.files,
        }
        self._send, self._post, self._failed = send, post, failed
        self._cap = Cap(upload_bytes_per_s)
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        # By what they ask for; of each kind, whoever has waited longest first.
        self._askers: dict[BlobKind, dict[PeerId, _Asker]] = {kind: {} for kind in self._shelves}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._main, name="donor", daemon=True)
        self.served_bytes = 0
        self.fetched_bytes = 0

    @property
    def damaged(self) -> int:
        """Chunks on disk that no longer fitted their names."""
        return sum(shelf.damaged for shelf in self._shelves.values())

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._jobs.put(None)
        self._thread.join(10.0)

    # The port, called on the driver's thread

    def offer(self, to: PeerId, root: Hash) -> None:
        offer = self._shelf(root).offer(root)
        if offer is not None:
            self._send(to, offer)

    def offer_sum(self, task: OfferSum) -> None:
        if self._attachments.has(task.message.sum):
            self._send(task.to, task.message)

    def _shelf(self, root: Hash) -> ChunkFiles:
        return self._shelves[self._kind(root)]

    def _kind(self, root: Hash) -> BlobKind:
        is_attachment = root in self._attachments.files
        return BlobKind.ATTACHMENT if is_attachment else BlobKind.SNAPSHOT

    def serve(self, task: ServePieces) -> None:
        self._jobs.put(task)

    def open(self, task: OpenBlob) -> None:
        self._jobs.put(task)

    def put(self, task: StorePiece) -> None:
        self._shelf(task.root).put(task.root, task.number, task.data)
        self.fetched_bytes += len(task.data)

    def keep(self, task: KeepBlob) -> None:
        self._jobs.put(task)

    def drop(self, root: Hash) -> None:
        self._shelves[BlobKind.SNAPSHOT].close(root)
        self._shelves[BlobKind.ATTACHMENT].discard(root)

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
                job = self._jobs.get(block=not any(self._askers.values()))
            except queue.Empty:
                return
            match job:
                case ServePieces():
                    self._queue(job)
                case OpenBlob():
                    blob = Blob(job.root, job.size, job.chunk_ids)
                    have = self._shelves[job.kind].open(blob)
                    self._post(BlobOpened(job.root, have.encode()))
                case KeepBlob():
                    is_here = self._attachments.keep(job.root, job.round)
                    self._post(BlobKept(job.root, is_here))
                case None:
                    return

    def _queue(self, task: ServePieces) -> None:
        askers = self._askers[self._kind(task.root)]
        asker = askers.get(task.to)
        if asker is None:
            if len(askers) >= _ASKERS_MAX:
                self._refuse(task, task.numbers, _BUSY_MS)
                return
            asker = askers[task.to] = _Asker()
        room = max(0, _WAITING_MAX - len(asker.waiting))
        asker.waiting.extend((task.root, task.level, number) for number in task.numbers[:room])
        if task.numbers[room:]:
            self._refuse(task, task.numbers[room:], _BUSY_MS)

    def _refuse(self, task: ServePieces, numbers: tuple[int, ...], wait_ms: int) -> None:
        self._send(task.to, PieceRefused(task.root, task.level, numbers, wait_ms))

    def _serve_one(self) -> None:
        """One piece for whoever has waited longest since its last."""
        askers = next((waiting for waiting in self._askers.values() if waiting), None)
        if askers is None:
            return
        to = next(iter(askers))
        asker = askers.pop(to)
        root, level, number = asker.waiting.popleft()
        if asker.waiting:
            askers[to] = asker
        data = self._shelf(root).read(root, level, number)
        if data is None:
            self._send(to, PieceRefused(root, level, (number,), 0))
            return
        self._stop.wait(self._cap.wait_s(len(data)))
        self.served_bytes += len(data)
        self._send(to, Piece(root, level, number, data))


assert _WAITING_MAX * CHUNK_BYTES <= 16 << 20, "what one asker can make us hold"
