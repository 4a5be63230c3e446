"""Inner steps that move nothing: the mean gradient of a round's micro-batches, at one point.

It takes an optimizer's place in the loop of `training.inner`, which minds the time, the memory and
numbers that are not finite: a micro-batch whose loss or gradient is none does not count.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from node.training.inner import trained_parameters

_COUNT, _SUM = "inner.gradients", "inner.gradient."


def parameter_number(name: str) -> int | None:
    """Whose sum stands under a name of the state; None for a name of another kind."""
    number = name.removeprefix(_SUM)
    return int(number) if name.startswith(_SUM) and number.isdecimal() else None


class MeanGradient:
    def __init__(self, model: nn.Module) -> None:
        """Raises ConfigError when nothing can be trained, as inner steps do."""
        self._parameters = [parameter for _, parameter in trained_parameters(model)]
        self._sums: list[Tensor] = []
        self._count = 0

    def step(self, share: float) -> None:
        """One more micro-batch: the gradients that the parameters hold."""
        if not self._sums:
            self._sums = [torch.zeros_like(p, dtype=torch.float32) for p in self._parameters]
        for total, parameter in zip(self._sums, self._parameters, strict=True):
            if parameter.grad is not None:
                total += parameter.grad
        self._count += 1

    def take(self, clip_norm: float | None) -> list[Tensor]:
        """The mean over what was added, not longer than `clip_norm`, float32 of the parameters'
        shapes; nothing when nothing was added. The next mean begins.
        """
        found, count = self._sums, self._count
        self._sums, self._count = [], 0
        for total in found:
            total /= count
        if found and clip_norm is not None:
            norm = float(torch.nn.utils.get_total_norm(found))
            if norm > clip_norm:
                for total in found:
                    total *= clip_norm / norm
        return found

    def state(self) -> dict[str, Tensor]:
        """What was added since the last mean: live, not copies. Mostly nothing."""
        sums = {f"{_SUM}{number}": total for number, total in enumerate(self._sums)}
        return {_COUNT: torch.tensor([self._count]), **sums}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Raises ValueError, and leaves everything as it was, for what `state` did not write."""
        count = state.get(_COUNT)
        if count is None or count.dtype != torch.int64 or count.shape != (1,) or int(count) < 0:
            raise ValueError(f"{_COUNT} is one int64, and not negative")
        sums = []
        for number, parameter in enumerate(self._parameters if int(count) else ()):
            total = state.get(f"{_SUM}{number}")
            if total is None or total.dtype != torch.float32 or total.shape != parameter.shape:
                raise ValueError(f"{_SUM}{number} is float32 {tuple(parameter.shape)}")
            sums.append(total.to(parameter.device, copy=True))
        self._sums, self._count = sums, int(count)
