"""An optimizer that this machine's owner brings, in place of the one that the run names.

Only the settings of this machine may name one: no manifest and no message ever chooses code. It is
tried out before the run starts, because a peer that cannot save its optimizer would lose it at
every restart, and nobody would notice.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from node.errors import ConfigError
from node.training.inner_optimizer import InnerOptimizer
from node.training.named import load_named
from node.training.optimizer_config import OwnOptimizer
from node.training.optimizers import Build, Named


def own_builder(own: OwnOptimizer) -> Build:
    """Raises ConfigError when there is nothing under that name; what it returns does, when the
    parameters or options do not suit.
    """
    make = _import(own.path)

    def build(named: Named) -> list[Optimizer]:
        parameters = [p for _, p in named]
        try:
            made = make(parameters, **own.options)
        except Exception as error:
            raise ConfigError(
                f"the optimizer {own.path!r} cannot be made: {error}",
                "check `options` in [node.optimizer], and that it takes parameters of every shape",
            ) from error
        if not isinstance(made, Optimizer):
            raise ConfigError(
                f"{own.path!r} made a {type(made).__name__}, which is no torch.optim.Optimizer",
                "name a class of optimizers, or a function that returns an optimizer",
            )
        moved = [p for group in made.param_groups for p in group["params"]]
        if {id(p) for p in moved} != {id(p) for p in parameters}:
            raise ConfigError(
                f"the optimizer {own.path!r} moves other parameters than it was given",
                "to train fewer, narrow `trainable` in [model]",
            )
        return [made]

    return build


def check_own_optimizer(own: OwnOptimizer, model: nn.Module) -> None:
    """Try it on small parameters, of as many dimensions as the model's.

    Raises ConfigError for a name that is not there, for what is no optimizer, and for one that does
    not go on the same after it was saved and loaded.
    """
    build = own_builder(own)
    trained = [p for p in model.parameters() if p.requires_grad and p.numel()]
    shapes = sorted({(3,) * p.dim() for p in trained})
    device = trained[0].device if trained else torch.device("cpu")
    gpus = [device] if device.type == "cuda" else []
    with torch.inference_mode(False), torch.random.fork_rng(devices=gpus):
        going_on = _Trial(own, build, [torch.ones(shape, device=device) for shape in shapes])
        going_on.step(1)
        going_on.step(2)
        again = _Trial(own, build, [p.detach().clone() for p in going_on.parameters])
        again.load(going_on)
        going_on.step(3)
        again.step(3)
    for one, other in zip(going_on.parameters, again.parameters, strict=True):
        if not torch.equal(one.nan_to_num(), other.nan_to_num()):
            raise ConfigError(
                f"the optimizer {own.path!r} goes on differently after it was saved and loaded",
                "it keeps something outside of its state; choose another, or mend it",
            )


class _Trial:
    """An optimizer at work on made-up gradients."""

    def __init__(self, own: OwnOptimizer, build: Build, tensors: Sequence[torch.Tensor]) -> None:
        self._path = own.path
        self.parameters = [nn.Parameter(tensor) for tensor in tensors]
        named = [(f"parameter{i}", p) for i, p in enumerate(self.parameters)]
        self._optimizer = InnerOptimizer(build, named)

    def step(self, number: int) -> None:
        torch.manual_seed(number)
        for parameter in self.parameters:
            parameter.grad = torch.randn_like(parameter)
        try:
            self._optimizer.step(1.0)
        except Exception as error:
            raise ConfigError(
                f"the optimizer {self._path!r} cannot take a step: {error}",
                "it must work with dense gradients, and with `step()` alone, without a closure",
            ) from error

    def load(self, other: "_Trial") -> None:
        try:
            self._optimizer.load(other._optimizer.state())
        except ValueError as error:
            raise ConfigError(
                f"the state of the optimizer {self._path!r} cannot be saved: {error}",
                "choose one whose state_dict holds only tensors and numbers",
            ) from error


def _import(path: str) -> Callable[..., object]:
    hint = "write it as torch.optim.NAME or module:NAME, with the module on PYTHONPATH"
    found = load_named(path, "the optimizer", hint)
    if not callable(found):
        raise ConfigError(
            f"{path!r} is a {type(found).__name__} and makes no optimizer",
            "name a class of optimizers, or a function that returns an optimizer",
        )
    made: Callable[..., object] = found
    return made
