"""One merge, three ways, the same bits: straight from the bytes, with torch, and with loops."""

from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from node.kernels.reference import subtract
from node.methods.parts import chunks, sparse_merge
from node.methods.parts.chunks import Layout
from node.methods.parts.sparse_codec import decode, encode
from node.methods.parts.sparse_merge import (
    COEFFICIENT_MAX,
    COEFFICIENT_MIN,
    SHARES_MAX,
    Term,
    merge,
    merge_on_cpu,
    merge_with_torch,
)
from node.methods.parts.sparsify import Selection
from tests.methods import sparse_twin as twin

CHECKS = settings(derandomize=True, deadline=None)
DTYPES = [torch.float32, torch.bfloat16]

Merge = Callable[[Sequence[Tensor], Sequence[Term], bool, int], None]

layouts = st.builds(
    Layout.of,
    st.lists(st.integers(0, 150), min_size=1, max_size=3),
    st.sampled_from([16, 23, 40]),
    st.integers(1, 16),
    st.sampled_from([1, 2]),
)
coefficients = st.one_of(
    st.floats(COEFFICIENT_MIN, 8.0),
    st.floats(-COEFFICIENT_MAX, -0.125),
    st.sampled_from([0.0, 1.0, COEFFICIENT_MAX]),
)
senders = st.lists(st.tuples(coefficients, st.integers(1, 900)), min_size=1, max_size=9)


def update_of(layout: Layout, selections: list[Selection], coefficient: float, share: int) -> Term:
    return Term(decode(layout, encode(layout, selections)), coefficient, share)


def random_terms(layout: Layout, senders: list[tuple[float, int]], seed: int) -> list[Term]:
    generator = torch.Generator().manual_seed(seed)
    return [
        update_of(
            layout,
            [twin.random_selection(t, generator, layout.symbol_bits) for t in layout.tensors],
            *sender,
        )
        for sender in senders
    ]


def random_weights(layout: Layout, dtype: torch.dtype, seed: int) -> list[Tensor]:
    """Ordinary numbers and random bit patterns: all magnitudes, infinities and NaNs."""
    generator = torch.Generator().manual_seed(seed)
    word = torch.int32 if dtype == torch.float32 else torch.int16
    info = torch.iinfo(word)
    weights = []
    for tensor in layout.tensors:
        shape = (tensor.size,)
        patterns = torch.randint(info.min, info.max, shape, generator=generator).to(word)
        ordinary = torch.randn(shape, generator=generator).to(dtype)
        odd = torch.arange(tensor.size) % 3 == 1
        weights.append(torch.where(odd, patterns.view(dtype), ordinary))
    return weights


def twin_merge(weights: list[Tensor], terms: list[Term], mean: bool, noise_key: int) -> None:
    """With the loops of `sparse_twin`; bf16 is rounded by the reference kernel."""
    layout = terms[0].update.layout
    for number, tensor in enumerate(weights):
        sent = [(values_of(term, number), term.coefficient, term.share) for term in terms]
        change = twin.summed(len(tensor), sent, mean)
        if tensor.dtype == torch.float32:
            tensor.copy_(torch.from_numpy(twin.moved(tensor.numpy(), change)))
        else:
            subtract(tensor, layout.offsets[number], torch.from_numpy(change), noise_key)


def values_of(term: Term, number: int) -> twin.Values:
    layout, part = term.update.layout, term.update.tensors[number]
    selection = Selection(
        torch.from_numpy(sparse_merge.positions_of(term.update, number)),
        torch.from_numpy(sparse_merge.symbols_of(term.update, number)),
        part.low,
        part.high,
    )
    assert layout.tensors[number].kept == len(selection.positions)
    return twin.values_of(selection)


def bits(weights: Sequence[Tensor]) -> list[list[int]]:
    word = {2: torch.int16, 4: torch.int32}
    return [tensor.view(word[tensor.element_size()]).flatten().tolist() for tensor in weights]


def copies(weights: list[Tensor]) -> list[Tensor]:
    return [tensor.clone() for tensor in weights]


@CHECKS
@given(
    layouts,
    senders,
    st.booleans(),
    st.sampled_from(DTYPES),
    st.integers(0, 2**63),
    st.sampled_from([1, 50, 2**20]),
)
def test_all_ways_give_the_same_bits(
    layout: Layout,
    senders: list[tuple[float, int]],
    mean: bool,
    dtype: torch.dtype,
    seed: int,
    span: int,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "SPAN_ELEMENTS", span)
        terms = random_terms(layout, senders, seed)
        weights = random_weights(layout, dtype, seed)
        fused, plain, slow = copies(weights), copies(weights), copies(weights)
        merge_on_cpu(fused, terms, mean, seed)
    merge_with_torch(plain, terms, mean, seed)
    twin_merge(slow, terms, mean, seed)
    assert bits(fused) == bits(slow)
    assert bits(plain) == bits(slow)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 3])
def test_several_large_spans(dtype: torch.dtype, threads: int) -> None:
    """More than two spans of a million elements, on any number of threads."""
    layout = Layout.of([2**21 + 4097, 5])
    terms = random_terms(layout, [(0.7, 3), (-0.1, 1)], 1)
    weights = random_weights(layout, dtype, 1)
    before, fused, plain = torch.get_num_threads(), copies(weights), copies(weights)
    try:
        torch.set_num_threads(threads)
        merge_on_cpu(fused, terms, True, 5)
    finally:
        torch.set_num_threads(before)
    merge_with_torch(plain, terms, True, 5)
    word = torch.int32 if dtype == torch.float32 else torch.int16
    for a, b in zip(fused, plain, strict=True):
        assert torch.equal(a.view(word), b.view(word))


def one_value(low: float, high: float, symbol: int) -> list[Selection]:
    return [Selection(torch.tensor([0]), torch.tensor([symbol], dtype=torch.uint8), low, high)]


ways = pytest.mark.parametrize("way", [merge, merge_on_cpu, merge_with_torch])
ONE = Layout.of([1])


@settings(CHECKS, max_examples=300)
@given(st.floats(COEFFICIENT_MIN, COEFFICIENT_MAX), st.integers(0x2680, 0x4680))
def test_an_addend_is_rounded_once(coefficient: float, pattern: int) -> None:
    """Against the exact product of the float32 coefficient and the magnitude."""
    magnitude = float(np.uint32(pattern << 16).view(np.float32))
    weights = [torch.zeros(1)]
    merge(weights, [update_of(ONE, one_value(magnitude, magnitude, 0), coefficient, 1)], False, 0)
    exact = Fraction(float(np.float32(coefficient))) * Fraction(magnitude)
    found = np.float32(-weights[0].item())
    above, below = np.nextafter(found, np.float32(np.inf)), np.nextafter(found, np.float32(0))
    error = abs(Fraction(float(found)) - exact)
    assert all(error <= abs(Fraction(float(other)) - exact) for other in (above, below))


@ways
def test_a_sum_and_a_mean_over_senders(way: Merge) -> None:
    """By hand: two senders meet at element 0, one alone sends element 2, nobody element 1."""
    layout = Layout.of([3], chunk=3, k=2)
    symbols = torch.tensor([2, 3], dtype=torch.uint8)
    first = Selection(torch.tensor([0, 2]), symbols, 0.5, 2.0)
    second = Selection(torch.tensor([0, 1]), torch.tensor([1, 0], dtype=torch.uint8), 0.0, 4.0)
    terms = [update_of(layout, [first], 0.5, 1), update_of(layout, [second], 3.0, 3)]
    summed, averaged = [torch.ones(3)], [torch.ones(3)]
    way(summed, terms, False, 0)
    way(averaged, terms, True, 0)
    assert summed[0].tolist() == [0.0, 1.0, 2.0]
    assert averaged[0].tolist() == [0.75, 1.0, 2.0]


@ways
def test_the_order_is_the_callers(way: Merge) -> None:
    """1 + 2^-24 + 2^-24 in float32 is 1 from the left, and more from the right."""
    terms = [update_of(ONE, one_value(m, m, 1), 1.0, 1) for m in (1.0, 2.0**-24, 2.0**-24)]
    forward, backward = [torch.zeros(1)], [torch.zeros(1)]
    way(forward, terms, False, 0)
    way(backward, terms[::-1], False, 0)
    assert forward[0].item() == 1.0
    assert backward[0].item() == 1.0 + 2.0**-23


@ways
def test_zeros_and_nans(way: Merge) -> None:
    """Nothing sent leaves a weight as it is, -0 included; a NaN gets the one pattern."""
    layout = Layout.of([4], chunk=4, k=1)
    weights = [torch.tensor([-0.0, 5.0, -0.0, float("nan")])]
    weights[0].view(torch.int32)[3] = 0x7F800001
    selection = Selection(torch.tensor([2]), torch.tensor([1], dtype=torch.uint8), 0.0, 1.0)
    way(weights, [update_of(layout, [selection], 1.0, 1)], True, 0)
    assert bits(weights) == [[-(2**31), 0x40A00000, -(2**31), 0x7FC00000]]


@ways
def test_without_terms_nothing_happens(way: Merge) -> None:
    weights = [torch.full((1,), float("nan"))]
    weights[0].view(torch.int32)[0] = 0x7F800001
    way(weights, [], True, 0)
    assert bits(weights) == [[0x7F800001]]


@ways
@pytest.mark.parametrize(
    ("weights", "coefficient", "share", "message"),
    [
        (torch.ones(1), float("nan"), 1, "coefficient nan"),
        (torch.ones(1), float("inf"), 1, "coefficient inf"),
        (torch.ones(1), COEFFICIENT_MAX * 1.01, 1, "coefficient"),
        (torch.ones(1), -COEFFICIENT_MIN * 0.99, 1, "coefficient"),
        (torch.ones(1), 1.0, 0, "shares"),
        (torch.ones(1), 1.0, SHARES_MAX + 1, "shares"),
        (torch.ones(2), 1.0, 1, "sizes"),
        (torch.ones(1, dtype=torch.float64), 1.0, 1, "fp32 or bf16"),
        (torch.ones(1, dtype=torch.float16), 1.0, 1, "fp32 or bf16"),
    ],
)
def test_what_does_not_fit_is_refused(
    way: Merge, weights: Tensor, coefficient: float, share: int, message: str
) -> None:
    good = update_of(ONE, one_value(1.0, 1.0, 0), 1.0, 1)
    bad = Term(good.update, coefficient, share)
    with pytest.raises(ValueError, match=message):
        way([weights], [good, bad], True, 0)
    assert weights.eq(1).all()


@ways
def test_layouts_and_numbers_that_differ_are_refused(way: Merge) -> None:
    good = update_of(ONE, one_value(1.0, 1.0, 0), 1.0, 1)
    other = Layout.of([1], chunk=8, k=1)
    odd = update_of(other, one_value(1.0, 1.0, 0), 1.0, 1)
    with pytest.raises(ValueError, match="different layouts"):
        way([torch.ones(1)], [good, odd], True, 0)
    with pytest.raises(ValueError, match="257 updates"):
        way([torch.ones(1)], [good] * 257, True, 0)
    with pytest.raises(ValueError, match="sizes"):
        way([torch.ones(1), torch.ones(1)], [good], True, 0)
    pair = update_of(Layout.of([2], chunk=2, k=1), one_value(1.0, 1.0, 0), 1.0, 1)
    with pytest.raises(ValueError, match="contiguous"):
        way([torch.ones(4)[::2]], [pair], True, 0)
