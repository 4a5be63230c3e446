"""The exact merge of sparse updates: the same bits on every machine, from the same bytes.

    theta <- theta - sum over senders r, in order, of coefficient_r * value_r             (a sum)
    theta_i <- theta_i - (the same sum) / (sum of the shares of who sent element i)       (a mean)

A mean divides each element by those who sent it, weighted by their shares; a sum leaves that to the
coefficients. They are different algorithms: sparse updates seldom meet, so that a mean over
senders is up to as many times larger as there are senders.

Why it is exact:

* A tensor's values are at most four numbers, so each sender adds at most four. Each is rounded
  once: the coefficient is rounded to float32 (24 bits) first, a magnitude has 8 bits, so that their
  product fits the 53 bits of float64 exactly, and float32 takes the nearest, ties to even. That is
  plain IEEE arithmetic of Python and NumPy on the CPU, the same on every machine, whatever device
  the weights are on.
* Every element is summed from +0.0 in float32, in the order of the senders. Positions of one sender
  are unique, so no two additions meet. The loops hold no product, so nothing can be fused.
* Shares are integers with a sum up to 2^23: their float32 sums are exact. The division and the one
  subtraction round correctly, as IEEE demands.
* What is added is 0 or at least 2^-80, so sums are multiples of 2^-103, and quotients of them at
  least 2^-126: no subnormal numbers, which some devices flush to 0. Nothing overflows: a sum stays
  below 256 * 2^20 * 2^14.
* bf16 weights are rounded stochastically and NaNs have one pattern, as `kernels.base` says.

Two ways to the same bits: `merge_on_cpu` decodes chunk by chunk and touches the weights once;
`merge_with_torch` is the obvious one, for any device.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from node.kernels import sparse
from node.kernels.cpu import array_of, rounding_noise
from node.kernels.reference import subtract
from node.methods.parts.chunks import Layout
from node.methods.parts.sparse_codec import THREADS, SparseUpdate, positions_of, symbols_of

Floats = NDArray[np.float32]

TERMS_MAX: Final = 256
COEFFICIENT_MIN: Final = 2.0**-30
COEFFICIENT_MAX: Final = 2.0**20
SHARES_MAX: Final = 1 << 23  # of all senders together


@dataclass(frozen=True, slots=True)
class Term:
    """One sender's part in a merge."""

    update: SparseUpdate
    coefficient: float  # 0, or its magnitude within COEFFICIENT_MIN..COEFFICIENT_MAX
    share: int = 1  # what it counts for in a mean over senders; at least 1


def merge(
    weights: Sequence[Tensor],  # fp32 or bf16, contiguous: one for each tensor of the layout
    terms: Sequence[Term],  # in the order in which all peers add them
    mean: bool,  # divide each element by the shares of those who sent it
    noise_key: int,  # drives the rounding of bf16 weights
) -> None:
    """In place. Without terms nothing happens.

    Raises ValueError, before anything has changed, for weights or terms that do not fit.
    """
    if all(tensor.device.type == "cpu" for tensor in weights):
        merge_on_cpu(weights, terms, mean, noise_key)
    else:
        merge_with_torch(weights, terms, mean, noise_key)


def merge_with_torch(
    weights: Sequence[Tensor], terms: Sequence[Term], mean: bool, noise_key: int
) -> None:
    """The obvious way, on any device."""
    layout = _checked(weights, terms)
    if layout is None:
        return
    for number, tensor in enumerate(weights):
        flat = tensor.detach().reshape(-1)
        sums = torch.zeros_like(flat, dtype=torch.float32)
        sent = torch.zeros_like(sums)
        for term in terms:
            positions = torch.from_numpy(positions_of(term.update, number)).to(flat.device)
            symbols = torch.from_numpy(symbols_of(term.update, number)).to(flat.device)
            addend = torch.from_numpy(_addends(term, number)).to(flat.device)
            sums[positions] += addend[symbols.long()]  # unique positions: none is lost
            sent[positions] += term.share
        if mean:
            sums /= torch.where(sent > 0, sent, 1.0)  # by a tensor: a scalar may be inverted first
        subtract(flat, layout.offsets[number], sums, noise_key)


def merge_on_cpu(
    weights: Sequence[Tensor], terms: Sequence[Term], mean: bool, noise_key: int
) -> None:
    """Straight from the bytes of all senders, chunk by chunk, with the weights read once."""
    layout = _checked(weights, terms)
    if layout is None:
        return
    shares = np.array([term.share for term in terms] if mean else [], np.float32)
    flat = [array_of(tensor.detach().reshape(-1)) for tensor in weights]
    addends = [np.stack([_addends(term, t) for term in terms]) for t in range(len(weights))]

    def work(place: tuple[int, int]) -> None:
        tensor, number = place
        chunks, span = layout.tensors[tensor], layout.spans[tensor][number]
        part = flat[tensor][span.start : span.start + span.size]
        data, cursors = _gathered(terms, tensor, number)
        shape = (chunks.chunk, chunks.k, span.kept, layout.symbol_bits)
        if part.dtype == np.float32:
            fault = sparse.merge_span32(part, data, cursors, addends[tensor], shares, *shape)
        else:
            noise = rounding_noise(noise_key, layout.offsets[tensor] + span.start, span.size)
            fault = sparse.merge_span16(part, data, cursors, addends[tensor], shares, *shape, noise)
        assert not fault, "the bytes have changed since they were checked"

    THREADS.map(work, [(t, s) for t in range(len(weights)) for s in range(len(layout.spans[t]))])


def _gathered(
    terms: Sequence[Term], tensor: int, number: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The bytes of one span from all senders, side by side, and a cursor for each.

    A small copy, so that one compiled loop serves any number of senders.
    """
    pieces: list[NDArray[np.uint8]] = []
    cursors = np.empty((len(terms), sparse.CURSOR), np.int64)
    at = 0
    for term, cursor in zip(terms, cursors, strict=True):
        bits = term.update.layout.symbol_bits
        span, part = term.update.layout.spans[tensor][number], term.update.tensors[tensor]
        first, last = span.first * bits, (span.first + span.kept) * bits
        symbols, stream = part.symbols[first // 8 : -(-last // 8)], part.streams[number]
        cursor[sparse.SYMBOL] = (8 * at + first % 8) // bits
        cursor[sparse.AT] = 8 * (at + len(symbols))
        cursor[sparse.END] = at = at + len(symbols) + len(stream)
        cursor[sparse.DIVISOR] = part.divisor
        pieces += [symbols, stream]
    return np.concatenate(pieces), cursors


def _addends(term: Term, tensor: int) -> Floats:
    """(4,) float32: what each symbol adds to the sum."""
    part = term.update.tensors[tensor]
    values = np.array([part.low, -part.low, part.high, -part.high], np.float64)
    return (np.float64(np.float32(term.coefficient)) * values).astype(np.float32)


def _checked(weights: Sequence[Tensor], terms: Sequence[Term]) -> Layout | None:
    """The layout that all terms share; None without terms. Raises ValueError."""
    if len(terms) > TERMS_MAX:
        raise ValueError(f"{len(terms)} updates to merge; at most {TERMS_MAX}")
    for term in terms:
        _check_coefficient(term.coefficient)
    if any(term.share < 1 for term in terms) or sum(term.share for term in terms) > SHARES_MAX:
        raise ValueError(f"shares are at least 1 and sum to at most {SHARES_MAX}")
    if not terms:
        return None
    layout = terms[0].update.layout
    if any(term.update.layout != layout for term in terms):
        raise ValueError("the updates have different layouts")
    if [tensor.numel() for tensor in weights] != [chunks.size for chunks in layout.tensors]:
        raise ValueError("the weights do not have the sizes that the updates are for")
    for tensor in weights:
        if tensor.dtype not in (torch.float32, torch.bfloat16) or not tensor.is_contiguous():
            raise ValueError(f"weights must be contiguous fp32 or bf16, not {tensor.dtype}")
    return layout


def _check_coefficient(value: float) -> None:
    if value == 0:
        return
    # Also false for a NaN. Rounding to float32 does not leave the bounds, which float32 holds.
    if not (math.isfinite(value) and COEFFICIENT_MIN <= abs(value) <= COEFFICIENT_MAX):
        raise ValueError(
            f"coefficient {value:g}: its magnitude is not within"
            f" {COEFFICIENT_MIN:g}..{COEFFICIENT_MAX:g}"
        )
