"""What every method is given to work with."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor, nn

from node.errors import ConfigError
from node.kernels.base import Kernels
from node.methods.parts.perturbed import Perturbed
from node.training.inner import InnerTrainer, InnerWork, Stepper
from node.training.inner_config import InnerConfig
from node.training.losses import Batch
from node.training.optimizer_config import OwnOptimizer

if TYPE_CHECKING:
    from node.box.leader import Box


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
    box: "Box | None" = None  # this peer's processes, if there are several

    def perturbed(self) -> Perturbed:
        """The model as scalar methods see it. Its dry run uses one held-out batch. Raises
        ConfigError for a peer of several processes.
        """
        if self.box is not None:
            raise ConfigError(
                "the run's method takes no inner steps, so only one process of a peer can work",
                "leave out `processes` in [node]; for more speed, start one peer for each GPU",
            )
        device = next(self.model.parameters()).device
        batch = self.data.held_out()[0].to(device)
        return Perturbed(self.model, self.kernels, lambda: self.loss(self.model, batch))

    def inner(self, config: InnerConfig, optimizer: Stepper | None = None) -> InnerWork:
        """What takes this peer's inner steps. Raises ConfigError when the model, or the machine's
        own optimizer, is not fit for it. `optimizer` takes the steps instead of either's.
        """
        if self.box is not None:
            return self.box.trainer(config, self.model, self.loss, self.data.batch, optimizer)
        own = self.optimizer
        return InnerTrainer(config, self.model, self.loss, self.data.batch, own, optimizer)
