"""Low-rank adapters through peft, with starting values that are the same on every machine."""

from fractions import Fraction

import torch
from torch import nn

from node.errors import ConfigError, optional
from node.training.initial import fill_uniform
from node.training.model_config import LoraConfig

_SEED = 0x10_4A  # the adapters' starting values are the same in every run


def wrap(module: nn.Module, config: LoraConfig) -> nn.Module:
    """Freeze a model and put adapters beside its layers. A starts random, B at zero, so nothing
    changes at first.

    Raises ConfigError when no layer is called so, or peft is missing.
    """
    peft = optional("peft", "hf")
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=0.0,
        target_modules=list(config.targets) or "all-linear",
    )
    try:
        adapted: nn.Module = peft.get_peft_model(_with_config(module), settings)
    except ValueError as error:
        raise ConfigError(f"no adapter fits: {error}", "check `targets` in [model.lora]") from error
    index = 0
    for name, parameter in adapted.named_parameters():
        if not is_adapter(name):
            continue
        if "lora_A" in name or "lora_embedding_A" in name:
            bound = Fraction(1, int(parameter.shape[1]) or 1)
            fill_uniform(parameter.data, _root(bound), _SEED, index)
        else:
            torch.nn.init.zeros_(parameter)
        index += 1
    return adapted


def is_adapter(name: str) -> bool:
    return "lora_" in name


def _root(square: Fraction) -> Fraction:
    from node.training.gpt import root

    return root(square)


def _with_config(module: nn.Module) -> nn.Module:
    """peft asks any model for a `config`; one that has none gets an empty one."""
    if not hasattr(module, "config"):
        module.config = {}  # type: ignore[assignment]
    return module
