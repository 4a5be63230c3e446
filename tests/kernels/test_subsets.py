"""Small subsets as numbers: against the list of all of them, and strict about every bit."""

from itertools import combinations
from math import comb
from random import Random

import numpy as np
import pytest

pytest.importorskip("numba")
from node.kernels import subsets


def in_order(n: int, k: int) -> list[tuple[int, ...]]:
    """All subsets of at most k of n, as the code numbers them."""
    every = [chosen for size in range(k + 1) for chosen in combinations(range(n), size)]
    return sorted(every, key=lambda chosen: (len(chosen), chosen[::-1]))


def bits_of(n: int, k: int) -> int:
    return (sum(comb(n, size) for size in range(k + 1)) - 1).bit_length()


def packed(numbers: list[int], bits: int) -> np.ndarray:
    whole = sum(number << (bits * i) for i, number in enumerate(numbers))
    return np.frombuffer(whole.to_bytes(-(-len(numbers) * bits // 8), "little"), np.uint8)


def written(chosen: list[tuple[int, ...]], n: int, k: int) -> np.ndarray:
    positions = np.array([p for one in chosen for p in one], np.int64)
    counts = np.array([len(one) for one in chosen], np.int64)
    bits = bits_of(n, k)
    out = np.zeros(-(-len(chosen) * bits // 8), np.uint8)
    assert subsets.write_subsets(positions, counts, subsets.binomials(n, k), bits, out) == 0
    return out


def read(data: np.ndarray, count: int, n: int, k: int) -> list[tuple[int, ...]] | int:
    counts, positions = np.empty(count, np.int64), np.empty(count * k, np.int64)
    table = subsets.binomials(n, k)
    found = subsets.read_subsets(data, table, bits_of(n, k), counts, positions)
    if found < 0:
        return int(found)
    ends = np.cumsum(counts)
    return [tuple(positions[e - c : e].tolist()) for c, e in zip(counts, ends, strict=True)]


@pytest.mark.parametrize(("n", "k"), [(1, 1), (4, 4), (7, 2), (9, 3), (64, 1), (12, 5)])
def test_all_subsets_have_the_numbers_of_their_places_in_the_list(n: int, k: int) -> None:
    every = in_order(n, k)
    data = packed(list(range(len(every))), bits_of(n, k))
    assert written(every, n, k).tobytes() == data.tobytes()
    assert read(data, len(every), n, k) == every


@pytest.mark.parametrize(("n", "k"), [(4096, 4), (4096, 5), (3712, 4), (4096, 1)])
def test_whole_tiles(n: int, k: int) -> None:
    drawn = Random(3)
    chosen = [tuple(sorted(drawn.sample(range(n), drawn.randint(0, k)))) for _ in range(200)]
    chosen += [tuple(range(n - k, n)), tuple(range(k)), ()]
    assert read(written(chosen, n, k), len(chosen), n, k) == chosen


def test_four_of_4096_take_44_bits() -> None:
    assert bits_of(4096, 4) == 44


@pytest.mark.parametrize(("n", "k"), [(7, 2), (4096, 4)])
def test_a_number_that_stands_for_nothing_is_refused(n: int, k: int) -> None:
    """P6"""
    bits, last = bits_of(n, k), sum(comb(n, size) for size in range(k + 1)) - 1
    assert last + 1 < 1 << bits
    assert read(packed([0, last], bits), 2, n, k) == [(), tuple(range(n - k, n))]
    for number in (last + 1, (1 << bits) - 1):
        assert read(packed([0, number], bits), 2, n, k) == subsets.NO_SUBSET


def test_other_lengths_and_padding_are_refused() -> None:
    """P6"""
    data = written([(1, 5), (0,)], 7, 2)
    assert len(data) == 2
    assert read(data[:1], 2, 7, 2) == subsets.WRONG_LENGTH
    assert read(np.append(data, np.uint8(0)), 2, 7, 2) == subsets.WRONG_LENGTH
    for bit in range(2 * bits_of(7, 2), 16):
        other = data.copy()
        other[1] |= 1 << (bit - 8)
        assert read(other, 2, 7, 2) == subsets.PADDED_WRONG
