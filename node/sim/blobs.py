"""Blobs on simulated disks: stand-ins for snapshots and attachments, of any size, served without
delay.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from node.ports import Disk
from protocol.blobs import Bits, chunk_count, chunk_id, chunk_length, page_id, pages_of, root_of
from protocol.effects import (
    BlobKind,
    KeepBlob,
    OfferSum,
    OpenBlob,
    ServePieces,
    StorePiece,
)
from protocol.events import BlobKept, BlobOpened, Event
from protocol.ids import ID_BYTES, Hash, PeerId, digest
from protocol.ledger import Write, round_key
from protocol.messages import BlobOffer, Level, Message, Piece, PieceRefused

STATE_BYTES = 8


@dataclass(slots=True)
class SimBlob:
    size: int
    chunk_ids: bytes
    chunks: dict[int, bytes] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        return len(self.chunks) == chunk_count(self.size)

    def have(self) -> bytes:
        bits = Bits(chunk_count(self.size))
        for number in self.chunks:
            bits.add(number)
        return bits.encode()


def blob_of(state: int, size: int) -> tuple[Hash, SimBlob]:
    """A snapshot of `state`, of `size` bytes; its first 8 are the state itself."""
    first = state.to_bytes(STATE_BYTES, "big")
    chunks: dict[int, bytes] = {}
    for number in range(chunk_count(size)):
        seed = digest("stub chunk", first, number.to_bytes(4, "big"))
        length = chunk_length(size, number)
        chunks[number] = (first + seed * (length // len(seed) + 1))[:length]
    names = b"".join(map(chunk_id, chunks.values()))
    return root_of(size, names), SimBlob(size, names, chunks)


def keep_attachment(disk: Disk, root: Hash, round: int) -> None:
    """For as long as `round` may be replayed."""
    known = disk.get("attachments", root) or bytes(8)
    disk.commit([Write("attachments", root, max(known, round_key(round)))])


class SimBlobs:
    """A `Blobs` port over the blobs of one machine's disk."""

    def __init__(
        self,
        disk: dict[Hash, SimBlob],
        records: Disk,
        send: Callable[[bytes, Message], None],
        later: Callable[[float, Event], None],
    ) -> None:
        self._disk, self._records, self._send, self._later = disk, records, send, later
        self._attachments: set[Hash] = set()  # that are being fetched

    def offer(self, to: PeerId, root: Hash) -> None:
        blob = self._disk.get(root)
        if blob is not None:
            pages = tuple(map(page_id, pages_of(blob.chunk_ids)))
            have = None if blob.is_whole else blob.have()
            self._send(to, BlobOffer(root, blob.size, pages, have))

    def offer_sum(self, task: OfferSum) -> None:
        blob = self._disk.get(task.message.sum.root)
        if blob is not None and blob.is_whole:
            self._send(task.to, task.message)

    def serve(self, task: ServePieces) -> None:
        blob, lacking = self._disk.get(task.root), []
        for number in task.numbers:
            data = None if blob is None else self._read(blob, task.level, number)
            if data is None:
                lacking.append(number)
            else:
                self._send(task.to, Piece(task.root, task.level, number, data))
        if lacking:
            self._send(task.to, PieceRefused(task.root, task.level, tuple(lacking), 0))

    @staticmethod
    def _read(blob: SimBlob, level: Level, number: int) -> bytes | None:
        if level is Level.CHUNK:
            return blob.chunks.get(number)
        pages = pages_of(blob.chunk_ids)
        return pages[number] if number < len(pages) else None

    def open(self, task: OpenBlob) -> None:
        assert len(task.chunk_ids) == chunk_count(task.size) * ID_BYTES
        blob = self._disk.setdefault(task.root, SimBlob(task.size, task.chunk_ids))
        if task.kind is BlobKind.ATTACHMENT and not blob.is_whole:
            self._attachments.add(task.root)
        self._later(0.0, BlobOpened(task.root, blob.have()))

    def put(self, task: StorePiece) -> None:
        self._disk[task.root].chunks[task.number] = task.data

    def keep(self, task: KeepBlob) -> None:
        blob = self._disk.get(task.root)
        is_here = blob is not None and blob.is_whole
        if is_here:
            self._attachments.discard(task.root)
            keep_attachment(self._records, task.root, task.round)
        self._later(0.0, BlobKept(task.root, is_here))

    def drop(self, root: Hash) -> None:
        """What is there of a snapshot stays, as on a real disk, until it is collected."""
        if root in self._attachments:
            self._attachments.discard(root)
            del self._disk[root]
