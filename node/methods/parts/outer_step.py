"""The exact outer step of dense methods: the same bits on every machine, from the same bytes.

    d <- sum over senders r, in order, of c_r * Delta_r
    m <- mu * m + d                                         within +-limit, if there is one
    theta <- theta - rate * (d + mu * m)                    Nesterov's momentum, as PyTorch has it

Every line is elementwise, in the order that is written here, each operation by itself and rounded
to nearest in float32; c, mu, rate and limit are rounded to float32 first. Nothing is fused, and no
product is subnormal for long: what is below TINY in magnitude after a product becomes +0, because
some devices flush subnormal numbers and others do not. Sums of the rest are multiples of 2^-123.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Final

import numpy as np
import torch
from torch import Tensor

from node.methods.parts.dense_codec import DenseUpdate

TINY: Final = 2.0**-100


def outer_step(
    theta: Tensor,  # (size,) float32, changed
    momentum: Tensor | None,  # the same, changed; None: plain gradient descent
    updates: Sequence[DenseUpdate],  # in the order in which all peers add them
    shares: Sequence[Fraction],  # c_r; they sum to 1 at most
    rate: Fraction,
    mu: Fraction,
    limit: Fraction | None = None,  # of a momentum's magnitude
) -> None:
    """In place, one tensor of the layout after the other. Without updates nothing happens."""
    if not updates:
        return
    sizes = list(updates[0].layout.sizes)
    decoded: list[Iterator[Tensor]] = [update.values(theta.device) for update in updates]
    momenta = [None] * len(sizes) if momentum is None else torch.split(momentum, sizes)
    for weights, m in zip(torch.split(theta, sizes), momenta, strict=True):
        total = torch.zeros_like(weights)
        for values, share in zip(decoded, shares, strict=True):
            total += _scaled(next(values), share)
        if m is not None:
            _scaled(m, mu)
            m += total
            if limit is not None:
                m.clamp_(-_float32(limit), _float32(limit))
            total += _scaled(m.clone(), mu)
        weights -= _scaled(total, rate)


def descend(
    theta: Tensor,  # (size,) float32, changed
    direction: Tensor,  # the same; stays as it is
    rate: Fraction,
) -> None:
    """theta <- theta - rate * direction, by the same rules."""
    theta -= _scaled(direction.clone(), rate)


def _scaled(values: Tensor, factor: Fraction) -> Tensor:
    """In place: times a number that float32 holds."""
    values *= _float32(factor)
    return values.masked_fill_(values.abs() < TINY, 0.0)


def _float32(value: Fraction) -> float:
    return float(np.float32(float(value)))
