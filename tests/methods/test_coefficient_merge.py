"""The exact merge of coefficients, against fractions."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from node.methods.parts.coefficient_merge import Sender, mean, move, multipliers, to_24_bits
from node.methods.parts.dct import COEFFICIENT_MAX
from node.methods.parts.outer_step import TINY
from node.methods.parts.sparsify import MAGNITUDE_MAX, MAGNITUDE_MIN
from node.methods.parts.tiles import Values
from node.methods.parts.token_weights import SHARE_MAX

GUARD = 16  # bits below the unit
CHECKS = settings(derandomize=True, deadline=None)


def sender(positions: list[int], symbols: list[int], scale: float = 1.0, share: int = 1) -> Sender:
    places, found = torch.tensor(positions), torch.tensor(symbols, dtype=torch.int8)
    return Sender(places.long(), found, scale, share)


def test_who_did_not_send_does_not_count() -> None:
    """METHODS C: two peers with disjoint indices: coefficients equal those sent, not halves."""
    senders = [sender([0, 3], [1, -1], share=5), sender([1], [1], share=2)]
    found = mean(4, senders, [100 << GUARD] * 2, True)
    assert found.tolist() == [100, 100, 0, -100]
    assert mean(4, senders, [100 << GUARD] * 2, False).tolist() == [71, 29, 0, -71]


def test_signs_are_weighed_by_shares() -> None:
    senders = [sender([0, 1], [1, 1], share=3), sender([0, 1], [-1, 1], share=1)]
    assert mean(2, senders, [32768 << GUARD] * 2, True).tolist() == [16384, 32768]
    assert mean(1, [sender([0], [1]), sender([0], [-1])], [7 << GUARD] * 2, True).tolist() == [0]


one_sender = st.tuples(
    st.lists(st.integers(-127, 127), min_size=6, max_size=6),
    st.sets(st.integers(0, 5)),
    st.integers(1, SHARE_MAX),
    st.floats(MAGNITUDE_MIN, MAGNITUDE_MAX),
)


@CHECKS
@given(st.lists(one_sender, min_size=1, max_size=5), st.booleans())
def test_the_mean_is_the_fraction_rounded(
    drawn: list[tuple[list[int], set[int], int, float]], by_senders: bool
) -> None:
    senders = [
        sender(sorted(places), [symbols[p] for p in sorted(places)], scale, share)
        for symbols, places, share, scale in drawn
    ]
    factors, exponent = multipliers([one.scale for one in senders], "int8", False)
    found = mean(6, senders, factors, by_senders).tolist()
    assert mean(6, senders[::-1], factors[::-1], by_senders).tolist() == found, "in any order"
    total = sum(one.share for one in senders)
    for place in range(6):
        those = [
            (one, factor, one.symbols[one.positions == place].item())
            for one, factor in zip(senders, factors, strict=True)
            if (one.positions == place).any()
        ]
        by = sum(one.share for one, _, _ in those) if by_senders else total
        exact = sum((Fraction(one.share * f) * int(q) for one, f, q in those), Fraction(0))
        exact /= (by or 1) << GUARD
        assert abs(found[place] - exact) <= Fraction(1, 2)
        assert abs(found[place]) <= COEFFICIENT_MAX
    for one, factor in zip(senders, factors, strict=True):
        assert abs(factor * 2.0 ** (exponent - GUARD) - one.scale) <= 2.0 ** (exponent - GUARD - 1)


@pytest.mark.parametrize(("values", "largest"), [("sign", 1), ("int8", 127)])
def test_the_extremes_fit(values: Values, largest: int) -> None:
    """P1: 256 senders of the largest shares and scales."""
    for scale in (MAGNITUDE_MIN, 1.0, 255 / 128, MAGNITUDE_MAX):
        factors, _ = multipliers([scale, MAGNITUDE_MIN], values, False)
        assert 0 <= factors[1] <= factors[0]
        assert COEFFICIENT_MAX // 4 < factors[0] * largest >> GUARD <= COEFFICIENT_MAX
        senders = [sender([0], [-largest], scale, SHARE_MAX)] * 256
        assert mean(1, senders, factors[:1] * 256, True).item() == -largest * factors[0] >> GUARD
    assert multipliers([0.0, 0.0], values, False)[0] == [0, 0]
    assert multipliers([0.5, 3.0], "sign", True) == ([1 << 31] * 2, -15)


@CHECKS
@given(
    st.floats(-100, 100, width=32),
    st.integers(-(2**51), 2**51),
    st.fractions(Fraction(1, 10**6), 1),
    st.fractions(0, 1),
    st.booleans(),
)
def test_weights_move_as_fractions_do(
    theta: float, along: int, step: Fraction, keep: Fraction, by_sign: bool
) -> None:
    """Both products are exact: one rounding to float64 and one to float32 are left."""
    step = step if by_sign else step / 2**51
    found = torch.tensor([theta])
    move(found, torch.tensor([float(along)], dtype=torch.float64), step, keep, by_sign)
    short = (along > 0) - (along < 0) if by_sign else int(torch.tensor(float(along)).item())
    exact = Fraction(theta) * Fraction(to_24_bits(keep)) - short * Fraction(to_24_bits(step))
    wanted = torch.tensor([float(exact)])
    assert found.item() == (wanted.item() if abs(wanted.item()) >= TINY else 0.0)


def test_what_moves_is_rounded_before_it_is_scaled() -> None:
    """P1: 2^24 + 1 is 2^24 in float32. So the product is exact, fused or not."""
    theta = torch.zeros(1)
    along = torch.tensor([2.0**24 + 1], dtype=torch.float64)
    move(theta, along, 1 + Fraction(1, 2**23), Fraction(1), False)
    assert theta.item() == -(2.0**24 + 2)


def test_nothing_moves_nothing() -> None:
    """sign(0) = 0; what decay makes tiny becomes +0."""
    theta = torch.tensor([0.25, -0.5, TINY, -TINY])
    move(theta, torch.zeros(4, dtype=torch.float64), Fraction(1, 8), Fraction(1, 2), True)
    assert theta.tolist() == [0.125, -0.25, 0.0, 0.0]
    assert not theta[2:].signbit().any()


def test_24_bits() -> None:
    for value in (Fraction(1, 3), Fraction(2, 10**15), Fraction(1000), Fraction(1, 2**80)):
        found = Fraction(to_24_bits(value))
        assert abs(found - value) <= value / 2**24
        assert found.numerator.bit_length() <= 24 or found.denominator == 1
    assert to_24_bits(Fraction(0)) == 0.0
    assert to_24_bits(Fraction(1)) == 1.0
