"""Identifiers, and the one hash that makes them."""

from typing import Final, NewType

from blake3 import blake3

PeerId = NewType("PeerId", bytes)  # an Ed25519 public key, 32 bytes
RunId = NewType("RunId", bytes)  # the hash of a manifest, 32 bytes
Hash = NewType("Hash", bytes)  # BLAKE3-256
Millis = NewType("Millis", int)  # a monotonic clock's reading, or a duration

ID_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
TIP_BYTES: Final = 8  # a hash's beginning, where it is only a hint

# Every hash names what it is for, so that bytes made for one purpose never pass for another.
_CONTEXT: Final = "peertrain 1 "


def digest(purpose: str, *parts: bytes) -> Hash:
    """BLAKE3-256 of `parts` under `purpose`; each part is preceded by its length, 8 bytes big-
    endian.
    """
    framed = b"".join([piece for part in parts for piece in (len(part).to_bytes(8, "big"), part)])
    return Hash(blake3(framed, derive_key_context=_CONTEXT + purpose).digest())


def run_id(manifest: bytes) -> RunId:
    """A run is named by the hash of its manifest's exact bytes."""
    return RunId(digest("run", manifest))


def short(name: bytes) -> str:
    """The first 8 hexadecimal digits: how people read an id."""
    return name[:4].hex()
