"""Inner steps of many small models at once: peers are rows of one matrix.

One model at a time, a step of a few thousand weights is all overhead. Here a block of peers goes
through `vmap` together, so that their small products become one batched product, and the optimizer
moves whole rows. A row's numbers are those of `training.inner`, up to the order of sums.
"""

from typing import Final, assert_never

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from node.errors import ConfigError
from node.training.data import Data
from node.training.inner import trained_parameters
from node.training.inner_config import InnerConfig
from node.training.losses import Batch
from node.training.optimizer_config import AdamWConfig, MuonConfig, SgdConfig

Ints = npt.NDArray[np.int64]

_BLOCK: Final = 128  # peers that step together: larger ones leave the cache


class Rows:
    """What steps a matrix of models, (peers, size), some of its rows at a time."""

    def __init__(
        self,
        module: nn.Module,
        data: Data,
        inner: InnerConfig,
        peers: int,
        parts: int = 1,  # stretches of the data; a peer trains on one of them
        radius: float = 0.0,  # of sharpness-aware steps
    ) -> None:
        """Raises ConfigError for a model that is no language model, and for Muon."""
        named = trained_parameters(module)
        self._shapes = {name: p.shape for name, p in named}
        self._sizes = [p.numel() for _, p in named]
        self._module, self._data, self._inner = module, data, inner
        self._parts, self._radius = parts, radius
        if data.batch(0).lengths is not None:
            raise ConfigError(
                "texts with labels are not simulated", 'take a run with task = "language-model"'
            )
        size = sum(self._sizes)
        match inner.optimizer:
            case AdamWConfig():
                self._moments = [torch.zeros(peers, size) for _ in range(2)]
            case SgdConfig():
                self._moments = [torch.zeros(peers, size)] if inner.optimizer.momentum else []
            case MuonConfig():
                raise ConfigError(
                    "Muon is not simulated: it moves matrices, not single weights",
                    "take AdamW or SGD for the simulation",
                )
            case _:
                assert_never(inner.optimizer)
        self._taken = np.zeros(peers, np.int64)  # steps
        self._slots = np.zeros(peers, np.int64)
        self._peers = peers

    def forget(self, row: int) -> None:
        """Another peer takes this row: its optimizer starts anew; its data go on."""
        for moment in self._moments:
            moment[row] = 0.0
        self._taken[row] = 0

    def work(self, models: Tensor, rows: Ints, round: int) -> Tensor:
        """A round's inner steps of these rows, in place; (rows,) their mean losses."""
        losses = torch.zeros(len(rows))
        for at in range(0, len(rows), _BLOCK):
            some = rows[at : at + _BLOCK]
            picked = torch.from_numpy(some)
            block = models[picked]
            moments = [moment[picked] for moment in self._moments]
            for _ in range(self._inner.attempts_max):
                losses[at : at + _BLOCK] += self._step(block, moments, some, round)
            models[picked] = block
            for moment, part in zip(self._moments, moments, strict=True):
                moment[picked] = part
        return losses / self._inner.attempts_max

    def losses(self, models: Tensor, batches: list[Batch]) -> Tensor:
        """(rows,): held out, of each of these models."""
        total, count = torch.zeros(len(models)), 0
        with torch.no_grad():
            for batch in batches:
                inputs, targets = (
                    part[None].expand(len(models), *part.shape)
                    for part in (batch.inputs, batch.targets)
                )
                total += self._losses(models, inputs, targets) * batch.targets.numel()
                count += batch.targets.numel()
        return total / count

    # One step

    def _step(self, block: Tensor, moments: list[Tensor], rows: Ints, round: int) -> Tensor:
        batches = [self._next(rows) for _ in range(self._inner.accumulation)]
        losses, gradients = self._gradients(block, batches)
        if self._radius:
            norms = gradients.norm(dim=1, keepdim=True).clamp(min=1e-30)
            _, gradients = self._gradients(block + self._radius * gradients / norms, batches)
        if self._inner.clip_norm is not None:
            norms = gradients.norm(dim=1, keepdim=True)
            gradients *= (self._inner.clip_norm / (norms + 1e-6)).clamp(max=1.0)
        shares = [self._inner.schedule.share(round, int(taken)) for taken in self._taken[rows]]
        self._taken[rows] += 1
        taken = torch.from_numpy(self._taken[rows])[:, None].float()
        self._move(block, gradients, moments, torch.tensor(shares)[:, None], taken)
        return losses

    def _move(
        self, block: Tensor, gradients: Tensor, moments: list[Tensor], share: Tensor, taken: Tensor
    ) -> None:
        optimizer = self._inner.optimizer
        if isinstance(optimizer, SgdConfig):
            if moments:
                gradients = moments[0].mul_(optimizer.momentum).add_(gradients)
            block.sub_(optimizer.lr * share * gradients)
            return
        assert isinstance(optimizer, AdamWConfig)
        (first, second), (b1, b2) = moments, optimizer.betas
        block.mul_(1 - optimizer.lr * share * optimizer.weight_decay)
        first.lerp_(gradients, 1 - b1)
        second.mul_(b2).addcmul_(gradients, gradients, value=1 - b2)
        root = (second / (1 - b2**taken)).sqrt_().add_(optimizer.eps)
        block.sub_(optimizer.lr * share / (1 - b1**taken) * (first / root))

    def _next(self, rows: Ints) -> tuple[Tensor, Tensor]:
        """(rows, B, T) each: inputs and targets of these peers' next micro-batches."""
        slots = self._slots[rows]
        self._slots[rows] += 1
        if self._parts == 1:
            slots, parts = slots * self._peers + rows, np.zeros_like(rows)
        else:
            parts = rows % self._parts
        batch = self._data.batches_of(slots, parts, self._parts)
        shape = (len(rows), -1, batch.inputs.shape[1])
        return batch.inputs.view(shape), batch.targets.view(shape)

    def _gradients(
        self, block: Tensor, batches: list[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """(rows,) losses and (rows, size) gradients, means over the micro-batches."""
        leaf = block.detach().requires_grad_()
        losses = torch.zeros(len(block))
        gradients = torch.zeros_like(block)
        for inputs, targets in batches:
            with torch.enable_grad():
                found = self._losses(leaf, inputs, targets)
                (gradient,) = torch.autograd.grad(found.sum(), leaf)
            losses += found.detach() / len(batches)
            gradients += gradient / len(batches)
        return losses, gradients

    def _losses(self, models: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        parameters = {
            name: part.reshape(len(models), *shape)
            for (name, shape), part in zip(
                self._shapes.items(), torch.split(models, self._sizes, dim=1), strict=True
            )
        }

        def loss(one: dict[str, Tensor], ids: Tensor, answers: Tensor) -> Tensor:
            logits = functional_call(self._module, one, (ids,))
            return nn.functional.cross_entropy(logits.flatten(0, 1), answers.flatten())

        with sdpa_kernel(SDPBackend.MATH):  # the fused one knows no batch of models
            found: Tensor = vmap(loss)(parameters, inputs, targets)
        return found
