"""The scalars that steer everyone."""

import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from node.methods.parts.schedule import Schedule
from node.methods.parts.units import next_exponent, quantise, recode, round_step

fractions = st.fractions(min_value=Fraction(1, 10**30), max_value=10**30)


@given(fractions)
def test_a_step_has_eight_bits_and_is_the_nearest(step: Fraction) -> None:
    rounded = round_step(step)
    odd = rounded.numerator * rounded.denominator  # one of them is a power of two
    while odd % 2 == 0:
        odd //= 2
    assert odd < 256
    assert abs(rounded - step) <= step / 256
    assert Fraction(float(rounded)) == rounded


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_becomes_zero(bad: float) -> None:
    assert quantise(bad, 0, random.Random(1)) == 0


def test_rounding_is_unbiased_and_clipped() -> None:
    draw = random.Random(3)
    mean = sum(quantise(0.3, 0, draw) for _ in range(20_000)) / 20_000
    assert mean == pytest.approx(0.3, abs=0.02)
    assert quantise(1e9, 0, draw) == 127
    assert quantise(-1e9, 0, draw) == -127


@given(st.integers(-127, 127), st.integers(-40, 40))
def test_recoding_keeps_the_value_where_it_fits(value: int, exponent: int) -> None:
    assert recode(value, exponent, exponent) == value
    assert abs(recode(value, exponent, exponent - 1)) == min(127, 2 * abs(value))
    assert abs(recode(value, exponent, exponent + 1) * 2 - value) <= 1


@pytest.mark.parametrize(
    ("size", "moved"),
    [(0, -1), (1, -4), (3, -2), (6, -1), (20, 0), (31, 0), (33, 1), (65, 2), (127, 2)],
)
def test_the_unit_moves_several_steps_at_once(size: int, moved: int) -> None:
    assert next_exponent(0, [size, -size] * 10, -40, 40) == moved


def test_the_unit_settles_and_stays_in_range() -> None:
    """The true scale is 2**9: the unit finds it from far away on either side and then rests."""
    for start in (-30, 30):
        exponent, draw = start, random.Random(5)
        seen = []
        for _ in range(80):
            values = [quantise(draw.gauss(0, 2.0**9), exponent, draw) for _ in range(100)]
            exponent = next_exponent(exponent, values, -40, 40)
            seen.append(exponent)
        assert len(set(seen[-10:])) == 1
        assert 3 <= seen[-1] <= 5
    assert next_exponent(40, [127] * 10, -40, 40) == 40
    assert next_exponent(0, [127] * 3, -40, 40) == 0, "too few to tell"


def test_schedules_are_exact_fractions() -> None:
    schedule = Schedule(peak="0.1", warmup_rounds=4, decay_rounds=10, final_share="0.2")
    assert schedule.rate(0) == Fraction(1, 40)
    assert schedule.rate(4) == Fraction(1, 10)
    assert schedule.rate(9) == Fraction(1, 10) * Fraction(6, 10)
    assert schedule.rate(14) == schedule.rate(10**9) == Fraction(1, 50)
    assert Schedule.model_validate({"peak": 0.1}) == Schedule(peak="0.1")
    assert Schedule(peak="1e-3").rate(5) == Fraction(1, 1000)


@pytest.mark.parametrize("peak", ["0", "-1", "nan", "1e9", "x"])
def test_rates_that_make_no_sense_are_refused(peak: str) -> None:
    with pytest.raises(ValidationError):
        Schedule(peak=peak)
