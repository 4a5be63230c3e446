"""The 64-bit keys of random directions: a hash of a fixed-width tuple, so that no two tuples can
collide by accident of formatting.
"""

from blake3 import blake3

_PROBE = "peertrain 2026-11 probe direction v1"
_POOL = "peertrain 2026-11 pool direction v1"
_CHOICE = "peertrain 2026-11 pool choice v1"
_NOISE = "peertrain 2026-11 rounding noise v1"
_MASK = "peertrain 2026-11 mask v1"


def probe_key(run: bytes, round: int, peer: bytes, probe: int) -> int:
    """The direction of one probe. `run` and `peer` are 32 bytes."""
    return _hash(_PROBE, _id(run), _u64(round), _id(peer), _u32(probe))


def pool_key(run: bytes, index: int) -> int:
    """Direction `index` of a pooled run's fixed candidates."""
    return _hash(_POOL, _id(run), _u32(index))


def choice_draw(run: bytes, round: int, peer: bytes, probe: int) -> int:
    """A uniform 64-bit number that decides which candidate a probe tries."""
    return _hash(_CHOICE, _id(run), _u64(round), _id(peer), _u32(probe))


def noise_key(run: bytes, round: int, batch: int) -> int:
    """The rounding noise of one batch of a merge; only bfloat16 weights use it."""
    return _hash(_NOISE, _id(run), _u64(round), _u32(batch))


def mask_key(run: bytes, round: int, tensor: int) -> int:
    """Which elements of a tensor, by its number, all peers send in a round."""
    return _hash(_MASK, _id(run), _u64(round), _u32(tensor))


def _hash(context: str, *fields: bytes) -> int:
    digest = blake3(b"".join(fields), derive_key_context=context).digest(length=8)
    return int.from_bytes(digest, "little")


def _id(value: bytes) -> bytes:
    assert len(value) == 32, "identifiers are 32 bytes"
    return value


def _u64(value: int) -> bytes:
    return value.to_bytes(8, "little")


def _u32(value: int) -> bytes:
    return value.to_bytes(4, "little")
