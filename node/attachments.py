"""Attachments on disk: the large parts of contributions, ours and others', and what those come to.

They stay as long as somebody may have to replay their round: until it is older than a snapshot that
the ledger names. Our own also stay for as long as they may have to be given back.
"""

import shutil
from collections.abc import Iterable, Sequence, Set
from pathlib import Path
from typing import Final

import msgpack

from node.chunks import Blob, ChunkFiles, explained
from node.ports import Disk
from protocol.blobs import chunk_id, chunks_of, root_of
from protocol.entries import Attachment
from protocol.gathering import read_sum, sum_key
from protocol.ids import Hash
from protocol.ledger import Write
from protocol.parts import SumName, whole_of
from protocol.restore import Reader, offered, parts_of

_FOLDER: Final = "attachments"
_SPARED_BYTES: Final = 1 << 30  # of our own that nobody replays any more


class Attachments:
    """Safe to call from several threads."""

    def __init__(self, home: Path, disk: Disk) -> None:
        self._disk = disk
        known = {Hash(key): _decode(Hash(key), raw) for key, raw in disk.scan("attachments")}
        blobs = (blob for blob, _ in known.values() if blob is not None)
        self.files = ChunkFiles(home / _FOLDER, "", blobs)
        self._rounds = {root: at for root, (_, at) in known.items() if self.files.whole(root)}
        self._newest: set[Hash] = set()  # of our own: it may not be in the outbox yet
        gone = [Write("attachments", root, None) for root in known if root not in self._rounds]
        if gone:
            disk.commit(gone)

    def add(self, round: int, data: bytes) -> Attachment:
        """Our own, for `round`. Raises StoreError."""
        made = self.put(round, data)
        self._newest = {made.root}
        return made

    def add_parts(self, round: int, parts: Sequence[bytes]) -> tuple[Attachment, ...]:
        """Our own, in parts. Raises StoreError."""
        made = tuple(self.put(round, data) for data in parts)
        if made:
            self._newest = {whole_of(made).root, *(part.root for part in made)}
        return made

    def put(self, round: int, data: bytes) -> Attachment:
        """One that was made here, of our own work or of others'. Raises StoreError."""
        names = b"".join(map(chunk_id, chunks_of(data)))
        blob = Blob(root_of(len(data), names), len(data), names)
        path = self.files.partial_path(f"making-{round}")
        try:
            path.write_bytes(data)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise explained(error, path) from error
        self._note(round, self.files.place(path, blob))
        return Attachment(blob.root, blob.size)

    def keep(self, root: Hash, round: int) -> bool:
        """One that was fetched; False if not all of it is here any more. Raises StoreError."""
        blob = self.files.finish(root)
        if blob is not None:
            self._note(round, blob)
        return blob is not None

    def _note(self, round: int, blob: Blob) -> None:
        with self.files.lock:
            round = self._rounds[blob.root] = max(round, self._rounds.get(blob.root, 0))
            fields = [round, blob.size, blob.chunk_ids]
            self._disk.commit([Write("attachments", blob.root, bytes(msgpack.packb(fields)))])

    def has(self, attached: Attachment) -> bool:
        return self.files.whole(attached.root) is not None

    def read(self, attached: Attachment) -> bytes | None:
        """All of it, each byte checked; None if it is not here, or damaged."""
        parts = parts_of(self._disk, attached)
        if parts:
            return _joined(self._read_one(part) for part in parts)
        return self._read_one(attached)

    def sum(self, round: int, name: SumName) -> Attachment | None:
        """Where it is."""
        return _find_sum(self._disk, round, name)

    def _read_one(self, attached: Attachment) -> bytes | None:
        blob = self.files.whole(attached.root)
        if blob is None:
            return None
        data = read_whole(self.files.path(blob.root), blob)
        if data is None:
            self.files.damaged += 1
            self._drop([blob.root])
            self.files.spoil(blob.root)
        return data

    def _drop(self, roots: list[Hash]) -> None:
        with self.files.lock:
            self._disk.commit([Write("attachments", root, None) for root in roots])
            for root in roots:
                self._rounds.pop(root, None)

    def collect(self, before: int) -> None:
        """Remove those of rounds before that, but for the newest of our own that may be offered
        again: dense ones of a large model would fill any disk.
        """
        old = {root for root, round in self._rounds.items() if round < before}
        if not old:
            return
        ours = offered(self._disk)
        stay = self._newest | self._spared(old & ours)
        gone = [root for root in old if root not in stay]
        self._drop(gone)
        for root in gone:
            self.files.remove(root)
        self._forget_parts(before, ours | self._newest)

    def _spared(self, roots: Set[Hash]) -> set[Hash]:
        room, found = _SPARED_BYTES, set[Hash]()
        for root in sorted(roots, key=lambda root: self._rounds[root], reverse=True):
            blob = self.files.whole(root)
            room -= 0 if blob is None else blob.size
            if room < 0:
                break
            found.add(root)
        return found

    def _forget_parts(self, before: int, stay: Set[Hash]) -> None:
        """Records of what old attachments were made of, and came to."""
        cut = [root for root, _ in self._disk.scan("parts") if root not in stay]
        gone = [Write("parts", root, None) for root in cut]
        for key, _ in self._disk.scan("sums"):
            if int.from_bytes(key[:8], "big") >= before:
                break
            gone.append(Write("sums", key, None))
        if gone:
            self._disk.commit(gone)


class AttachmentReader:
    """Another process's attachments, to look at."""

    def __init__(self, home: Path, disk: Reader) -> None:
        self._folder, self._disk = home / _FOLDER, disk

    def has(self, attached: Attachment) -> bool:
        return self._disk.get("attachments", attached.root) is not None

    def sum(self, round: int, name: SumName) -> Attachment | None:
        return _find_sum(self._disk, round, name)

    def read(self, attached: Attachment) -> bytes | None:
        parts = parts_of(self._disk, attached)
        if parts:
            return _joined(self._read_one(part) for part in parts)
        return self._read_one(attached)

    def hold(self, attached: Attachment, folder: Path) -> Path | None:
        """Its file, also in `folder`, where its owner removes nothing; None if it is not here.
        Raises StoreError.
        """
        path = folder / attached.root.hex()
        try:
            _link(self._folder / attached.root.hex(), path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise explained(error, path) from error
        return path

    def _read_one(self, attached: Attachment) -> bytes | None:
        raw = self._disk.get("attachments", attached.root)
        blob = None if raw is None else _decode(attached.root, raw)[0]
        return None if blob is None else read_whole(self._folder / attached.root.hex(), blob)


def _link(path: Path, to: Path) -> None:
    """A second name, or where a file system has none, a copy."""
    if to.exists():
        return
    try:
        to.hardlink_to(path)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(path, to)


def read_held(path: Path, attached: Attachment) -> bytes | None:
    """None unless it is what its name says."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    names = b"".join(map(chunk_id, chunks_of(data)))
    is_it = (root_of(len(data), names), len(data)) == (attached.root, attached.size)
    return data if is_it else None


def read_whole(path: Path, blob: Blob) -> bytes | None:
    """None unless every chunk fits its name."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if len(data) != blob.size:
        return None
    sound = all(chunk_id(chunk) == blob.name(n) for n, chunk in enumerate(chunks_of(data)))
    return data if sound else None


def _find_sum(disk: Reader, round: int, name: SumName) -> Attachment | None:
    key = sum_key(round, name)
    raw = disk.get("sums", key)
    return None if raw is None else read_sum(key, raw)[1]


def _joined(pieces: Iterable[bytes | None]) -> bytes | None:
    """None if one is missing."""
    found = list(pieces)
    return None if None in found else b"".join(piece for piece in found if piece is not None)


def _decode(root: Hash, raw: bytes) -> tuple[Blob | None, int]:
    """None for what a failing disk made of it."""
    try:
        round, size, chunk_ids = msgpack.unpackb(raw)
    except (ValueError, TypeError, msgpack.UnpackException):
        return None, 0
    return (Blob(root, size, chunk_ids) if root_of(size, chunk_ids) == root else None), round
