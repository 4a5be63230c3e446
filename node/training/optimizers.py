"""The optimizers that a run file can name, each made from its table."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, assert_never

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from node.errors import ConfigError
from node.training.optimizer_config import AdamWConfig, MuonConfig, OptimizerConfig, SgdConfig

Named = Sequence[tuple[str, nn.Parameter]]
Build = Callable[[Named], list[Optimizer]]
"""Makes what moves these parameters: one optimizer, or several that share them out."""


def builder(config: OptimizerConfig, model: nn.Module) -> Build:
    """Raises ConfigError when this version of torch lacks the optimizer."""
    match config:
        case AdamWConfig():
            return lambda named: [_adamw(config, [p for _, p in named])]
        case SgdConfig():
            return lambda named: [
                torch.optim.SGD([p for _, p in named], lr=config.lr, momentum=config.momentum)
            ]
        case MuonConfig():
            if not hasattr(torch.optim, "Muon"):
                raise ConfigError(
                    f"torch {torch.__version__} has no Muon", "install torch 2.9 or newer"
                )
            scales = muon_scales(model, config.not_hidden)
            return lambda named: _muon(config, scales, named)
        case _:
            assert_never(config)


def _adamw(config: AdamWConfig, parameters: list[nn.Parameter]) -> Optimizer:
    return torch.optim.AdamW(
        parameters,
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
    )


def _muon(config: MuonConfig, scales: Mapping[str, float], named: Named) -> list[Optimizer]:
    """torch's Muon scales an update by sqrt(max(1, rows / columns)), which is too much where rows
    are fewer. Groups of their own correct the rate there, and leave the decay as it is.
    """
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in named:
        if name in scales:
            rows, columns = parameter.shape
            factor = scales[name] / math.sqrt(max(1, rows / columns))
            groups.setdefault(factor, []).append(parameter)
    made: list[Optimizer] = []
    if groups:
        made.append(
            torch.optim.Muon(
                [
                    {
                        "params": parameters,
                        "lr": config.lr * factor,
                        "weight_decay": config.weight_decay / factor,
                    }
                    for factor, parameters in groups.items()
                ],
                momentum=config.momentum,
                ns_steps=config.ns_steps,
            )
        )
    others = [p for name, p in named if name not in scales]
    if others:
        made.append(_adamw(config.others, others))
    return made


def muon_scales(model: nn.Module, not_hidden: Sequence[str]) -> dict[str, float]:
    """The matrices of hidden layers, each with sqrt(fan_out / fan_in)."""
    names = {id(p): name for name, p in model.named_parameters()}  # a tied one has its first name
    outer = {id(p) for p in _outer(model)}
    scales: dict[str, float] = {}
    for module in model.modules():
        # transformers' Conv1D is a linear layer whose weight is (in, out).
        turned = type(module).__name__ == "Conv1D"
        for parameter in module.parameters(recurse=False):
            name = names[id(parameter)]
            if parameter.dim() != 2 or not parameter.numel() or id(parameter) in outer:
                continue
            if any(fnmatchcase(name, pattern) for pattern in not_hidden):
                continue
            rows, columns = parameter.shape
            fan_out, fan_in = (columns, rows) if turned else (rows, columns)
            scales[name] = math.sqrt(fan_out / fan_in)
    return scales


def _outer(model: nn.Module) -> Iterator[Tensor]:
    """Embeddings, and what a transformers model calls its output layer."""
    for module in model.modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            yield module.weight
    find_head: Any = getattr(model, "get_output_embeddings", None)
    head = None if find_head is None else find_head()
    if isinstance(head, nn.Module):
        yield from head.parameters()
