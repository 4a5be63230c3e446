"""Sharpness-aware steps: the gradient is taken where the loss is nearly worst, and used here.

*Sharpness-Aware Minimization for Efficiently Improving Generalization* (2020),
https://arxiv.org/abs/2010.01412. Of one step, over the same micro-batches in both passes:

    g = grad F(y),  delta = rho g / ||g||            the norm is that of the whole model
    y <- y - eta grad F(y + delta)

rho = 0 is an ordinary step, in one pass. y is kept aside, so it comes back to the bit.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from node.training.inner import InnerTrainer, Seen
from node.training.inner_config import InnerConfig
from node.training.losses import Batch
from node.training.optimizer_config import OwnOptimizer


class SamTrainer(InnerTrainer):
    def __init__(
        self,
        config: InnerConfig,
        model: nn.Module,
        loss: Callable[[nn.Module, Batch], Tensor],
        batch: Callable[[int], Batch],
        own: OwnOptimizer | None = None,
        *,
        radius: float,  # rho
    ) -> None:
        """Raises ConfigError, as `InnerTrainer`."""
        super().__init__(config, model, loss, self._of_slot, own)
        self._radius = radius
        self._fetch = batch
        self._batches: dict[int, Batch] = {}  # of the step that is being taken, by slot
        self._parameters = [parameter for _, parameter in self._named]

    def _accumulate(self, slots: Iterator[int], expired: Callable[[], bool]) -> Seen | None:
        """The loss that is reported is the one at y."""
        if not self._radius:
            return super()._accumulate(slots, expired)
        self._batches.clear()
        seen = super()._accumulate(slots, expired)
        if seen is None or not seen.is_finite:
            return seen
        norm = self._norm()
        if not bool(norm.isfinite()) or not float(norm):
            return seen  # nowhere to go; the step that follows sees the same
        kept = [parameter.detach().clone() for parameter in self._parameters]
        self._climb(norm)
        self._model.zero_grad(set_to_none=True)
        again = super()._accumulate(iter(list(self._batches)), _never)
        self._put_back(kept)
        assert again is not None, "the slots are those of the first pass"
        if not again.is_finite:
            seen.finite = again.finite
        return seen

    def _of_slot(self, slot: int) -> Batch:
        if not self._radius:
            return self._fetch(slot)
        if slot not in self._batches:
            self._batches[slot] = self._fetch(slot)
        return self._batches[slot]

    @torch.no_grad()
    def _climb(self, norm: Tensor) -> None:
        for parameter in self._parameters:
            if parameter.grad is not None:
                gradient = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
                parameter.add_(gradient * (self._radius / norm))

    @torch.no_grad()
    def _put_back(self, kept: list[Tensor]) -> None:
        for parameter, before in zip(self._parameters, kept, strict=True):
            parameter.copy_(before)


def _never() -> bool:
    return False
