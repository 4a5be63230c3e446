"""Compiled loops for small subsets as numbers: which few places of a chunk are meant, in the fewest
bits that a chunk by itself can do with.

All subsets of at most k of a chunk's n places are put in order: the empty one, then those of one
place, and so on; those of one size in the order of the combinatorial number system (Lehmer,
"Applied Combinatorial Mathematics", 1964), in which places p_1 < ... < p_j have the number

    binomial(p_1, 1) + binomial(p_2, 2) + ... + binomial(p_j, j)

So there is one number for each subset, and each number below their count is a subset. It takes
`bits` bits, the same for every chunk, the lowest first; chunks follow each other without gaps, and
the last byte is padded with zero bits.

Numba checks no bounds. Whatever bytes come, `read_subsets` reads none behind the end and writes
only places below n.
"""

from functools import lru_cache
from math import comb
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from node.kernels.jit import helper, kernel

Array: TypeAlias = NDArray[Any]

BITS_MAX: Final = 62  # of a number: so that all sums are int64

NO_SUBSET: Final = -1
PADDED_WRONG: Final = -2
WRONG_LENGTH: Final = -3
# What went wrong, in words, for the negative results of the functions below.
FAULTS: Final = {
    NO_SUBSET: "a number stands for no subset",
    PADDED_WRONG: "the padding behind the positions is not zero",
    WRONG_LENGTH: "the positions have another length",
}

_BYTES: Final = "Array(uint8, 1, 'C', readonly=True)"  # takes writable arrays, too
_TABLE: Final = "Array(int64, 2, 'C', readonly=True)"


@lru_cache(maxsize=128)
def binomials(n: int, k: int) -> Array:
    """(k + 1, n + 1) int64: row j holds binomial(p, j) for p = 0..n."""
    table = np.array([[comb(p, j) for p in range(n + 1)] for j in range(k + 1)], np.int64)
    table.flags.writeable = False
    return table


@helper
def _place(row: Array, rest: int, below: int) -> int:
    """The largest p < below with row[p] <= rest. `row` rises, from 0."""
    low, high = 0, below
    while high - low > 1:
        middle = (low + high) >> 1
        if row[middle] <= rest:
            low = middle
        else:
            high = middle
    return low


@kernel(f"int64(int64[::1], int64[::1], {_TABLE}, int64, uint8[::1])")
def write_subsets(
    positions: Array,  # (of all chunks,) int64: rising in each chunk, counted from its start
    counts: Array,  # (chunks,) int64: how many each chunk has, at most k
    table: Array,  # `binomials` of the chunk's length and k
    bits: int,  # of a number
    out: Array,  # uint8, zeros: as long as they take
) -> int:
    """0, or WRONG_LENGTH when `out` is not that long."""
    if out.size != (counts.size * bits + 7) >> 3:
        return WRONG_LENGTH
    n = table.shape[1] - 1
    first, at = 0, 0
    for c in range(counts.size):
        number = 0
        for j in range(counts[c]):
            number += table[j, n] + table[j + 1, positions[first + j]]
        first += counts[c]
        left = bits
        while left > 0:
            room = 8 - (at & 7)
            taken = min(room, left)
            out[at >> 3] |= np.uint8((number & ((1 << taken) - 1)) << (at & 7))
            number >>= taken
            at += taken
            left -= taken
    return 0


@kernel(f"int64({_BYTES}, {_TABLE}, int64, int64[::1], int64[::1])")
def read_subsets(
    data: Array,  # uint8: nothing but these numbers
    table: Array,
    bits: int,
    counts: Array,  # (chunks,) int64, out
    positions: Array,  # (chunks * k,) int64, out: the first so many of it, as `write_subsets` takes
) -> int:
    """How many places there are in all, or a fault."""
    if data.size != (counts.size * bits + 7) >> 3:
        return WRONG_LENGTH
    k, n = table.shape[0] - 1, table.shape[1] - 1
    first, at = 0, 0
    for c in range(counts.size):
        number, have = 0, 0
        while have < bits:
            taken = min(8 - (at & 7), bits - have)
            number |= ((int(data[at >> 3]) >> (at & 7)) & ((1 << taken) - 1)) << have
            at += taken
            have += taken
        size = 0
        while size <= k and number >= table[size, n]:
            number -= table[size, n]
            size += 1
        if size > k:
            return NO_SUBSET
        below = n
        for j in range(size, 0, -1):
            below = _place(table[j], number, below)
            number -= table[j, below]
            positions[first + j - 1] = below
        counts[c] = size
        first += size
    used = at & 7
    if used and data[at >> 3] >> used:
        return PADDED_WRONG
    return first
