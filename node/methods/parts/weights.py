"""The weights as merging sees them: free ones, which every round moves, and those of a pool, which
integers determine.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from node.kernels.base import STEP_MIN, Kernels
from node.methods.parts import pool
from node.methods.parts.perturbed import Perturbed
from node.methods.parts.units import exact_float

_PREFIX = "weights."


class _Weights:
    def __init__(self, view: Perturbed, kernels: Kernels) -> None:
        self._view, self._kernels = view, kernels
        if view.flat is not None:
            self._parts = [
                (0, view.flat)
            ]  # one pass instead of one for each tensor; the bits are the same
        else:
            self._parts = [(w.offset, w.tensor) for w in view.weights]

    def digest(self, key: int) -> int:
        return sum(self._kernels.digest(t, offset, key) for offset, t in self._parts)


class FreeWeights(_Weights):
    pool_size: int | None = None

    def chooser(self) -> None:
        return None

    def move(self, keys: Sequence[int], values: Sequence[int], step: Fraction, noise: int) -> None:
        """weights -= step * sum of values * directions; at most 256 of them."""
        if step < Fraction(STEP_MIN):
            return  # nothing that a weight could feel
        for offset, tensor in self._parts:
            self._kernels.merge(tensor, offset, keys, values, exact_float(step), noise)

    def state(self) -> dict[str, Tensor]:
        return {_PREFIX + w.name: w.tensor for w in self._view.weights}

    def load(self, state: Mapping[str, Tensor]) -> None:
        for w in self._view.weights:
            new = state[_PREFIX + w.name]
            if new.shape != w.tensor.shape or new.dtype != w.tensor.dtype:
                raise ValueError(f"{w.name} is {w.tensor.dtype} {tuple(w.tensor.shape)}")
        for w in self._view.weights:
            w.tensor.copy_(state[_PREFIX + w.name])


class PooledWeights(_Weights):
    """FedKSeed. Beside the weights it holds theta_0 and the integer sum of all directions: 16 bytes
    a weight in all.

    The sum is only kept to make a merge cheap; the replicated state is the pool's integers.
    """

    def __init__(
        self,
        view: Perturbed,
        kernels: Kernels,
        run: bytes,
        size: int,
        significance: bool,
        rate: Fraction,
        unit_exponent: int,
    ) -> None:
        super().__init__(view, kernels)
        self.pool_size: int | None = size
        self._pool = pool.Pool.empty(run, size, significance)
        self._lowest_unit = unit_exponent - pool.SHIFT_MAX
        self._quantum = pool.quantum_exponent(rate, unit_exponent)
        self._base = [t.clone() for _, t in self._parts]
        self._totals = [torch.zeros_like(t, dtype=torch.int64) for _, t in self._parts]

    def chooser(self) -> pool.Chooser:
        return self._pool.chooser()

    def move(self, probes: Sequence[tuple[int, int]], rate: Fraction, unit_exponent: int) -> None:
        """One round of (pool index, byte); `rate` is that of a single probe."""
        times = pool.multiplier(rate, unit_exponent, self._quantum)
        shift = unit_exponent - self._lowest_unit
        sums = pool.Sums()
        for index, value in probes:
            sums.add(index, self._pool.add(index, value, times, shift))
        moved = sums.moved()
        self._apply([self._pool.key(index) for index, _ in moved], [total for _, total in moved])

    def _apply(self, keys: Sequence[int], values: Sequence[int]) -> None:
        for (offset, tensor), base, total in zip(
            self._parts, self._base, self._totals, strict=True
        ):
            self._kernels.accumulate(total, offset, keys, values)
            pool.subtract(base, total, self._quantum, tensor)

    def state(self) -> dict[str, Tensor]:
        return self._pool.tensors()

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Rebuild the weights from the integers."""
        self._pool.load(state)
        for total in self._totals:
            total.zero_()
        self._apply(*self._pool.keys())
