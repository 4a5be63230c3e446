"""The scalars that steer everyone: what one unit of a byte is worth, and how far a round moves the
weights.

All of them come from the ledger by integer and rational arithmetic, so every peer has the same
bits.
"""

import math
import random
from collections.abc import Sequence
from fractions import Fraction

from node.methods.parts.probes import BYTE_MAX

EXPONENT_MIN, EXPONENT_MAX = -40, 40  # a byte's unit is 2**exponent, in loss per unit of direction
STEP_BITS = 8  # significant bits of a step: then step * (sum of 256 bytes) is exact in float32
CALM_MIN, CALM_MAX = (
    12,
    32,
)  # mean |byte| between which the unit stays; a factor over 2 apart, so that it settles
CLIP_SHARE = 16  # more than one byte in this many at the limit: the unit is far too small
ENOUGH = 8  # probes; fewer say too little about the scale


def quantise(gradient: float, exponent: int, draw: random.Random) -> int:
    """A directional derivative as a byte, -127..127, rounded up or down at random so that its mean
    is right.

    Anything that is not finite becomes 0: one such number would poison every peer for good.
    """
    if not math.isfinite(gradient):
        return 0
    scaled = max(-BYTE_MAX, min(BYTE_MAX, math.ldexp(gradient, -exponent)))
    low = math.floor(scaled)
    return low + (draw.random() < scaled - low)


def recode(value: int, old_exponent: int, new_exponent: int) -> int:
    """A byte of one unit in another unit: nearest, ties to even, limited to +-127."""
    exact = Fraction(value) * _power_of_two(old_exponent - new_exponent)
    return max(-BYTE_MAX, min(BYTE_MAX, round(exact)))


def next_exponent(exponent: int, values: Sequence[int], low: int, high: int) -> int:
    """The unit for the next round, from the bytes of this one.

    Bytes much under the limit waste resolution, bytes at the limit are clipped and bias the step.
    The rule moves as many powers of two as the mean asks for; a clipped mean is only a lower bound,
    so then it moves at least two.
    """
    if len(values) < ENOUGH:
        return exponent
    total, shift = sum(abs(v) for v in values), 0
    if not total:
        shift = -1  # all abstained, or the unit is far too large: feel the way down
    elif total < CALM_MIN * len(values):
        while total << -shift < CALM_MIN * len(values):
            shift -= 1
    else:
        while total > CALM_MAX * len(values) << shift:
            shift += 1
    clipped = sum(abs(v) == BYTE_MAX for v in values)
    if clipped * CLIP_SHARE > len(values):
        shift = max(shift, 2)
    return max(low, min(high, exponent + shift))


def round_step(step: Fraction) -> Fraction:
    """The nearest number with 8 significant bits, ties to even; 0 stays 0."""
    if step <= 0:
        assert step == 0, "a step is not negative"
        return step
    # 2**shift brings the step into [128, 256).
    shift = STEP_BITS - (step.numerator.bit_length() - step.denominator.bit_length())
    while step * _power_of_two(shift) >= 1 << STEP_BITS:
        shift -= 1
    while step * _power_of_two(shift) < 1 << (STEP_BITS - 1):
        shift += 1
    return round(step * _power_of_two(shift)) * _power_of_two(-shift)


def exact_float(value: Fraction) -> float:
    """A fraction that a float holds exactly; asserts that it does."""
    result = float(value)
    assert Fraction(result) == value, value
    return result


def _power_of_two(exponent: int) -> Fraction:
    return Fraction(1 << exponent) if exponent >= 0 else Fraction(1, 1 << -exponent)
