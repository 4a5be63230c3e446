"""The parts of the compiled sparse code that are easier to check one by one."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba")
from node.kernels import sparse
from node.kernels.cpu import rounding_noise
from node.kernels.reference import subtract
from node.kernels.threads import Threads

CHECKS = settings(derandomize=True, deadline=None)


def cost(gap: int, divisor: int) -> int:
    """Bits of a gap, from the definition of the code."""
    whole = divisor.bit_length() - 1
    return gap // divisor + 1 + whole + (gap % divisor >= 2 ** (whole + 1) - divisor)


@CHECKS
@given(st.lists(st.integers(0, 60), max_size=40), st.integers(61, 70))
def test_the_best_divisor_is_the_best(gaps: list[int], size: int) -> None:
    costs = {m: sum(cost(gap, m) for gap in gaps) for m in range(1, size + 1)}
    best = min(costs, key=lambda m: (costs[m], m))
    counts = np.bincount(gaps, minlength=size) if gaps else np.zeros(size, np.int64)
    assert sparse.best_divisor(counts) == (best, costs[best])


@pytest.mark.parametrize(
    "positions",
    [
        [0, 0, 5],  # twice the same
        [3, 2, 5],
        [-1, 2, 5],
        [0, 4, 5],  # the second lies in the next chunk
        [0, 1, 3],  # the third in the one before
        [0, 1, 6],  # behind the last element
    ],
)
def test_positions_that_have_no_code_are_refused(positions: list[int]) -> None:
    """Six elements in chunks of 4, two kept of the first and one of the last."""
    counts = np.zeros(4, np.int64)
    given_positions = np.array(positions, np.int64)
    assert sparse.count_gaps(given_positions, 4, 2, 6, counts) == sparse.OUTSIDE
    assert sparse.count_gaps(np.array([0, 3, 5]), 4, 2, 6, np.zeros(4, np.int64)) == 0


def test_a_buffer_that_is_too_small_is_not_left() -> None:
    positions = np.array([3, 15], np.int64)
    for size in range(4):
        buffer = np.full(8, 0xAA, np.uint8)
        written = sparse.write_span(positions, 0, 2, 16, 2, 1, buffer[:size])
        assert written == (sparse.ENDS_EARLY if size < 2 else 2)
        assert set(buffer[size:].tolist()) == {0xAA}


@CHECKS
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**40), st.integers(0, 600))
def test_the_noise_is_that_of_the_reference(key: int, position: int, count: int) -> None:
    """The reference adds it to the patterns of zeros, and drops what is below 16 bits."""
    weights = torch.ones(count, dtype=torch.bfloat16)
    change = torch.full((count,), -0.003)
    subtract(weights, position, change, key)
    pattern = int((np.float32(1) + np.float32(0.003)).view(np.uint32))
    noise = rounding_noise(key, position, count).astype(np.int64)
    expected = (pattern + noise) >> 16
    assert weights.view(torch.int16).tolist() == expected.tolist()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_threads_answer_in_order_and_raise_the_first_error(count: int) -> None:
    threads = Threads(count)
    assert threads.map(lambda i: i * i, range(50)) == [i * i for i in range(50)]
    with pytest.raises(KeyError, match="3"):
        threads.map(lambda i: {1: 1, 2: 2}[i], [1, 2, 3, 4])
