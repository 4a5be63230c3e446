"""Activation checkpointing: layers forget what they computed and compute it again on the way back.

*Training Deep Nets with Sublinear Memory Cost*, https://arxiv.org/abs/1604.06174. The gradients
are the same bits, because a layer runs the same kernels twice, with the same random numbers.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from node.errors import ConfigError


def stacked_layers(model: nn.Module) -> list[nn.Module]:
    """The members of the outermost `ModuleList`s; where there is none, of the `Sequential`s.

    Raises ConfigError when the model has neither.
    """
    found = find_layers(model)
    if not found:
        raise ConfigError(
            "the model has no stack of layers whose activations could be checkpointed",
            "keep its layers in an nn.ModuleList, or leave out `checkpoint_activations`",
        )
    return found


def find_layers(model: nn.Module) -> list[nn.Module]:
    """The same, and none where the model has no stack."""
    return list(_members(model, nn.ModuleList)) or list(_members(model, nn.Sequential))


def _members(module: nn.Module, kind: type[nn.Module]) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(module, kind) and not isinstance(child, kind):
            yield child
        else:
            yield from _members(child, kind)


@contextmanager
def checkpointed(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, each of `layers` runs under a checkpoint. Not reentrant."""
    own: list[tuple[nn.Module, Any]] = []  # the forward that the object itself had, or None
    try:
        for layer in layers:
            own.append((layer, layer.__dict__.get("forward")))
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        yield
    finally:
        for layer, forward in reversed(own):
            del layer.forward
            if forward is not None:
                layer.forward = forward
