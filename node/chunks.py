"""Blobs on disk: one file each, in chunks that are known by name.

A blob is whole, or some of it has come. What a failing disk changed is noticed when a chunk is
read, because its name no longer fits. A fetch that was cut off is a file with holes: the chunks in
it that fit their names are kept.
"""

import errno
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from node.durable import sync
from node.store import StoreError, StoreFull
from protocol.blobs import Bits, chunk_count, chunk_id, chunk_length, page_id, pages_of
from protocol.codec import CHUNK_BYTES, MAP_BYTES_MAX
from protocol.ids import ID_BYTES, Hash
from protocol.messages import BlobOffer, Level

_PARTIAL: Final = ".part"
_PARTIAL_KEPT_S: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class Blob:
    """What is known of a blob whose root was checked."""

    root: Hash
    size: int
    chunk_ids: bytes

    @property
    def chunks(self) -> int:
        return chunk_count(self.size)

    def name(self, number: int) -> bytes:
        return self.chunk_ids[number * ID_BYTES : (number + 1) * ID_BYTES]


class ChunkFiles:
    """The blobs of one folder. Safe to call from several threads. `was_read` is called with the
    root of a whole blob that somebody reads.
    """

    def __init__(
        self,
        folder: Path,
        suffix: str,
        whole: Iterable[Blob],
        was_read: Callable[[Hash], None] = lambda root: None,
    ) -> None:
        """`whole`: those that should be; the ones that are not on disk are left out."""
        self.lock = threading.RLock()
        self.damaged = 0  # chunks that no longer fitted their names
        self._folder, self._suffix, self._was_read = folder, suffix, was_read
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._whole = {blob.root: blob for blob in whole if self.path(blob.root).is_file()}
        self._partial: dict[Hash, tuple[Blob, Bits]] = {}
        self._sweep()

    def path(self, root: Hash) -> Path:
        """Of a whole blob."""
        return self._folder / f"{root.hex()}{self._suffix}"

    def partial_path(self, name: str) -> Path:
        """Where a blob is written, by its root or, before that is known, by any name."""
        return self._folder / f"{name}{_PARTIAL}"

    def _part(self, root: Hash) -> Path:
        return self.partial_path(root.hex())

    def __contains__(self, root: Hash) -> bool:
        """Is there any of it?"""
        return root in self._whole or root in self._partial

    def whole(self, root: Hash) -> Blob | None:
        return self._whole.get(root)

    # Others fetch from us

    def offer(self, root: Hash) -> BlobOffer | None:
        with self.lock:
            blob, have = self._whole.get(root), None
            if blob is None:
                if root not in self._partial:
                    return None
                blob, bits = self._partial[root]
                have = bits.encode()
                if len(have) > MAP_BYTES_MAX:
                    return None  # once it is whole
            pages = tuple(map(page_id, pages_of(blob.chunk_ids)))
            return BlobOffer(root, blob.size, pages, have)

    def read(self, root: Hash, level: Level, number: int) -> bytes | None:
        """A piece, if it is here and sound."""
        with self.lock:
            blob = self._whole.get(root)
            is_whole = blob is not None
            if blob is not None:
                self._was_read(root)
            elif root in self._partial:
                blob = self._partial[root][0]
            if blob is None:
                return None
            if level is Level.PAGE:
                pages = pages_of(blob.chunk_ids)
                return pages[number] if number < len(pages) else None
            if number >= blob.chunks:
                return None
        data = self._read_chunk(self.path(root) if is_whole else self._part(root), blob, number)
        if data is None and is_whole and self.path(root).is_file():
            self.damaged += 1
        return data

    @staticmethod
    def _read_chunk(path: Path, blob: Blob, number: int) -> bytes | None:
        try:
            with path.open("rb") as file:
                file.seek(number * CHUNK_BYTES)
                data = file.read(chunk_length(blob.size, number))
        except OSError:
            return None
        return data if chunk_id(data) == blob.name(number) else None

    # We fetch

    def open(self, blob: Blob) -> Bits:
        """Make room for a blob; returns which chunks of it are here. Raises StoreError."""
        with self.lock:
            if blob.root in self._partial:
                return self._partial[blob.root][1]
            if blob.root in self._whole:  # it came about here in the meantime
                return Bits.full(blob.chunks)
            path = self._part(blob.root)
            have = sound_chunks(path, blob)
            try:
                with path.open("ab") as file:
                    file.truncate(blob.size)
            except OSError as error:
                raise explained(error, path) from error
            self._partial[blob.root] = blob, have
            return have

    def put(self, root: Hash, number: int, data: bytes) -> None:
        """Write one chunk whose name was checked. Raises StoreError."""
        with self.lock:
            if root not in self._partial:
                return
            path = self._part(root)
            try:
                with path.open("r+b") as file:
                    file.seek(number * CHUNK_BYTES)
                    file.write(data)
            except OSError as error:
                raise explained(error, path) from error
            self._partial[root][1].add(number)

    def close(self, root: Hash) -> None:
        """No more will come for now; the file stays for a day, to go on with."""
        with self.lock:
            self._partial.pop(root, None)

    def discard(self, root: Hash) -> None:
        """No more will come, and what came is of no use."""
        with self.lock:
            if self._partial.pop(root, None) is not None:
                self._part(root).unlink(missing_ok=True)

    def partial_bytes(self, root: Hash) -> int:
        """On disk of an unfinished blob, at most."""
        with self.lock:
            known = self._partial.get(root)
            if known is not None:
                return known[1].total() * CHUNK_BYTES
        try:
            return self._part(root).stat().st_blocks * 512
        except OSError:
            return 0

    def finish(self, root: Hash) -> Blob | None:
        """All of it came: it is whole from now on. None if it did not. Raises StoreError."""
        with self.lock:
            if root in self._whole:
                return self._whole[root]
            blob, have = self._partial.get(root, (None, None))
        if blob is None or have is None or have.total() < have.count:
            return None
        return self._keep(blob)

    # We make

    def place(self, path: Path, blob: Blob) -> Blob:
        """A file at `path`, in the same folder, is this blob. Raises StoreError."""
        with self.lock:
            path.replace(self._part(blob.root))
        return self._keep(blob)

    def _keep(self, blob: Blob) -> Blob:
        """The lock is not held while the disk writes: others look up their blobs meanwhile."""
        partial = self._part(blob.root)
        try:
            sync(partial)
            with self.lock:
                partial.replace(self.path(blob.root))
                self._partial.pop(blob.root, None)
                self._whole[blob.root] = blob
            sync(self._folder)
        except OSError as error:
            if blob.root in self._whole:  # it came and was made at the same time
                return blob
            raise explained(error, partial) from error
        return blob

    # Room

    def spoil(self, root: Hash) -> None:
        """It is damaged, or not what it should be: what fits its names may be fetched on."""
        with self.lock:
            if self._whole.pop(root, None) is not None and self.path(root).is_file():
                self.path(root).replace(self._part(root))

    def remove(self, root: Hash) -> None:
        with self.lock:
            self._whole.pop(root, None)
            self.path(root).unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Files that nothing names, and fetches that nobody went on with."""
        known = {self.path(root).name for root in self._whole}
        for path in self._folder.iterdir():
            is_fetch = path.suffix == _PARTIAL and len(path.stem) == 2 * ID_BYTES
            is_fresh = time.time() - path.stat().st_mtime < _PARTIAL_KEPT_S
            if path.name not in known and not (is_fetch and is_fresh):
                path.unlink(missing_ok=True)


def sound_chunks(path: Path, blob: Blob) -> Bits:
    """The chunks in a file that fit their names."""
    have = Bits(blob.chunks)
    try:
        with path.open("rb") as file:
            for number in range(have.count):
                data = file.read(chunk_length(blob.size, number))
                if data and chunk_id(data) == blob.name(number):
                    have.add(number)
    except FileNotFoundError:
        pass
    return have


def explained(error: OSError, path: Path) -> StoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull(f"no room left for {path}", "free some space and start again")
    return StoreError(f"cannot write {path}: {os.strerror(error.errno or 0)}", "check the disk")
