"""The order of samples: a permutation in every epoch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.training.order import permuted


@given(st.integers(1, 3000), st.integers(0, 1000), st.integers(0, 2**63 - 1))
def test_each_sample_comes_once_an_epoch(size: int, epoch: int, seed: int) -> None:
    order = permuted(np.arange(size), size, epoch, seed)
    assert sorted(order.tolist()) == list(range(size))


def test_epochs_and_seeds_differ_and_repeat() -> None:
    places = np.arange(1000)
    first = permuted(places, 1000, 0, 7)
    assert np.array_equal(first, permuted(places, 1000, 0, 7))
    assert (first == permuted(places, 1000, 1, 7)).mean() < 0.02
    assert (first == permuted(places, 1000, 0, 8)).mean() < 0.02
    assert (first == places).mean() < 0.02


def test_any_place_is_had_alone() -> None:
    size = 10**12
    places = np.array([0, 5, size - 1])
    together = permuted(places, size, 3, 1)
    assert together.max() < size
    for place, expected in zip(places, together, strict=True):
        assert permuted(np.array([place]), size, 3, 1)[0] == expected


@pytest.mark.parametrize("size", [257, 4096])
def test_neighbours_are_scattered(size: int) -> None:
    order = permuted(np.arange(size), size, 0, 0)
    gaps = np.abs(np.diff(order))
    assert gaps.mean() == pytest.approx(size / 3, rel=0.1)
