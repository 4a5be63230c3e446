"""The one random generator: Philox4x32-10, in the obvious way, with NumPy.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), and
its library Random123. It is a bijection of a 128-bit counter under a 64-bit key, so any block can
be had without the ones before it.

What a second implementation has to know:

* key words: (key mod 2^32, key div 2^32), of an unsigned 64-bit key;
* counter words of block b in stream s: (b mod 2^32, b div 2^32, s, 0);
* streams, so that one key never yields the same bits for two purposes: 0 directions, 1 rounding
  noise, 2 digest coefficients;
* positions count over one flat vector of all trainable parameters, not over single tensors:

  - direction: element i is bit i % 32 of word (i // 32) % 4 of block i // 128; a set bit is +1, a
    clear bit is -1;
  - noise: element i takes 16 bits of word (i // 2) % 4 of block i // 8: the low half when i is
    even, else the high half;
  - digest: coefficient j has 64 bits, low word first: words 0 and 1 of block j // 2 when j is
    even, else words 2 and 3.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

DIRECTIONS: Final = 0
NOISE: Final = 1
DIGEST: Final = 2

MULTIPLIERS: Final = (0xD2511F53, 0xCD9E8D57)
WEYL: Final = (0x9E3779B9, 0xBB67AE85)  # added to the key words before every round but the first
ROUNDS: Final = 10
DIRECTIONS_PER_BLOCK: Final = 128
NOISE_PER_BLOCK: Final = 8
COEFFICIENTS_PER_BLOCK: Final = 2

_LOW: Final = np.uint64(0xFFFFFFFF)
_HALF: Final = np.uint64(32)
_CHUNK: Final = 8192  # blocks worked on at once, so that the temporaries stay in the cache


def philox_words(
    key: int,  # unsigned, 64 bits
    first_block: int,  # unsigned, 64 bits
    blocks: int,  # how many blocks from there on
    stream: int,  # DIRECTIONS, NOISE or DIGEST
) -> NDArray[np.uint32]:  # (blocks, 4)
    """The four words of each of some consecutive blocks.

    Raises ValueError when the key, the stream or a block number does not fit its words.
    """
    if not 0 <= key < 2**64 or not 0 <= stream < 2**32:
        raise ValueError(f"key {key} or stream {stream} does not fit its unsigned words")
    if first_block < 0 or blocks < 0 or first_block + blocks > 2**64:
        raise ValueError(f"blocks {first_block} + {blocks} do not fit 64 bits")
    words = np.empty((blocks, 4), dtype=np.uint32)
    for start in range(0, blocks, _CHUNK):
        count = min(_CHUNK, blocks - start)
        block = np.arange(count, dtype=np.uint64) + np.uint64(first_block + start)
        counter = np.zeros((4, count), dtype=np.uint64)
        counter[0], counter[1], counter[2] = block & _LOW, block >> _HALF, np.uint64(stream)
        words[start : start + count] = scramble(counter, key).T
    return words


def scramble(
    counter: NDArray[np.uint64],  # (4, n): 32-bit words, each in 64 bits
    key: int,  # unsigned, 64 bits
) -> NDArray[np.uint32]:  # (4, n)
    """Ten rounds of Philox4x32 over n counters."""
    c0, c1, c2, c3 = counter
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(ROUNDS):
        p0, p1 = c0 * np.uint64(MULTIPLIERS[0]), c2 * np.uint64(MULTIPLIERS[1])
        c0, c1 = (p1 >> _HALF) ^ c1 ^ np.uint64(k0), p1 & _LOW
        c2, c3 = (p0 >> _HALF) ^ c3 ^ np.uint64(k1), p0 & _LOW
        k0, k1 = (k0 + WEYL[0]) & 0xFFFFFFFF, (k1 + WEYL[1]) & 0xFFFFFFFF
    return np.stack((c0, c1, c2, c3)).astype(np.uint32)
