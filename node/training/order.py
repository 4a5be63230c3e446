"""The order of samples: a keyed permutation for each epoch, without a table.

A Feistel network permutes 0 .. 4**k - 1; values outside 0 .. size - 1 are permuted again until they
fall inside (cycle walking), which takes fewer than four turns on average. Any place of any epoch is
had at once, in constant memory, and is the same on every machine.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from blake3 import blake3

_CONTEXT = "peertrain 2026-11 sample order v1"
_ROUNDS = 6

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]


def permuted(
    places: Ints,  # (n,) each in 0 .. size - 1
    size: int,
    epoch: int,
    seed: int,
) -> Ints:  # (n,) where each place leads; all places together give each number once
    assert size > 0
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    keys = _keys(seed, epoch)
    result = _feistel(places.astype(np.uint64), half, keys)
    outside = result >= size
    while outside.any():
        result[outside] = _feistel(result[outside], half, keys)
        outside = result >= size
    return result.astype(np.int64)


def _feistel(x: Words, half: int, keys: Words) -> Words:
    """A permutation of 2 * half bit numbers."""
    bits = np.uint64(half)
    mask = np.uint64((1 << half) - 1)
    left, right = x >> bits, x & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return left << bits | right


def _mix(x: Words) -> Words:
    """The finaliser of MurmurHash3: every bit of the input reaches every bit of the output. Wraps
    modulo 2**64.
    """
    x = (x ^ x >> np.uint64(33)) * np.uint64(0xFF51AFD7ED558CCD)
    x = (x ^ x >> np.uint64(33)) * np.uint64(0xC4CEB9FE1A85EC53)
    return x ^ x >> np.uint64(33)


@lru_cache(maxsize=16)
def _keys(seed: int, epoch: int) -> Words:
    fields = seed.to_bytes(8, "little") + epoch.to_bytes(8, "little")
    digest = blake3(fields, derive_key_context=_CONTEXT).digest(length=8 * _ROUNDS)
    return np.frombuffer(digest, dtype="<u8").astype(np.uint64)
