"""The largest of each chunk, as signs and two magnitudes; and error feedback that loses nothing."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from node.errors import DivergedError
from node.methods.parts.chunks import TensorChunks
from node.methods.parts.sparsify import (
    MAGNITUDE_MAX,
    MAGNITUDE_MIN,
    Selection,
    largest,
    select,
    two_classes,
)
from tests.methods import sparse_twin as twin
from tests.methods.sparse_twin import take_off

CHECKS = settings(derandomize=True, deadline=None)

numbers = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0**-149, -(2.0**-127), 3e38, -3e38]),
)
tensors = st.builds(TensorChunks, st.integers(0, 90), st.just(20), st.integers(1, 20))


def gaussian(size: int, seed: int = 1) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


@CHECKS
@given(tensors, st.integers(0, 2**32))
def test_the_largest_of_each_chunk(tensor: TensorChunks, seed: int) -> None:
    values = gaussian(tensor.size, seed)
    expected = []
    for number, (length, kept) in enumerate(twin.chunk_lengths(tensor)):
        start = number * tensor.chunk
        places = range(start, start + length)
        expected += sorted(sorted(places, key=lambda p: -abs(float(values[p])))[:kept])
    assert largest(values, tensor).tolist() == expected


@CHECKS
@given(tensors, st.data(), st.sampled_from([1, 2]))
def test_whatever_is_selected_can_travel(
    tensor: TensorChunks, data: st.DataObject, bits: int
) -> None:
    """Ties, zeros, subnormal and huge numbers among them."""
    values = torch.tensor(data.draw(st.lists(numbers, min_size=90, max_size=90)))[: tensor.size]
    selection = select("t", values, tensor, bits)
    check(selection, tensor, bits)
    signs = selection.decoded * values[selection.positions]
    assert bool((signs >= 0).all()), "no value changes its sign"
    before = values.double().square().sum()
    take_off(values, selection)
    assert values.double().square().sum() <= before, "error feedback contracts"


def check(selection: Selection, tensor: TensorChunks, bits: int) -> None:
    assert selection.positions.shape == selection.symbols.shape == (tensor.kept,)
    twin.gaps_of_chunks(tensor, selection.positions.tolist())
    assert 0 <= selection.low <= selection.high <= MAGNITUDE_MAX
    for magnitude in (selection.low, selection.high):
        assert magnitude == 0 or magnitude >= MAGNITUDE_MIN
        assert float(torch.tensor(magnitude).bfloat16()) == magnitude
    assert all(symbol < 2**bits for symbol in selection.symbols.tolist())
    assert bits == 2 or selection.low == selection.high


def test_two_magnitudes_that_fit_are_exact() -> None:
    values = torch.tensor([0.5, -2.0, 0.5, 2.0, -0.5, 0.001, 0.0, -0.001])
    selection = select("t", values, TensorChunks(8, 8, 5))
    assert (selection.low, selection.high) == (0.5, 2.0)
    assert selection.positions.tolist() == [0, 1, 2, 3, 4]
    assert selection.symbols.tolist() == [0, 3, 0, 2, 1]
    take_off(values, selection)
    assert values.tolist() == pytest.approx([0.0] * 5 + [0.001, 0.0, -0.001])


def test_one_bit_is_the_sign_and_the_mean() -> None:
    selection = select("t", torch.tensor([1.0, -2.0, 3.0, 0.0]), TensorChunks(4, 4, 3), 1)
    assert (selection.low, selection.high) == (2.0, 2.0)
    assert selection.symbols.tolist() == [0, 1, 0]
    assert selection.decoded.tolist() == [2.0, -2.0, 2.0]


@pytest.mark.parametrize("value", [0.0, -0.0, 2.0**-60, -(2.0**-149)])
def test_what_is_too_small_to_travel_stays(value: float) -> None:
    values = torch.full((50,), value)
    selection = select("t", values, TensorChunks(50, 20, 3))
    assert (selection.low, selection.high) == (0.0, 0.0)
    assert selection.decoded.abs().tolist() == [0.0] * 8
    take_off(values, selection)
    assert values.tolist() == [value] * 50


def test_what_is_too_large_to_travel_goes_in_parts() -> None:
    values = torch.full((20,), -3e38)
    selection = select("t", values, TensorChunks(20, 20, 20))
    assert selection.decoded.tolist() == [-MAGNITUDE_MAX] * 20


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 19, 20, 45, 90])
def test_a_diverged_tensor_is_named(bad: float, place: int) -> None:
    """Wherever it is, even when larger numbers fill the chunk and only one is kept."""
    values = torch.full((91,), 3e38)
    values[place] = bad
    for k in (1, 5):
        with pytest.raises(DivergedError, match=r"layers\.0\.weight"):
            select("layers.0.weight", values, TensorChunks(91, 20, k))


def test_two_bits_keep_most_of_the_top_of_a_gaussian() -> None:
    """Two magnitudes leave 6.8 percent of the length, one 11.4."""
    values = gaussian(64 * 4096)
    tensor = TensorChunks(values.numel(), 4096, 64)
    errors = []
    for bits in (2, 1):
        selection = select("t", values, tensor, bits)
        kept = values[selection.positions]
        errors.append(float((kept - selection.decoded).norm() / kept.norm()))
    assert errors[0] == pytest.approx(0.068, abs=0.002)
    assert errors[1] == pytest.approx(0.114, abs=0.002)


def test_classes_meet_in_the_middle_of_their_means() -> None:
    magnitudes = gaussian(10_000).abs()
    low, high, above = two_classes(magnitudes)
    border = (low + high) / 2
    assert float(magnitudes[above].min()) == pytest.approx(border, rel=0.02)
    assert float(magnitudes[~above].max()) == pytest.approx(border, rel=0.02)


def test_what_is_sent_and_what_is_left_add_up() -> None:
    """The same change each round: after all rounds, nothing of it is lost."""
    change, left = gaussian(5000), torch.zeros(5000)
    sent = torch.zeros(5000, dtype=torch.float64)
    tensor = TensorChunks(5000, 512, 16)
    for _ in range(100):
        left += change
        selection = select("t", left, tensor)
        take_off(left, selection)
        sent[selection.positions] += selection.decoded.double()
    assert torch.allclose(sent + left, 100 * change.double(), rtol=1e-4, atol=1e-3)
