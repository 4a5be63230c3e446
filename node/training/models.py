"""What a run trains: a built-in model, a Hugging Face model, or one that this machine's owner
brings.

A model has an identity, a hash over its names, shapes, types and bytes. The manifest carries it and
every peer checks its own copy, so two peers never train different things under one name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from blake3 import blake3
from torch import Tensor, nn

from node.errors import ConfigError
from node.training import gpt, lora
from node.training.model_config import AnyModel, FactoryConfig, GptConfig, HfConfig
from node.training.named import load_named
from node.training.tokens import ByteTokenizer, Tokenizer

_CONTEXT = "peertrain 2026-11 model digest v1"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Model:
    """A model ready to train: in eval mode, `requires_grad` where it is trainable."""

    module: nn.Module
    tokenizer: Tokenizer
    config: AnyModel
    context: int  # the most tokens it sees at once


def build_model(
    config: AnyModel,
    *,
    root: Path = Path(),  # relative model folders count from here
    factories: Mapping[str, str]
    | None = None,  # label -> "module:factory", from this machine's settings
    device: torch.device | str = "cpu",
) -> Model:
    """Load or make the model, the same bits on every machine.

    Raises ConfigError for what is missing, unknown or not installed.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    module, tokenizer, context = _load(config, root, factories or {})
    if config.lora is not None:
        module = lora.wrap(module, config.lora)
    _choose_trainable(module, config.trainable, only_lora=config.lora is not None)
    module = module.to(device=device, dtype=DTYPES[config.dtype])
    _own_memory(module)
    return Model(module.eval(), tokenizer, config, context)


def model_digest(module: nn.Module) -> bytes:
    """BLAKE3 over every parameter and saved buffer, trained or not: name, type, shape and raw
    bytes, in order.

    Tensors that are tied count once, under their first name.
    """
    hasher = blake3(derive_key_context=_CONTEXT)
    seen: set[int] = set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        head = f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode()
        hasher.update(len(head).to_bytes(4, "little") + head)
        for part in tensor.detach().reshape(-1).split(1 << 24):
            hasher.update(raw_bytes(part))
    return hasher.digest()


def raw_bytes(tensor: Tensor) -> bytes:
    """A tensor's memory, little endian as on every machine that torch runs on."""
    return tensor.contiguous().cpu().view(torch.uint8).numpy().tobytes()


def _load(
    config: AnyModel, root: Path, factories: Mapping[str, str]
) -> tuple[nn.Module, Tokenizer, int]:
    match config:
        case GptConfig():
            module = gpt.Gpt(
                config.layers, config.width, config.heads, config.hidden_width, config.context
            )
            gpt.initialise(module, config.seed)
            return module, ByteTokenizer(), config.context
        case HfConfig():
            from node.training import hf

            loaded = hf.load(
                config.path, root, config.revision, config.gguf_file, config.head, config.labels
            )
            return loaded
        case FactoryConfig():
            return _from_factory(config.label, factories)


def _from_factory(label: str, factories: Mapping[str, str]) -> tuple[nn.Module, Tokenizer, int]:
    """The factory returns a module, or a module and a tokenizer. The module takes token ids and
    returns logits.
    """
    if label not in factories:
        raise ConfigError(
            f"this machine has no factory for the model {label!r}",
            f'add it to your node settings: factories = {{ {label} = "my_module:make_model" }}',
        )
    hint = "write it as module:function, with the module on PYTHONPATH"
    factory = load_named(factories[label], "the factory", hint)
    if not callable(factory):
        raise ConfigError(f"the factory {factories[label]!r} cannot be called", hint)
    made = factory()
    module, tokenizer = made if isinstance(made, tuple) else (made, ByteTokenizer())
    if not isinstance(module, nn.Module):
        raise ConfigError(f"the factory {factories[label]!r} returned a {type(module).__name__}",
                          "return a torch.nn.Module, or a module and a tokenizer")  # fmt: skip
    return module, tokenizer, int(getattr(module, "context", 1 << 20))


def _choose_trainable(module: nn.Module, patterns: tuple[str, ...], only_lora: bool) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name, _ in module.named_parameters()):
            raise ConfigError(
                f"no parameter is called {pattern!r}",
                f"the first one is {next(iter(module.named_parameters()))[0]!r}",
            )
    for name, parameter in module.named_parameters():
        chosen = any(fnmatchcase(name, pattern) for pattern in patterns)
        parameter.requires_grad_(
            chosen and parameter.is_floating_point() and (not only_lora or lora.is_adapter(name))
        )


def _own_memory(module: nn.Module) -> None:
    """Loaded weights may be a view of a mapped file; what is trained must be plain memory of its
    own.
    """
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
