"""What every method is given to work with."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from node.kernels.base import Kernels
from node.methods.parts.perturbed import Perturbed
from node.training.inner import InnerTrainer, Stepper
from node.training.inner_config import InnerConfig
from node.training.losses import Batch
from node.training.optimizer_config import OwnOptimizer


class SlotData(Protocol):
    """Training batches by slot number; see `training/data.py`."""

    private: bool

    def batch(self, slot: int) -> Batch: ...

    def held_out(self) -> list[Batch]: ...


@dataclass(frozen=True, slots=True)
class Setup:
    model: nn.Module  # in eval mode, on its device
    data: SlotData
    loss: Callable[[nn.Module, Batch], Tensor]  # (model, batch) -> scalar float32
    kernels: Kernels
    run: bytes  # the run id, 32 bytes
    optimizer: OwnOptimizer | None = None  # this machine's own, for methods that take inner steps

    def perturbed(self) -> Perturbed:
        """The model as scalar methods see it. Its dry run uses one held-out batch."""
        device = next(self.model.parameters()).device
        batch = self.data.held_out()[0].to(device)
        return Perturbed(self.model, self.kernels, lambda: self.loss(self.model, batch))

    def inner(self, config: InnerConfig, optimizer: Stepper | None = None) -> InnerTrainer:
        """What takes this peer's inner steps. Raises ConfigError when the model, or the machine's
        own optimizer, is not fit for it. `optimizer` takes the steps instead of either's.
        """
        own = self.optimizer
        return InnerTrainer(config, self.model, self.loss, self.data.batch, own, optimizer)
