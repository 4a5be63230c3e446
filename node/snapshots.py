"""Snapshots on disk, and blobs that are being fetched: files of chunks, each chunk known by name.

One file a snapshot, a safetensors file; its chunks' names are in the store, written after the file
is safe. What a failing disk changed is noticed when a chunk is read, because its name no longer
fits. A fetch that was cut off is a file with holes: the chunks in it that fit their names are kept.
"""

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgpack
from safetensors import SafetensorError, safe_open
from torch import Tensor

from node.durable import sync
from node.ports import Disk
from node.store import StoreError, StoreFull
from protocol.blobs import Bits, chunk_count, chunk_id, chunk_length, page_id, pages_of, root_of
from protocol.codec import CHUNK_BYTES, MAP_BYTES_MAX
from protocol.ids import ID_BYTES, Hash
from protocol.ledger import Write
from protocol.messages import BlobOffer, Level
from protocol.restore import Reader

KEPT: Final = 2
_LEASE_S: Final = 60.0  # a snapshot that somebody is fetching is not collected
_LEASED_MAX: Final = 1  # beside those that are kept anyway
ON_DISK_MAX: Final = KEPT + _LEASED_MAX + 2  # and the newest of all, and one being written
_PARTIAL_KEPT_S: Final = 86_400.0
_PARTIAL: Final = ".part"


@dataclass(frozen=True, slots=True)
class Record:
    """One blob of which the disk has all, or (no round) some."""

    root: Hash
    round: int | None
    entry: bytes  # before the round
    size: int
    chunk_ids: bytes

    def name(self, number: int) -> bytes:
        return self.chunk_ids[number * ID_BYTES : (number + 1) * ID_BYTES]


class Snapshots:
    """Safe to call from several threads."""

    def __init__(self, home: Path, disk: Disk, every: int) -> None:
        """`every`: rounds between two that all peers take."""
        self._folder, self._disk, self._every = home / "snapshots", disk, every
        self._lock = threading.RLock()
        self._records: dict[Hash, Record] = {}
        self._partial: dict[Hash, tuple[Record, Bits]] = {}
        self._leases: dict[Hash, float] = {}
        self.damaged = 0  # chunks that no longer fitted their names
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for key, raw in disk.scan("snapshots"):
            record = _decode(Hash(key), raw)
            if record is not None and self._path(record.root).is_file():
                self._records[record.root] = record
        self._sweep()

    # Reading

    def rounds(self) -> list[int]:
        with self._lock:
            return sorted(r.round for r in self._records.values() if r.round is not None)

    def find(self, round: int, entry: bytes) -> Record | None:
        """The snapshot of that place on a chain."""
        with self._lock:
            for record in self._records.values():
                if record.round == round and record.entry == entry:
                    return record
        return None

    def newest(self) -> list[Record]:
        """Whole ones, newest first."""
        with self._lock:
            found = [record for record in self._records.values() if record.round is not None]
        return sorted(found, key=lambda record: record.round or 0, reverse=True)

    def load(self, record: Record) -> dict[str, Tensor] | None:
        """The tensors of a snapshot, each byte checked; None if the file is damaged, and then what
        is sound of it stays as if it had been fetched so far.
        """
        found = _load(self._path(record.root), record)
        if found is None:
            self.damaged += 1
            self.drop(record.root)
        return found

    # Others fetch from us

    def offer(self, root: Hash) -> BlobOffer | None:
        with self._lock:
            record = self._records.get(root)
            have = None
            if record is None:
                if root not in self._partial:
                    return None
                record, bits = self._partial[root]
                have = bits.encode()
                if len(have) > MAP_BYTES_MAX:
                    return None  # once it is whole
            pages = tuple(map(page_id, pages_of(record.chunk_ids)))
            return BlobOffer(root, record.size, pages, have)

    def read(self, root: Hash, level: Level, number: int) -> bytes | None:
        """A piece, if it is here and sound."""
        with self._lock:
            record = self._records.get(root)
            if record is not None:
                self._leases[root] = time.monotonic()
            elif root in self._partial:
                record = self._partial[root][0]
            if record is None:
                return None
            if level is Level.PAGE:
                pages = pages_of(record.chunk_ids)
                return pages[number] if number < len(pages) else None
            if number >= chunk_count(record.size):
                return None
            path = self._path(root)
        return self._read_chunk(path, record, number)

    def _read_chunk(self, path: Path, record: Record, number: int) -> bytes | None:
        for candidate in (path, path.with_suffix(_PARTIAL)):
            try:
                with candidate.open("rb") as file:
                    file.seek(number * CHUNK_BYTES)
                    data = file.read(chunk_length(record.size, number))
            except OSError:
                continue
            if chunk_id(data) == record.name(number):
                return data
            if candidate == path:
                self.damaged += 1
        return None

    # We fetch

    def open(self, root: Hash, size: int, chunk_ids: bytes) -> Bits:
        """Make room for a blob; returns which chunks of it are here. Raises StoreFull."""
        with self._lock:
            if root in self._partial:
                return self._partial[root][1]
            record = Record(root, None, b"", size, chunk_ids)
            if root in self._records:  # we came to that round ourselves in the meantime
                return Bits.full(chunk_count(size))
            path = self._path(root).with_suffix(_PARTIAL)
            have = _sound_chunks(path, record)
            try:
                with path.open("ab") as file:
                    file.truncate(size)
            except OSError as error:
                raise _explained(error, path) from error
            self._partial[root] = record, have
            return have

    def put(self, root: Hash, number: int, data: bytes) -> None:
        """Write one chunk whose name was checked. Raises StoreFull."""
        with self._lock:
            if root not in self._partial:
                return
            path = self._path(root).with_suffix(_PARTIAL)
            try:
                with path.open("r+b") as file:
                    file.seek(number * CHUNK_BYTES)
                    file.write(data)
            except OSError as error:
                raise _explained(error, path) from error
            self._partial[root][1].add(number)

    def close(self, root: Hash) -> None:
        """No more will come for now; the file stays for a day, to go on with."""
        with self._lock:
            self._partial.pop(root, None)

    def partial_bytes(self, root: Hash) -> int:
        """On disk of an unfinished blob, at most."""
        with self._lock:
            known = self._partial.get(root)
            if known is not None:
                return known[1].total() * CHUNK_BYTES
        path = self._path(root).with_suffix(_PARTIAL)
        return path.stat().st_blocks * 512 if path.is_file() else 0

    def finish(self, root: Hash, round: int, entry: bytes) -> Record:
        """All chunks came: from now on it is a snapshot like our own."""
        with self._lock:
            if root in self._records:
                return self._records[root]
            record, have = self._partial.pop(root)
            assert have.total() == have.count, "a blob is finished when it is whole"
            return self._keep(Record(root, round, entry, record.size, record.chunk_ids))

    # We take

    def partial_path(self, name: str) -> Path:
        """Where a snapshot is written before its root is known."""
        return self._folder / f"{name}{_PARTIAL}"

    def add(self, path: Path, round: int, entry: bytes, size: int, chunk_ids: bytes) -> Record:
        """A whole file at `path` becomes a snapshot."""
        root = root_of(size, chunk_ids)
        with self._lock:
            self._partial.pop(root, None)  # it is being fetched, and that is no longer needed
            path.replace(self._path(root).with_suffix(_PARTIAL))
            return self._keep(Record(root, round, entry, size, chunk_ids))

    def _keep(self, record: Record) -> Record:
        partial = self._path(record.root).with_suffix(_PARTIAL)
        try:
            sync(partial)
            partial.replace(self._path(record.root))
            sync(self._folder)
        except OSError as error:
            raise _explained(error, partial) from error
        self._disk.commit([Write("snapshots", record.root, _encode(record))])
        self._records[record.root] = record
        self._collect()
        return record

    # Room

    def drop(self, root: Hash) -> None:
        """It is not what the ledger says, or is damaged: what fits its names is worth keeping for
        a fetch.
        """
        with self._lock:
            if self._records.pop(root, None) is not None:
                self._disk.commit([Write("snapshots", root, None)])
                path = self._path(root)
                if path.is_file():
                    path.replace(path.with_suffix(_PARTIAL))

    def _collect(self) -> None:
        """The newest that others have too stay, one that somebody is fetching, and the newest of
        all, to start from.
        """
        now = time.monotonic()
        records = self.newest()
        common = [record for record in records if (record.round or 0) % self._every == 0]
        leased = [
            record
            for record in common[KEPT:]
            if now - self._leases.get(record.root, -_LEASE_S) < _LEASE_S
        ]
        stay = {r.root for r in [*records[:1], *common[:KEPT], *leased[:_LEASED_MAX]]}
        old = [record.root for record in records if record.root not in stay]
        if old:
            self._disk.commit([Write("snapshots", root, None) for root in old])
        for root in old:
            del self._records[root]
            self._leases.pop(root, None)
            self._path(root).unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Files that nothing names, and fetches that nobody went on with."""
        known = {self._path(root).name for root in self._records}
        for path in self._folder.iterdir():
            is_fetch = path.suffix == _PARTIAL and len(path.stem) == 2 * ID_BYTES
            is_fresh = time.time() - path.stat().st_mtime < _PARTIAL_KEPT_S
            if path.name not in known and not (is_fetch and is_fresh):
                path.unlink(missing_ok=True)

    def _path(self, root: Hash) -> Path:
        return self._folder / f"{root.hex()}.safetensors"


class SnapshotReader:
    """Another process's snapshots, to look at."""

    def __init__(self, home: Path, disk: Reader) -> None:
        self._folder = home / "snapshots"
        found = (_decode(Hash(key), raw) for key, raw in disk.scan("snapshots"))
        self._records = [record for record in found if record is not None]

    def newest(self) -> list[Record]:
        return sorted(self._records, key=lambda record: record.round or 0, reverse=True)

    def load(self, record: Record) -> dict[str, Tensor] | None:
        return _load(self._folder / f"{record.root.hex()}.safetensors", record)


def _load(path: Path, record: Record) -> dict[str, Tensor] | None:
    """None unless every chunk fits its name, and the file is of the record's place."""
    if _sound_chunks(path, record).total() < chunk_count(record.size):
        return None
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            told = file.metadata() or {}
            if (told.get("round"), told.get("entry")) != (str(record.round), record.entry.hex()):
                return None  # of another place, or of a chain that is no longer ours
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None


def _sound_chunks(path: Path, record: Record) -> Bits:
    """The chunks in a file that fit their names."""
    have = Bits(chunk_count(record.size))
    try:
        with path.open("rb") as file:
            for number in range(have.count):
                data = file.read(chunk_length(record.size, number))
                if data and chunk_id(data) == record.name(number):
                    have.add(number)
    except FileNotFoundError:
        pass
    return have


def _encode(record: Record) -> bytes:
    fields = [record.round, record.entry, record.size, record.chunk_ids]
    return bytes(msgpack.packb(fields))


def _decode(root: Hash, raw: bytes) -> Record | None:
    """None for what a failing disk made of it."""
    try:
        round, entry, size, chunk_ids = msgpack.unpackb(raw)
    except (ValueError, TypeError, msgpack.UnpackException):
        return None
    record = Record(root, round, entry, size, chunk_ids)
    return record if root_of(size, chunk_ids) == root else None


def _explained(error: OSError, path: Path) -> StoreError:
    if error.errno in (28, 122):  # ENOSPC, EDQUOT
        return StoreFull(f"no room left for {path}", "free some space and start again")
    return StoreError(f"cannot write {path}: {os.strerror(error.errno or 0)}", "check the disk")
