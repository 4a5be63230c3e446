"""The exact outer step of dense methods: the same bits on every machine, from the same bytes.

    d <- sum over senders r, in order, of c_r * Delta_r
    m <- mu * m + d                                         within +-limit, if there is one
    theta <- theta - rate * (d + mu * m)                    Nesterov's momentum, as PyTorch has it

Every line is elementwise, in the order that is written here, each operation by itself and rounded
to nearest in float32; c, mu, rate and limit are rounded to float32 first. Nothing is fused, and no
product is subnormal for long: what is below TINY in magnitude after a product becomes +0, because
some devices flush subnormal numbers and others do not. Sums of the rest are multiples of 2^-123.
NaNs have one pattern, as `kernels.base` says.

Two ways to the same bits: `step_on_cpu` decodes block by block and touches the weights once;
`step_with_torch` is the obvious one, for any device.
"""

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Final

import numpy as np
import torch
from torch import Tensor

from node.kernels import dense
from node.kernels.cpu import array_of
from node.methods.parts.dense_codec import THREADS, DenseUpdate
from node.methods.parts.dense_layout import BLOCK, SPAN, DenseLayout, Span

TINY: Final = 2.0**-100


def outer_step(
    theta: Tensor,  # (size,) float32, contiguous, changed
    momentum: Tensor | None,  # the same, changed; None: plain gradient descent
    updates: Sequence[DenseUpdate],  # in the order in which all peers add them
    shares: Sequence[Fraction],  # c_r; they sum to 1 at most
    rate: Fraction,
    mu: Fraction,
    limit: Fraction | None = None,  # of a momentum's magnitude
) -> None:
    """In place. Without updates nothing happens. Raises ValueError, before anything has changed,
    for tensors or updates that do not fit each other.
    """
    step = step_on_cpu if theta.device.type == "cpu" else step_with_torch
    step(theta, momentum, updates, shares, rate, mu, limit)


def step_with_torch(
    theta: Tensor,
    momentum: Tensor | None,
    updates: Sequence[DenseUpdate],
    shares: Sequence[Fraction],
    rate: Fraction,
    mu: Fraction,
    limit: Fraction | None = None,
) -> None:
    """The obvious way, on any device; one tensor of the layout after the other."""
    layout = _checked(theta, momentum, updates, shares)
    if layout is None:
        return
    sizes = list(layout.sizes)
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
            _one_nan(m)
            total += _scaled(m.clone(), mu)
        weights -= _scaled(total, rate)
        _one_nan(weights)


def step_on_cpu(
    theta: Tensor,
    momentum: Tensor | None,
    updates: Sequence[DenseUpdate],
    shares: Sequence[Fraction],
    rate: Fraction,
    mu: Fraction,
    limit: Fraction | None = None,
) -> None:
    """Straight from the bytes of all senders, with weights and momentum read and written once."""
    layout = _checked(theta, momentum, updates, shares)
    if layout is None:
        return
    weights = array_of(theta)
    m = np.empty(0, np.float32) if momentum is None else array_of(momentum)
    senders = np.array([update.data.ctypes.data for update in updates], np.int64)
    factors = np.array([_float32(share) for share in shares], np.float32)
    clip = math.inf if limit is None else _float32(limit)
    numbers = (_float32(rate), _float32(mu), clip, TINY)

    def work(span: Span) -> None:
        part = m[span.elements] if m.size else m
        places = (span.scales, span.values, layout.bits, BLOCK)
        dense.step_span(weights[span.elements], part, senders, factors, *places, *numbers)

    THREADS.map(work, layout.spans())


def descend(
    theta: Tensor,  # (size,) float32, contiguous, changed
    direction: Tensor,  # the same; stays as it is
    rate: Fraction,
) -> None:
    """theta <- theta - rate * direction, by the same rules."""
    step = descend_on_cpu if theta.device.type == "cpu" else descend_with_torch
    step(theta, direction, rate)


def descend_with_torch(theta: Tensor, direction: Tensor, rate: Fraction) -> None:
    theta -= _scaled(direction.clone(), rate)
    _one_nan(theta)


def descend_on_cpu(theta: Tensor, direction: Tensor, rate: Fraction) -> None:
    weights, along, factor = array_of(theta), array_of(direction), _float32(rate)
    assert weights.shape == along.shape
    parts = [slice(first, first + SPAN) for first in range(0, weights.size, SPAN)]
    THREADS.map(lambda part: dense.descend_span(weights[part], along[part], factor, TINY), parts)


def _checked(
    theta: Tensor,
    momentum: Tensor | None,
    updates: Sequence[DenseUpdate],
    shares: Sequence[Fraction],
) -> DenseLayout | None:
    """The layout that all updates share; None without any. Raises ValueError."""
    if len(updates) != len(shares):
        raise ValueError(f"{len(updates)} updates but {len(shares)} shares")
    if not updates:
        return None
    layout = updates[0].layout
    if any(update.layout != layout or update.data.size != layout.bytes for update in updates):
        raise ValueError("the updates have different layouts")
    for tensor in (theta, momentum):
        if tensor is None:
            continue
        if tensor.dtype != torch.float32 or tensor.dim() != 1 or not tensor.is_contiguous():
            raise ValueError(f"weights and momentum are flat float32, not {tensor.dtype}")
        if tensor.numel() != sum(layout.sizes):
            raise ValueError(f"{tensor.numel()} numbers, and updates for {sum(layout.sizes)}")
    return layout


def _scaled(values: Tensor, factor: Fraction) -> Tensor:
    """In place: times a number that float32 holds."""
    values *= _float32(factor)
    return values.masked_fill_(values.abs() < TINY, 0.0)


def _one_nan(values: Tensor) -> None:
    values.masked_fill_(values.isnan(), math.nan)


def _float32(value: Fraction) -> float:
    return float(np.float32(float(value)))
