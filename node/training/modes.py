"""A model while it trains, and as it was before.

Between exchanges a model is in eval mode, without gradients: the held-out loss, generation and the
methods expect that. Inner steps need it otherwise:

* train mode, so that dropout works if the model has any. Layers that keep running statistics
  (BatchNorm) stay in eval mode all the same: their statistics are buffers, no peer sends buffers,
  and a model trained on batch statistics would be evaluated with statistics that never moved;
* buffers of every other kind are put back as they were after the work, for the same reason: what is
  not replicated must not drift;
* gradients are on even if the caller has turned them off, and are freed after the work.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@contextmanager
def training(model: nn.Module) -> Iterator[None]:
    """Inside, the model is ready for inner steps; after it, only its parameters have changed."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [_Kept.of(m, name, b) for m in model.modules() for name, b in m._buffers.items()]
    with torch.inference_mode(False), torch.enable_grad():
        try:
            model.zero_grad(set_to_none=True)
            model.train()
            for module, _ in modes:
                if _keeps_statistics(module):
                    module.eval()
            yield
        finally:
            model.zero_grad(set_to_none=True)
            model.train(modes[0][1])  # some modules act on the call
            for module, mode in modes:
                module.training = mode
            for kept in buffers:
                kept.put_back()


def _keeps_statistics(module: nn.Module) -> bool:
    return isinstance(getattr(module, "running_mean", None), Tensor)


@dataclass(frozen=True, slots=True)
class _Kept:
    """A buffer and what it held."""

    module: nn.Module
    name: str
    buffer: Tensor | None
    copy: Tensor | None

    @classmethod
    def of(cls, module: nn.Module, name: str, buffer: Tensor | None) -> "_Kept":
        return cls(module, name, buffer, None if buffer is None else buffer.detach().clone())

    def put_back(self) -> None:
        if self.module._buffers.get(self.name) is not self.buffer:
            setattr(self.module, self.name, self.buffer)
        if self.buffer is None or self.copy is None or torch.equal(self.buffer, self.copy):
            return
        with torch.no_grad():
            self.buffer.copy_(self.copy)
