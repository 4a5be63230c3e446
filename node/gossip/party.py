"""One gossiping peer: its model, its vectors and its inner steps. Who it meets is not its business.

The parameters of the model are views of one flat vector, `MODEL`, so what an exchange adds is in
the model at once. Nothing may be added while a gradient is being computed: between two steps only.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from node.errors import ConfigError
from node.gossip.coding import Coder
from node.methods.parts.mixing import MODEL, State
from node.methods.parts.setup import Setup
from node.methods.parts.stretches import cut
from node.methods.registry import AnyGossip, build_inner, build_mixing
from node.training.inner import NOTHING, InnerReport, trained_parameters

_PREFIX: Final = "gossip."
_TOKENS: Final = "gossip.tokens"


class Party:
    def __init__(self, config: AnyGossip, setup: Setup) -> None:
        """Raises ConfigError when the model cannot be trained so."""
        if setup.box is not None:
            raise ConfigError(
                "a peer of several processes does not gossip yet",
                "leave out `processes` in [node]",
            )
        self.config = config
        self.model = setup.model
        self.sizes = [p.numel() for _, p in trained_parameters(setup.model)]
        model = flatten(setup.model)
        self.mixing = build_mixing(config)
        self.stretches = cut(self.sizes, config.stretch)
        self.coder = Coder(config, self.stretches)
        self.state: State = {
            MODEL: model,
            **{name: torch.zeros_like(model) for name in self.mixing.vectors},
            **{
                name: torch.zeros(len(self.stretches), dtype=torch.float64, device=model.device)
                for name in self.mixing.per_stretch
            },
        }
        self.tokens = 0  # that this peer trained on
        self._trainer = build_inner(config, setup, self.mixing, self.state)
        for number in range(len(self.stretches)):
            self.mixing.begin(self.part(number))

    @property
    def device(self) -> torch.device:
        return self.state[MODEL].device

    def part(self, number: int) -> State:
        """One stretch of every vector: views."""
        elements = self.stretches[number].elements
        scalars = self.mixing.per_stretch
        return {
            name: vector[number : number + 1] if name in scalars else vector[elements]
            for name, vector in self.state.items()
        }

    def work(
        self,
        round: int,
        slots: Iterator[int],
        expired: Callable[[], bool],
        before: InnerReport = NOTHING,
        least: int | None = None,
    ) -> InnerReport:
        """Inner steps, as `InnerWork` says."""
        report = self._trainer.work(round, slots, expired, before, least)
        self.tokens += report.tokens - before.tokens
        return report

    # State, all of it this peer's own

    def local_state(self) -> dict[str, Tensor]:
        """Live tensors, not copies."""
        mine = {_PREFIX + name: vector for name, vector in self.state.items()}
        return mine | {_TOKENS: torch.tensor([self.tokens])} | self._trainer.local_state()

    def load_local_state(self, state: Mapping[str, Tensor]) -> None:
        """Raises ValueError, and leaves everything as it was, for what is not ours."""
        for name, vector in self.state.items():
            new = state.get(_PREFIX + name)
            if new is None or new.shape != vector.shape or new.dtype != vector.dtype:
                raise ValueError(f"{_PREFIX}{name} is {vector.dtype} {tuple(vector.shape)}")
            if not bool(new.isfinite().all()):
                raise ValueError(f"{_PREFIX}{name} is not finite")
        tokens = state.get(_TOKENS)
        if tokens is None or tokens.dtype != torch.int64 or tokens.shape != (1,) or tokens < 0:
            raise ValueError(f"{_TOKENS} is one int64, and not negative")
        self._trainer.load_local_state(state)
        for name, vector in self.state.items():
            vector.copy_(state[_PREFIX + name])
        self.tokens = int(tokens)


def flatten(model: nn.Module) -> Tensor:
    """Make the trained parameters views of one flat float32 vector, which is returned. Raises
    ConfigError when nothing can be trained, or not in float32.
    """
    named = trained_parameters(model)
    for name, parameter in named:
        if parameter.dtype != torch.float32:
            raise ConfigError(f"{name} is {parameter.dtype}", 'set dtype = "fp32" in [model]')
    flat = torch.cat([parameter.detach().reshape(-1) for _, parameter in named])
    show(model, flat)
    return flat


def show(model: nn.Module, flat: Tensor) -> None:
    """The trained parameters become views of `flat`."""
    named = trained_parameters(model)
    parts: Sequence[Tensor] = torch.split(flat, [parameter.numel() for _, parameter in named])
    for (_, parameter), part in zip(named, parts, strict=True):
        parameter.data = part.view(parameter.shape)
