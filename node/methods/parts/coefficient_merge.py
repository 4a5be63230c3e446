"""The exact merge of coefficients: the same bits on every machine, from the same bytes.

Sender r has a share w_r, an integer, and sends symbols q (a sign, or -127..127) of a scale s_r:

    C_j = round( sum over senders r of j of  w_r * M_r * q_rj  /  (2^16 * D_j) )   whole numbers
    M_r = round( 2^16 * s_r / unit )   the unit is a power of two that the largest scale decides
    D_j = sum of w_r over those who sent j, or over all

Where the update is a sign and so are the symbols, each sender has one vote, whatever its scale:
M_r is one number for all. Then

    X = C, or its inverse transform                                           exact: `parts.dct`
    theta <- keep * theta - step * sign(X)             or     keep * theta - step * float32(X)

Why it is exact: C is made of 64-bit integers, w_r <= 2^15, |M_r * q| <= 2^31, at most 256 senders,
and divided with the halves away from 0; it is at most COEFFICIENT_MAX. In the last line
keep, step, theta and float32(X) have 24 bits, so both products are exact in float64, fused or not;
their difference is rounded to nearest in float64, and then to float32. What then is below TINY in
magnitude becomes +0, because some devices flush subnormal numbers and others do not.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import torch
from torch import Tensor

from node.methods.parts.outer_step import TINY
from node.methods.parts.tiles import Values

_GUARD: Final = 16  # bits of M_r below the unit, so that smaller scales keep theirs
_VOTE: Final = 15  # a vote is 2^15 units
# Bits of the largest scale, so that a symbol times a scale stays within COEFFICIENT_MAX.
_SCALE_BITS: Final[dict[Values, int]] = {"sign": 15, "int8": 8}


@dataclass(frozen=True, slots=True)
class Sender:
    """One sender's part of one tensor."""

    positions: Tensor  # (n,) int64, unique
    symbols: Tensor  # (n,) int8
    scale: float
    share: int  # at least 1


def multipliers(scales: Sequence[float], values: Values, votes: bool) -> tuple[list[int], int]:
    """(M_r of each scale, the exponent of the unit)."""
    if votes:
        return [1 << _VOTE + _GUARD for _ in scales], -_VOTE
    largest = max(scales, default=0.0)
    exponent = math.frexp(largest)[1] - _SCALE_BITS[values]
    return [round(math.ldexp(scale, _GUARD - exponent)) for scale in scales], exponent


def mean(
    size: int,
    senders: Sequence[Sender],  # at least one
    factors: Sequence[int],  # M_r
    by_senders: bool,  # divide by the shares of who sent it
) -> Tensor:
    """(size,) int64: C."""
    device = senders[0].positions.device
    sums = torch.zeros(size, dtype=torch.int64, device=device)
    sent = torch.zeros_like(sums) if by_senders else None
    for sender, factor in zip(senders, factors, strict=True):
        # Positions of one sender are unique, and integers come to the same in any order.
        sums[sender.positions] += sender.symbols.long() * (sender.share * factor)
        if sent is not None:
            sent[sender.positions] += sender.share
    total = sum(sender.share for sender in senders)
    by = (total if sent is None else torch.where(sent > 0, sent, 1)) << _GUARD
    rounded = torch.div(2 * sums.abs() + by, 2 * by, rounding_mode="floor")
    return sums.sign() * rounded


def move(
    theta: Tensor,  # (n,) float32, changed
    along: Tensor,  # (n,) float64: whole numbers X, below 2^53
    step: Fraction,  # for each unit of X, or for its sign
    keep: Fraction,  # what decay leaves of theta
    by_sign: bool,
) -> None:
    short = along.sign() if by_sign else along.float().double()
    moved = theta.double() * to_24_bits(keep)
    moved -= short * to_24_bits(step)
    theta.copy_(moved.masked_fill_(moved.abs() < TINY, 0.0))


def to_24_bits(value: Fraction) -> float:
    mantissa, exponent = math.frexp(float(value))
    return math.ldexp(round(mantissa * 2**24), exponent - 24)
