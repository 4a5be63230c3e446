"""What a round sends without saying so."""

from typing import get_args

import numpy as np
import pytest

from node.kernels.philox import DIRECTIONS, philox_words
from node.methods.parts.masks import Mask, slots_of
from node.methods.parts.seeds import mask_key
from node.methods.parts.tiles import Strides
from tests.methods.making import RUN

SIZES = [1, 2, 15, 16, 17, 64, 1000, 8191]


def sent(mask: Mask, round: int, size: int, one_in: int, tensor: int = 0) -> list[int]:
    slots = slots_of(mask, RUN, round, tensor, Strides(size, one_in))
    assert len(slots) == -(-size // one_in)
    assert (np.diff(slots) > 0).all()
    assert slots[0] >= 0
    return [slot for slot in slots.tolist() if slot < size]


@pytest.mark.parametrize("mask", ["striding", "slicing"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("one_in", [1, 3, 16])
@pytest.mark.parametrize("first", [0, 1_000_003])
def test_every_element_once_in_so_many_rounds(
    mask: Mask, size: int, one_in: int, first: int
) -> None:
    """METHODS D; also where the reference sends a quarter of the rows for ever."""
    rounds = range(first, first + one_in)
    assert sorted(e for r in rounds for e in sent(mask, r, size, one_in)) == list(range(size))


@pytest.mark.parametrize("mask", get_args(Mask))
def test_one_in_one_is_everything(mask: Mask) -> None:
    assert sent(mask, 5, 37, 1) == list(range(37))


def test_a_draw_is_one_of_each_group_and_is_the_generator_s() -> None:
    """P1: by run, round and tensor, and nothing else."""
    words = philox_words(mask_key(RUN, 7, 2), 0, 16, DIRECTIONS).reshape(-1).tolist()
    wanted = [16 * j + words[j] * 16 // 2**32 for j in range(62)]
    assert sent("random", 7, 62 * 16, 16, tensor=2) == wanted
    assert wanted[:4] == [2, 26, 32, 57]
    assert sent("random", 7, 62 * 16, 16, tensor=2) == wanted, "asking changes nothing"
    others = [sent("random", 8, 992, 16, 2), sent("random", 7, 992, 16, 3)]
    assert all(other != wanted for other in others)


def test_draws_are_even() -> None:
    counts = np.bincount([e % 5 for r in range(40) for e in sent("random", r, 1000, 5)])
    assert counts.sum() == 8000
    assert (np.abs(counts - 1600) < 5 * 36).all()  # five standard deviations
