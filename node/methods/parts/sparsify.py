"""What of a tensor is sent: the largest elements of each chunk, each as a sign and a magnitude.

Top-k by magnitude in every chunk, then SparseLoCo's two bits a value ("Communication Efficient LLM
Pre-training with SparseLoCo", 2025) as a symmetric code: a sign, and one of two magnitudes that the
tensor shares. Of the largest 64 in 4096 of a Gaussian this leaves about half the squared error of
four bins around the mean, of which only two would fill (the values kept lie far from 0).

The magnitudes are the means of two classes of |v|, with the border between them where Lloyd's
iteration ("Least squares quantization in PCM", 1982) comes to rest. Sending class means never adds
to the squared error, so error feedback contracts, whatever the data. They are rounded to bf16
before they are used, because what error feedback takes off must be what everybody decodes.

Selecting need not agree between machines; positions and magnitudes travel.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from node.errors import DivergedError
from node.methods.parts.chunks import TensorChunks

# Magnitudes on the wire are 0 or within these. The upper one bounds what a stranger can do to the
# weights; the lower one keeps every sum of them away from subnormal numbers.
MAGNITUDE_MIN: Final = 2.0**-50
MAGNITUDE_MAX: Final = 2.0**14

_ITERATIONS: Final = 10  # the border moves by less than a percent after a handful
_SAMPLE: Final = 1 << 16  # magnitudes that decide where the border is; all of them make the means
_AT_ONCE: Final = 1 << 22  # elements ranked in one go: bounds the copy of magnitudes


@dataclass(frozen=True, slots=True)
class Selection:
    """What one tensor sends. `kept` values, in the order of their positions."""

    positions: Tensor  # (kept,) int64, of the flat tensor, rising
    symbols: Tensor  # (kept,) uint8: bit 0 set for a minus, bit 1 for the high magnitude
    low: float  # magnitudes that bf16 holds; low <= high
    high: float

    @property
    def decoded(self) -> Tensor:
        """(kept,) float32: the values as everybody decodes them."""
        values = [self.low, -self.low, self.high, -self.high]
        table = torch.tensor(values, dtype=torch.float32, device=self.symbols.device)
        return table[self.symbols.long()]


def select(
    name: str,  # of the tensor, for the error
    values: Tensor,  # (size,) float32: a flat tensor
    chunks: TensorChunks,
    symbol_bits: int = 2,
) -> Selection:
    """The largest of each chunk, quantised. With one bit there is one magnitude, the mean.

    Raises DivergedError when the values hold a NaN or an infinity.
    """
    assert values.dtype == torch.float32, values.dtype
    assert values.shape == (chunks.size,), values.shape
    positions = largest(values, chunks)
    kept = values[positions]
    # Top-k ranks infinities and NaNs first, so if there is one in a chunk, it is among the kept.
    if not bool(kept.isfinite().all()):
        raise DivergedError(name)
    low, high, above = two_classes(kept.abs()) if symbol_bits == 2 else one_class(kept.abs())
    symbols = (kept < 0).to(torch.uint8) + 2 * above.to(torch.uint8)
    return Selection(positions, symbols, low, high)


def largest(values: Tensor, chunks: TensorChunks) -> Tensor:
    """(kept,) int64: the positions of the largest magnitudes of each chunk, rising."""
    chunk, whole = chunks.chunk, chunks.size // chunks.chunk * chunks.chunk
    places = values.new_empty(chunks.kept, dtype=torch.int64)
    rows = places[: whole // chunk * chunks.k].view(-1, chunks.k)
    step = max(1, _AT_ONCE // chunk)
    magnitudes = values.new_empty(min(step * chunk, whole))
    for row in range(0, len(rows), step):
        part = values[row * chunk : min((row + step) * chunk, whole)]
        ranked = torch.abs(part, out=magnitudes[: len(part)]).view(-1, chunk)
        rows[row : row + step] = ranked.topk(chunks.k, dim=1, sorted=False).indices
    rows.copy_(rows.sort(dim=1).values)
    rows += torch.arange(0, whole, chunk, device=values.device)[:, None]
    if whole < chunks.size:
        last = values[whole:].abs().topk(chunks.kept_of_last, sorted=False).indices
        places[rows.numel() :] = last.sort().values + whole
    return places


def two_classes(magnitudes: Tensor) -> tuple[float, float, Tensor]:
    """(low, high, (kept,) bool: which belong to the high one) of finite, non-negative values."""
    above = magnitudes > _border(magnitudes[:: magnitudes.numel() // _SAMPLE + 1])
    low, high = _class_means(magnitudes, above)
    return to_magnitude(low), to_magnitude(high), above


def _border(magnitudes: Tensor) -> float:
    """Halfway between the means of the two classes that it parts, by Lloyd's iteration."""
    border = _sum(magnitudes) / max(magnitudes.numel(), 1)
    for _ in range(_ITERATIONS):
        before = border
        border = sum(_class_means(magnitudes, magnitudes > border)) / 2
        if border == before:
            break
    return border


def _class_means(magnitudes: Tensor, above: Tensor) -> tuple[float, float]:
    """The means of those not above and of those above; the mean of all where a class is empty."""
    total, count = _sum(magnitudes), magnitudes.numel()
    much, many = _sum(magnitudes * above), int(above.sum())
    if many in (0, count):
        mean = total / max(count, 1)
        return mean, mean
    return max(0.0, total - much) / (count - many), much / many


def one_class(magnitudes: Tensor) -> tuple[float, float, Tensor]:
    mean = to_magnitude(_sum(magnitudes) / max(magnitudes.numel(), 1))
    return mean, mean, torch.zeros_like(magnitudes, dtype=torch.bool)


def to_magnitude(value: float) -> float:
    """The nearest that may travel: bf16, bounded, and 0 for what is smaller than the least."""
    rounded = float(torch.tensor(min(value, MAGNITUDE_MAX)).bfloat16())
    return rounded if rounded >= MAGNITUDE_MIN else 0.0


def _sum(values: Tensor) -> float:
    return float(values.sum(dtype=torch.float64))
