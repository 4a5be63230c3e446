"""FedKSeed: all directions come from a fixed pool of K, so the whole model is K integers.

*Federated Full-Parameter Tuning of Billion-Sized Language Models with Communication Cost under 18
Kilobytes*, https://arxiv.org/abs/2312.06353. At any round

    theta = theta_0 - quantum * sum_k A_k s_k

where A_k adds up `multiplier * byte` over every probe that tried direction k, and the round's
learning rate, unit and number of probes are folded into the integer `multiplier`. Integers add in
any order, so a model that is rebuilt from A equals one that followed every round, bit for bit.

FedKSeed-Pro draws a direction with probability softmax(minmax(mean |gradient|)), so no direction is
more than e times likelier than another. Here that softmax is a table of integers, the same on every
peer, and a hash of (round, peer, probe) draws from it: nothing about the choice is sent.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from node.methods.parts import seeds
from node.methods.parts.probes import BYTE_MAX

QUANTUM_BITS = 24  # a first step is 2**24 quanta for one probe, 2**12 for 4096: finer than a byte
SHIFT_MAX = 12  # a pooled run's unit stays within 2**+-12 of the first one: bounds the integers
_CHUNK = 1 << 20  # elements in float64 at a time
_ONE = 1 << 16  # fixed point of the probabilities

Ints = npt.NDArray[np.int64]


@dataclass(slots=True)
class Pool:
    """The replicated state of a pooled run, and how it draws."""

    run: bytes
    significance: bool  # FedKSeed-Pro; else uniform
    accumulators: Ints  # (K,) A_k
    magnitudes: Ints  # (K,) sum of |byte|, in the smallest unit of the run
    counts: Ints  # (K,) probes that tried each direction

    @staticmethod
    def empty(run: bytes, size: int, significance: bool) -> "Pool":
        def zeros() -> Ints:
            return np.zeros(size, dtype=np.int64)

        return Pool(run, significance, zeros(), zeros(), zeros())

    @property
    def size(self) -> int:
        return len(self.accumulators)

    def keys(self) -> tuple[list[int], list[int]]:
        """Keys and accumulators of every direction that moved the model, ascending."""
        moved = np.flatnonzero(self.accumulators).tolist()
        return [self.key(k) for k in moved], self.accumulators[moved].tolist()

    def key(self, index: int) -> int:
        return seeds.pool_key(self.run, index)

    def chooser(self) -> "Chooser":
        """How this round draws. It must be taken before the round merges."""
        weights = significance(self.magnitudes, self.counts) if self.significance else None
        edges = np.arange(1, self.size + 1) if weights is None else np.cumsum(weights)
        return Chooser(self.run, edges.astype(np.int64))

    def add(self, index: int, value: int, multiplier: int, shift: int) -> int:
        """Count one probe; returns what it adds to A_k. `shift` is the unit's exponent above the
        smallest.
        """
        change = value * multiplier
        self.accumulators[index] += change
        self.magnitudes[index] += abs(value) << shift
        self.counts[index] += 1
        return change

    def tensors(self) -> dict[str, Tensor]:
        return {
            "pool.accumulators": torch.from_numpy(self.accumulators.copy()),
            "pool.magnitudes": torch.from_numpy(self.magnitudes.copy()),
            "pool.counts": torch.from_numpy(self.counts.copy()),
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Raises ValueError when shapes or types are not ours."""
        for name in ("accumulators", "magnitudes", "counts"):
            values = state[f"pool.{name}"]
            if values.dtype != torch.int64 or values.shape != (self.size,):
                raise ValueError(f"pool.{name} should be {self.size} int64 numbers")
            setattr(self, name, values.cpu().numpy().copy())


@dataclass(frozen=True, slots=True)
class Chooser:
    run: bytes
    edges: Ints  # (K,) cumulative integer weights

    def choose(self, round: int, peer: bytes, probe: int) -> int:
        """The pool index of a probe. The bias of the modulus is below 2**-30."""
        draw = seeds.choice_draw(self.run, round, peer, probe) % int(self.edges[-1])
        return int(np.searchsorted(self.edges, draw, side="right"))


def significance(magnitudes: Ints, counts: Ints) -> Ints:
    """Sampling weights, between 2**16 and e * 2**16, from exact integers.

    A direction that nobody tried yet counts as middling.
    """
    means = (magnitudes << 8) // np.maximum(counts, 1)
    seen = means[counts > 0]
    if not len(seen) or seen.min() == seen.max():
        return np.full(len(counts), _ONE, dtype=np.int64)
    low, high = int(seen.min()), int(seen.max())
    scaled = (np.minimum(means - low, high - low) * _ONE) // (high - low)
    return _exponential(np.where(counts > 0, scaled, _ONE // 2))


def _exponential(x: Ints) -> Ints:
    """2**16 * exp(x / 2**16) for 0 <= x <= 2**16: Taylor's series by Horner's rule, rounding down
    at each step.
    """
    result = np.full_like(x, _ONE)
    for n in range(12, 0, -1):
        result = _ONE + (result * x >> 16) // n
    return result


def quantum_exponent(rate: Fraction, unit_exponent: int) -> int:
    """The model moves in multiples of 2**this."""
    assert rate > 0, "the learning rate of a pooled run is above 0"
    bits = rate.numerator.bit_length() - rate.denominator.bit_length()
    return bits + unit_exponent - QUANTUM_BITS


def multiplier(rate: Fraction, unit_exponent: int, quantum: int) -> int:
    """How many quanta one unit of one byte is worth at this rate; nearest, ties to even."""
    shift = unit_exponent - quantum
    return round(rate * (Fraction(1 << shift) if shift >= 0 else Fraction(1, 1 << -shift)))


def subtract(
    base: Tensor,  # theta_0, fp32 or bf16
    total: Tensor,  # (same shape) int64, sum_k A_k s_k
    quantum: int,
    out: Tensor,  # theta, in the dtype of `base`
) -> None:
    """theta = theta_0 - 2**quantum * total, in float64 and then rounded to the nearest float32 and
    on to `out`.

    The product only scales by a power of two, so whether a device fuses it with the subtraction
    cannot matter.
    """
    parts = (torch.split(x.view(-1), _CHUNK) for x in (base, total, out))
    for base_part, total_part, out_part in zip(*parts, strict=True):
        moved = base_part.to(torch.float64) - total_part.to(torch.float64) * (2.0**quantum)
        out_part.copy_(moved.to(torch.float32))


class Sums:
    """Changes by pool index."""

    def __init__(self) -> None:
        self._sums: dict[int, int] = {}

    def add(self, index: int, change: int) -> None:
        self._sums[index] = self._sums.get(index, 0) + change

    def moved(self) -> list[tuple[int, int]]:
        """(index, sum), ascending, without those that cancel out."""
        return [(index, total) for index, total in sorted(self._sums.items()) if total]


assert BYTE_MAX << (2 * SHIFT_MAX + QUANTUM_BITS) < 1 << 63, "a probe fits the accumulator"
