"""A fine-tune as a small file: the manifest, which names the base model, and the ledger, which is
the difference.

The file is a magic line, then Zstandard-compressed msgpack: the manifest's bytes, the entries'
bodies in order, and the state digest at their end. Bodies chain by hash from the run id on, so a
changed byte anywhere is found before a weight is touched; what comes out is compared with the
digest.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgpack
import zstandard

from node.config import Manifest
from node.durable import write_atomically
from node.errors import IdentityError, UserError
from node.replica import Progress, Replica
from protocol.codec import decode_body
from protocol.entries import ENTRY_BYTES_MAX, Entry
from protocol.errors import RemoteError
from protocol.ids import Hash, PeerId, RunId, run_id
from protocol.roster import Roster

_MAGIC: Final = b"peertrain patch 1\n"
_BYTES_MAX: Final = 4 << 30
_LEVEL: Final = 19


class PatchError(UserError):
    """Not a patch, or not a whole one."""


@dataclass(frozen=True, slots=True)
class Patch:
    raw_manifest: bytes
    bodies: tuple[bytes, ...]
    state: int  # digest after the last entry

    @property
    def manifest(self) -> Manifest:
        return Manifest.decode(self.raw_manifest)

    @property
    def run(self) -> RunId:
        return run_id(self.raw_manifest)

    def entries(self) -> Iterator[Entry]:
        """In order, each checked to follow the one before. Raises PatchError."""
        parent, round = Hash(self.run), 0
        for raw in self.bodies:
            try:
                entry = Entry(decode_body(raw), raw, b"", ())
            except RemoteError as error:
                raise PatchError(
                    f"entry {round} of the patch is damaged: {error}", _AGAIN
                ) from error
            if entry.body.parent != parent or entry.round != round:
                raise PatchError(f"entry {round} of the patch does not follow", _AGAIN)
            if entry.body.attachments:
                raise PatchError(_TOO_LARGE, _WHOLE)
            yield entry
            parent, round = entry.hash, round + 1


_AGAIN: Final = "make or fetch the patch again"
_TOO_LARGE: Final = (
    "what this run's rounds changed is not in its ledger alone, so no patch can hold it"
)
_WHOLE: Final = "export the whole model: `peer export out/`"


def write_patch(path: Path, raw_manifest: bytes, bodies: Iterable[bytes], state: int) -> int:
    """Returns the file's size in bytes. Raises PatchError for a run that no patch can hold."""
    held = list(bodies)
    if any(decode_body(raw).attachments for raw in held):
        raise PatchError(_TOO_LARGE, _WHOLE)
    content = msgpack.packb([raw_manifest, held, state])
    packed = _MAGIC + zstandard.ZstdCompressor(level=_LEVEL).compress(content)
    write_atomically(path, lambda temporary: temporary.write_bytes(packed) and None)
    return len(packed)


def read_patch(path: Path) -> Patch:
    """Raises PatchError."""
    try:
        packed = path.read_bytes()
    except OSError as error:
        raise PatchError(f"cannot read {path}: {error.strerror}", "give a patch file") from error
    if not packed.startswith(_MAGIC):
        raise PatchError(f"{path} is not a patch", "patches come from `peer export --patch FILE`")
    try:
        unpacker = zstandard.ZstdDecompressor()
        content = unpacker.decompress(packed[len(_MAGIC) :], max_output_size=_BYTES_MAX)
        fields: Any = msgpack.unpackb(content, use_list=False)
        raw_manifest, bodies, state = fields
        well_formed = (
            isinstance(raw_manifest, bytes)
            and isinstance(bodies, tuple)
            and all(isinstance(body, bytes) and len(body) <= ENTRY_BYTES_MAX for body in bodies)
            and isinstance(state, int)
        )
        if not well_formed:
            raise ValueError("wrong fields")
    except Exception as error:  # zstandard and msgpack raise many kinds; each means a damaged file
        raise PatchError(f"{path} is damaged: {error}", _AGAIN) from error
    return Patch(raw_manifest, bodies, state)


def apply_patch(patch: Patch, replica: Replica, progress: Progress) -> None:
    """From the base to the patched state. Raises PatchError, or IdentityError at the end."""
    founder = PeerId(bytes.fromhex(patch.manifest.founder))
    roster = Roster([founder])
    for done, entry in enumerate(patch.entries()):
        if any(line.seat >= len(roster) for line in entry.body.lines):
            raise PatchError(f"entry {entry.round} of the patch names a stranger", _AGAIN)
        if done % 20 == 0:
            progress("applying", done, len(patch.bodies))
        replica.merge(entry, roster.members)
        roster = roster.after(entry.body)
    if replica.digest() != patch.state:
        raise IdentityError(
            f"the result has digest {replica.digest():016x}, the patch says {patch.state:016x}",
            "is BASE exactly the model that the run was founded with?",
        )
