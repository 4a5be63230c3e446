"""The weights that all peers share, apart from the model's own parameters, which inner steps move.

Trainable parameters in the model's own order form one flat float32 vector theta. The model's
parameters are a copy of it: rounds read and write theta alone, so a check or a snapshot that is
taken during a peer's own steps sees none of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from node.kernels.base import Kernels
from node.training.inner import trained_parameters

_PREFIX = "weights."


@dataclass(frozen=True, slots=True)
class _Part:
    name: str
    parameter: nn.Parameter
    theta: Tensor  # a view of the flat vector, in the parameter's shape


class SharedWeights:
    def __init__(self, model: nn.Module, kernels: Kernels) -> None:
        """Raises ConfigError when nothing can be trained, as inner steps do."""
        named = trained_parameters(model)
        self._kernels = kernels
        self.theta = torch.cat([p.detach().reshape(-1).float() for _, p in named])
        self.shapes = [tuple(p.shape) for _, p in named]
        self.sizes = [p.numel() for _, p in named]
        self.names = [name for name, _ in named]
        views = torch.split(self.theta, self.sizes)
        self._parts = [
            _Part(name, parameter, view.view(parameter.shape))
            for (name, parameter), view in zip(named, views, strict=True)
        ]

    @property
    def device(self) -> torch.device:
        return self.theta.device

    def show(self, moved: Tensor | None = None) -> None:
        """The model's parameters become theta, or theta - moved. `moved`: as in
        `add_difference`.
        """
        with torch.no_grad():
            for part in self._parts:
                part.parameter.copy_(part.theta)
            if moved is not None:
                for part, view in zip(self._parts, torch.split(moved, self.sizes), strict=True):
                    part.parameter.sub_(view.view(part.parameter.shape))

    def add_difference(self, total: Tensor, tensors: slice = slice(None)) -> None:
        """total += how far inner steps moved the parameters away from theta, with the sign of a
        gradient. `total`: float32, flat, of the length of these tensors.
        """
        parts, sizes = self._parts[tensors], self.sizes[tensors]
        with torch.no_grad():
            for part, view in zip(parts, torch.split(total, sizes), strict=True):
                view += (part.theta - part.parameter).reshape(-1)

    def digest(self, key: int) -> int:
        return self._kernels.digest(self.theta, 0, key)

    def state(self) -> dict[str, Tensor]:
        return {_PREFIX + part.name: part.theta for part in self._parts}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """And show it. Raises ValueError, and leaves everything as it was, for other tensors."""
        for part in self._parts:
            new = state[_PREFIX + part.name]
            if new.shape != part.theta.shape or new.dtype != torch.float32:
                raise ValueError(f"{part.name} is float32 {tuple(part.theta.shape)}")
        for part in self._parts:
            part.theta.copy_(state[_PREFIX + part.name])
        self.show()
