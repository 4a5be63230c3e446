"""Snapshots on disk: the replicated state at some rounds, each one safetensors file.

Which round a file is of, and its chunks' names, are in the store, written after the file is safe.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgpack
from safetensors import SafetensorError, safe_open

from node.chunks import Blob, ChunkFiles, sound_chunks
from node.ports import Disk
from protocol.blobs import root_of
from protocol.ids import Hash
from protocol.ledger import Write
from protocol.restore import Reader

if TYPE_CHECKING:
    from torch import Tensor

KEPT: Final = 2
_LEASE_S: Final = 60.0  # a snapshot that somebody is fetching is not collected
_LEASED_MAX: Final = 1  # beside those that are kept anyway
# Who comes to a run of very short rounds asks for what the ledger named a moment ago. Small ones: a
# large model takes longer for a period.
_RECENT_S: Final = 10.0
_RECENT_MAX: Final = 32
_RECENT_BYTES: Final = 32 << 20
# And the newest of all, one that the ledger names, and one being written.
ON_DISK_MAX: Final = KEPT + _LEASED_MAX + 3  # beside the recent ones
_FOLDER, _SUFFIX = "snapshots", ".safetensors"


def bytes_max(one: int) -> int:
    """On the disk at once, when one has so many."""
    return (ON_DISK_MAX + _recent_max(one)) * one


def _recent_max(one: int) -> int:
    return min(_RECENT_MAX, _RECENT_BYTES // one)


@dataclass(frozen=True, slots=True)
class Record:
    """One snapshot that is whole."""

    round: int
    entry: bytes  # before the round
    blob: Blob

    @property
    def root(self) -> Hash:
        return self.blob.root


class Snapshots:
    """Safe to call from several threads."""

    def __init__(self, home: Path, disk: Disk, every: int) -> None:
        """`every`: rounds between two that all peers take."""
        self._disk, self._every = disk, every
        self._leases: dict[Hash, float] = {}
        self._established: Hash | None = None
        self._replaced: dict[Hash, float] = {}  # when a newer one was established, oldest first
        records = _records(disk)
        blobs = (record.blob for record in records)
        self.files = ChunkFiles(home / _FOLDER, _SUFFIX, blobs, self._lease)
        here = (record for record in records if self.files.whole(record.root))
        self._records = {record.root: record for record in here}
        self._lock = self.files.lock

    def _lease(self, root: Hash) -> None:
        self._leases[root] = time.monotonic()

    # Reading

    def rounds(self) -> list[int]:
        return [record.round for record in reversed(self.newest())]

    def find(self, round: int, entry: bytes) -> Record | None:
        """The snapshot of that place on a chain."""
        with self._lock:
            for record in self._records.values():
                if record.round == round and record.entry == entry:
                    return record
        return None

    def newest(self) -> list[Record]:
        """Newest first."""
        with self._lock:
            return _by_age(self._records.values())

    def load(self, record: Record) -> "dict[str, Tensor] | None":
        """The tensors of a snapshot, each byte checked; None if the file is damaged, and then what
        is sound of it stays as if it had been fetched so far.
        """
        found = _load(self.files.path(record.root), record)
        if found is None:
            self.files.damaged += 1
            self.drop(record.root)
        return found

    # Taking and fetching

    def add(self, path: Path, round: int, entry: bytes, size: int, chunk_ids: bytes) -> Record:
        """A whole file at `path` becomes a snapshot. Raises StoreError."""
        blob = self.files.place(path, Blob(root_of(size, chunk_ids), size, chunk_ids))
        return self._keep(Record(round, entry, blob))

    def finish(self, root: Hash, round: int, entry: bytes) -> Record | None:
        """All chunks came: from now on it is a snapshot like our own. None if they are gone again.
        Raises StoreError.
        """
        known = self._records.get(root)
        if known is not None:
            return known
        blob = self.files.finish(root)
        return None if blob is None else self._keep(Record(round, entry, blob))

    def _keep(self, record: Record) -> Record:
        with self._lock:
            self._disk.commit([Write("snapshots", record.root, _encode(record))])
            self._records[record.root] = record
            self._collect()
        return record

    # Room

    def drop(self, root: Hash) -> None:
        """It is not what the ledger says, or is damaged."""
        with self._lock:
            if self._records.pop(root, None) is not None:
                self._replaced.pop(root, None)
                self._disk.commit([Write("snapshots", root, None)])
                self.files.spoil(root)

    def establish(self, root: Hash) -> int:
        """The ledger names this one. Returns the first round that somebody may still have to
        replay: that of the newest one here which the ledger names, or named lately; or 0.
        """
        with self._lock:
            now = time.monotonic()
            if root in self._records:
                before, self._established = self._established, root
                if before is not None and before != root and before in self._records:
                    self._replaced.pop(before, None)  # it goes to the end
                    self._replaced[before] = now
            record = self._records.get(self._established or root)
            if record is None:
                return 0
            return min(one.round for one in [record, *self._recent(now)])

    def _recent(self, now: float) -> list[Record]:
        """Those that a newer one replaced so lately that somebody may be about to ask for them."""
        newest = reversed(self._replaced.items())
        found = [self._records[root] for root, at in newest if now - at < _RECENT_S]
        return [one for place, one in enumerate(found) if place < _recent_max(one.blob.size)]

    def _collect(self) -> None:
        """The newest that others have too stay, one that somebody is fetching, the one that the
        ledger names, because whoever is behind needs it, with those that it named lately, and the
        newest of all, to start from.
        """
        now = time.monotonic()
        records = self.newest()
        common = [record for record in records if record.round % self._every == 0]
        leased = [
            record
            for record in common[KEPT:]
            if now - self._leases.get(record.root, -_LEASE_S) < _LEASE_S
        ]
        stay = {r.root for r in [*records[:1], *common[:KEPT], *leased[:_LEASED_MAX]]}
        stay |= {self._established} if self._established else set()
        stay |= {record.root for record in self._recent(now)}
        old = [record.root for record in records if record.root not in stay]
        if old:
            self._disk.commit([Write("snapshots", root, None) for root in old])
        for root in old:
            del self._records[root]
            self._leases.pop(root, None)
            self._replaced.pop(root, None)
            self.files.remove(root)


class SnapshotReader:
    """Another process's snapshots, to look at."""

    def __init__(self, home: Path, disk: Reader) -> None:
        self._folder, self._records = home / _FOLDER, _records(disk)

    def newest(self) -> list[Record]:
        return _by_age(self._records)

    def load(self, record: Record) -> "dict[str, Tensor] | None":
        return _load(self._folder / f"{record.root.hex()}{_SUFFIX}", record)


def _by_age(records: Iterable[Record]) -> list[Record]:
    return sorted(records, key=lambda record: record.round, reverse=True)


def _load(path: Path, record: Record) -> "dict[str, Tensor] | None":
    """None unless every chunk fits its name, and the file is of the record's place."""
    if sound_chunks(path, record.blob).total() < record.blob.chunks:
        return None
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            told = file.metadata() or {}
            if (told.get("round"), told.get("entry")) != (str(record.round), record.entry.hex()):
                return None  # of another place, or of a chain that is no longer ours
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None


def _records(disk: Reader) -> list[Record]:
    found = (_decode(Hash(key), raw) for key, raw in disk.scan("snapshots"))
    return [record for record in found if record is not None]


def _encode(record: Record) -> bytes:
    fields = [record.round, record.entry, record.blob.size, record.blob.chunk_ids]
    return bytes(msgpack.packb(fields))


def _decode(root: Hash, raw: bytes) -> Record | None:
    """None for what a failing disk made of it."""
    try:
        round, entry, size, chunk_ids = msgpack.unpackb(raw)
    except (ValueError, TypeError, msgpack.UnpackException):
        return None
    if root_of(size, chunk_ids) != root:
        return None
    return Record(round, entry, Blob(root, size, chunk_ids))
