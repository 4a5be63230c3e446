"""One outer step, two ways, the same bits: straight from the bytes, and with torch."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from node.kernels.threads import Threads
from node.methods.parts import dense_layout, outer_step
from node.methods.parts.dense_codec import DenseUpdate, decode, encode
from node.methods.parts.dense_layout import BLOCK, Bits, DenseLayout
from node.methods.parts.fragments import cut
from node.methods.parts.outer_step import (
    TINY,
    descend_on_cpu,
    descend_with_torch,
    step_on_cpu,
    step_with_torch,
)

Floats = NDArray[np.float32]

CHECKS = settings(derandomize=True, deadline=None)
BITS: tuple[Bits, ...] = (32, 16, 8, 4)

layouts = st.builds(
    DenseLayout,
    st.lists(
        st.sampled_from([0, 1, 5, 255, 256, 257, 1000, BLOCK, BLOCK + 3]), min_size=1, max_size=3
    ).map(tuple),
    st.sampled_from(BITS),
)
factors = st.one_of(
    st.fractions(Fraction(1, 1000), 1),
    st.sampled_from([Fraction(0), Fraction(1), Fraction(1, 3), Fraction(2, 3)]),
    # So small that products come to lie about TINY, or below all that float32 holds.
    st.sampled_from(
        [Fraction(3, 2**57), Fraction(1, 2**98), Fraction(1, 2**120), Fraction(1, 2**160)]
    ),
)
limits = st.one_of(
    st.none(), st.sampled_from([Fraction(1, 500), Fraction(1, 10**9), Fraction(1), Fraction(10**6)])
)


def numbers(size: int, seed: int) -> Tensor:
    """Ordinary ones, powers of two, zeros of both signs, and any bits at all: subnormal numbers,
    infinities and NaNs among them.
    """
    drawn = np.random.default_rng(seed)
    patterns = drawn.integers(-(2**31), 2**31, size).astype(np.int32).view(np.float32)
    powers = (2.0 ** drawn.integers(-149, 128, size).astype(np.float64)).astype(np.float32)
    ordinary = drawn.standard_normal(size).astype(np.float32)
    zeros = np.zeros(size, np.float32)
    chosen = drawn.choice(5, size, p=[0.7, 0.1, 0.05, 0.05, 0.1])
    which = [chosen == kind for kind in range(5)]
    return torch.from_numpy(np.select(which, [ordinary, powers, zeros, -zeros, patterns]))


def update(layout: DenseLayout, seed: int) -> DenseUpdate:
    """Blocks of all magnitudes that may travel, and zeros."""
    drawn = np.random.default_rng(seed)
    tensors = []
    for size in layout.sizes:
        values = drawn.standard_normal(size) * 2.0 ** drawn.integers(-52, 16)
        values[drawn.random(size) < 0.2] = 0
        values[drawn.random(size) < 0.1] *= 2.0 ** drawn.integers(-8, 8)
        tensors.append(torch.from_numpy(values.astype(np.float32)))
    return decode(layout, encode(layout, tensors))


def bits(tensor: Tensor) -> list[int]:
    found: list[int] = tensor.view(torch.int32).tolist()
    return found


def stepped(step: Callable[..., None], theta: Tensor, m: Tensor | None, *rest: object) -> object:
    at, mine = theta.clone(), None if m is None else m.clone()
    step(at, mine, *rest)
    return bits(at), None if mine is None else bits(mine)


@CHECKS
@given(
    layouts,
    st.lists(factors, min_size=1, max_size=9),
    st.booleans(),
    factors,
    factors,
    limits,
    st.integers(0, 2**32),
)
def test_both_ways_give_the_same_bits(
    layout: DenseLayout,
    shares: list[Fraction],
    has_momentum: bool,
    rate: Fraction,
    mu: Fraction,
    limit: Fraction | None,
    seed: int,
) -> None:
    """P1"""
    size = sum(layout.sizes)
    theta, m = numbers(size, seed), numbers(size, seed + 1) if has_momentum else None
    updates = [update(layout, seed + 2 + i) for i in range(len(shares))]
    rest = (updates, shares, rate, mu, limit)
    assert stepped(step_on_cpu, theta, m, *rest) == stepped(step_with_torch, theta, m, *rest)


@CHECKS
@given(st.integers(0, 3000), factors, st.integers(0, 2**32))
def test_both_ways_descend_to_the_same_bits(size: int, rate: Fraction, seed: int) -> None:
    theta, direction = numbers(size, seed), numbers(size, seed + 1)
    other, before = theta.clone(), direction.clone()
    descend_on_cpu(theta, direction, rate)
    descend_with_torch(other, direction, rate)
    assert bits(theta) == bits(other)
    assert bits(direction) == bits(before)


@pytest.mark.parametrize("width", BITS)
def test_every_product_is_rounded_by_itself(width: Bits) -> None:
    """With one rounding for a product and its sum, each line would come out otherwise."""
    layout = DenseLayout((1000,), width)
    theta, m, *sent = torch.randn((7, 1000), generator=torch.Generator().manual_seed(1))
    updates = [decode(layout, encode(layout, [values])) for values in sent]
    shares, rate, mu = [Fraction(i, 21) for i in range(2, 7)], Fraction(7, 10), Fraction(9, 10)
    f32 = np.float32
    decoded = [next(u.values(torch.device("cpu"))).numpy() for u in updates]

    def walk(fused: frozenset[str]) -> tuple[list[int], list[int]]:
        def times(name: str, values: Floats, factor: Fraction) -> NDArray[np.float64]:
            exact = values.astype(np.float64) * np.float64(f32(float(factor)))
            return exact if name in fused else exact.astype(f32).astype(np.float64)

        total = np.zeros(1000, f32)
        for values, share in zip(decoded, shares, strict=True):
            total = (total + times("share", values, share)).astype(f32)
        at_m = (total + times("decay", m.numpy(), mu)).astype(f32)
        total = (total + times("nesterov", at_m, mu)).astype(f32)
        at = (theta.numpy() - times("rate", total, rate)).astype(f32)
        return bits(torch.from_numpy(at)), bits(torch.from_numpy(at_m))

    found = stepped(step_on_cpu, theta, m, updates, shares, rate, mu, None)
    assert found == walk(frozenset())
    for name in ("share", "decay", "nesterov", "rate"):
        assert found != walk(frozenset([name])), f"{name}: these numbers cannot tell"


@pytest.mark.parametrize("step", [step_on_cpu, step_with_torch])
def test_a_product_below_tiny_is_nothing_and_one_at_it_is_kept(step: Callable[..., None]) -> None:
    """Each width sends the largest, a quarter of it, and nothing, exactly."""
    for width, halvings in product(BITS, range(98, 102)):
        layout = DenseLayout((3,), width)
        sent = [127.0, 0.0, -127.0] if width == 8 else [1.0, -0.25, 0.0]
        one = decode(layout, encode(layout, [torch.tensor(sent)]))
        theta, m, share = torch.zeros(3), torch.zeros(3), Fraction(1, 2**halvings)
        step(theta, m, [one], [share], Fraction(1), Fraction(0))
        products = [value * 2.0**-halvings for value in sent]
        assert m.tolist() == [p if abs(p) >= TINY else 0.0 for p in products]
        assert not m[m == 0].signbit().any()


@pytest.mark.parametrize("width", BITS)
def test_fragments_are_stepped_by_themselves(width: Bits) -> None:
    """Each where it lies, and what lies around it stays."""
    sizes = [7, 300, BLOCK + 1, 0, 90]
    theta, m = numbers(sum(sizes), 1), numbers(sum(sizes), 2)
    for part in cut(sizes, 3):
        layout = DenseLayout(part.sizes, width)
        rest = ([update(layout, 5)], [Fraction(1, 3)], Fraction(1, 2), Fraction(3, 5))
        whole, momentum = theta.clone(), m.clone()
        step_on_cpu(whole[part.elements], momentum[part.elements], *rest)
        step_with_torch(theta[part.elements], m[part.elements], *rest)
        assert bits(whole) == bits(theta)
        assert bits(momentum) == bits(m)


@pytest.mark.parametrize("width", BITS)
@pytest.mark.parametrize("threads", [1, 3])
def test_spans_and_threads_change_nothing(
    width: Bits, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = DenseLayout((3 * BLOCK + 5, 0, 1, 2 * BLOCK), width)
    size = sum(layout.sizes)
    theta, m, direction = numbers(size, 1), numbers(size, 2), numbers(size, 3)
    rest = (
        [update(layout, i) for i in range(3)],
        [Fraction(1, 3)] * 3,
        Fraction(1, 2),
        Fraction(1, 3),
    )
    wanted = stepped(step_with_torch, theta, m, *rest)
    other = theta.clone()
    descend_with_torch(other, direction, Fraction(1, 3))
    monkeypatch.setattr(dense_layout, "SPAN", BLOCK)
    monkeypatch.setattr(outer_step, "SPAN", BLOCK + 1)
    monkeypatch.setattr(outer_step, "THREADS", Threads(threads))
    assert stepped(step_on_cpu, theta, m, *rest) == wanted
    descend_on_cpu(theta, direction, Fraction(1, 3))
    assert bits(theta) == bits(other)


@pytest.mark.parametrize("step", [step_on_cpu, step_with_torch, outer_step.outer_step])
def test_what_does_not_fit_changes_nothing(step: Callable[..., None]) -> None:
    layout = DenseLayout((300, 5), 8)
    one, short = update(layout, 1), update(DenseLayout((304,), 8), 1)
    cut_off = replace(one, data=one.data[:-1])
    theta, m, numbers_ = torch.ones(305), torch.ones(305), (Fraction(1), Fraction(1, 2))
    half = [Fraction(1, 2)]
    for args, why in [
        ((theta, m, [one], half * 2), "shares"),
        ((theta, m, [one, short], half * 2), "layouts"),
        ((theta, m, [cut_off], half), "layouts"),
        ((theta, m, [short], half), "304"),
        ((theta, m[:-1], [one], half), "304 numbers"),
        ((theta.double(), m, [one], half), "float32"),
        ((theta, torch.ones(610)[::2], [one], half), "float32"),
        ((theta.reshape(5, 61), m, [one], half), "float32"),
    ]:
        with pytest.raises(ValueError, match=why):
            step(*args, *numbers_)
    step(theta, m, [], [], *numbers_)
    assert theta.eq(1).all()
    assert m.eq(1).all()
