"""Trained weights as a Hugging Face folder: safetensors, config.json and tokenizer files.

Any tool that reads such folders reads ours. The built-in model is shaped like Llama and is written
as one, with a tokenizer of 256 bytes. Adapters are written as peft does, or merged into their
model. A folder appears whole or not at all: it is written beside its place and renamed.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from node.errors import ConfigError, optional
from node.training import gpt, hf
from node.training.model_config import GptConfig
from node.training.models import Model
from node.training.tokens import HfTokenizer

WEIGHTS = "model.safetensors"


def export(model: Model, folder: Path, *, merge_adapter: bool = False) -> None:
    """Write the model as it is now. Replaces an earlier export at `folder`; raises ConfigError when
    something else is there.
    """
    if folder.exists() and any(folder.iterdir()) and not _is_export(folder):
        raise ConfigError(f"{folder} holds other files", "choose a new folder")
    write_folder(folder, lambda target: _write(model, target, merge_adapter))


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill an empty folder, then put it in the place of `folder` in one step."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    old = fresh.with_name(fresh.name + "-old")
    try:
        write(fresh)
        fresh.chmod(0o755)
        for path in fresh.rglob("*"):
            if path.is_file():
                _sync(path)
        if folder.exists():
            os.rename(folder, old)
        os.rename(fresh, folder)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        if old.exists() and not folder.exists():
            os.rename(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def load_weights(module: nn.Module, folder: Path) -> None:
    """Read an export of this very model back into it. Raises ConfigError when names or shapes
    differ.
    """
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    own = {n: p for n, p in module.named_parameters()}
    missing = [name for name in own if name not in tensors]
    if missing:
        raise ConfigError(
            f"{folder} has no weights for {missing[0]!r}", "is it an export of this model?"
        )
    for name, parameter in own.items():
        if tensors[name].shape != parameter.shape:
            raise ConfigError(
                f"{name} is {list(tensors[name].shape)} in {folder}, not {list(parameter.shape)}"
            )
    for name, parameter in own.items():
        parameter.data.copy_(tensors[name])


def _write(model: Model, target: Path, merge_adapter: bool) -> None:
    config, module = model.config, model.module
    if config.lora is not None:
        if not merge_adapter:
            _write_adapter(module, target)
            return
        module = _merged(module)
    if isinstance(config, GptConfig):
        _write_gpt(config, module, target)
    elif hasattr(module, "save_pretrained"):
        _write_hf(module, target)
    else:
        save_file(_plain_state(module), target / WEIGHTS, metadata={"format": "pt"})
    if isinstance(model.tokenizer, HfTokenizer):
        with hf.quiet(optional("transformers", "hf")):
            model.tokenizer.inner.save_pretrained(target)


def _write_gpt(config: GptConfig, module: nn.Module, target: Path) -> None:
    save_file(_plain_state(module), target / WEIGHTS, metadata={"format": "pt"})
    _write_json(target / "config.json", llama_config(config))
    _write_json(target / "generation_config.json", {"eos_token_id": 0})
    _write_json(target / "tokenizer.json", byte_tokenizer())
    _write_json(target / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": _END,
        "clean_up_tokenization_spaces": False, "model_max_length": config.context,
    })  # fmt: skip


def llama_config(config: GptConfig) -> dict[str, Any]:
    """What transformers calls the built-in model."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": gpt.VOCABULARY,
        "hidden_size": config.width,
        "intermediate_size": config.hidden_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.heads,
        "max_position_embeddings": config.context,
        "rms_norm_eps": gpt.NORM_EPSILON,
        "rope_theta": gpt.ROTARY_BASE,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": None,
        "torch_dtype": {"fp32": "float32", "bf16": "bfloat16"}[config.dtype],
    }


_END = "<|end|>"  # byte 0, which text does not hold


def byte_tokenizer() -> dict[str, Any]:
    """A tokenizer.json whose token i is byte i: byte-level pieces and a merge table with nothing in
    it.
    """
    vocabulary = {sign: byte for byte, sign in enumerate(_byte_signs())}
    del vocabulary[_byte_signs()[0]]
    vocabulary[_END] = 0
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }
    return {
        "version": "1.0",
        "added_tokens": [{
            "id": 0, "content": _END, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": True,
        }],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }  # fmt: skip


def _byte_signs() -> list[str]:
    """The printable character that byte-level tokenizers write for each byte: itself where it is
    visible, else one from 256 on.
    """
    visible = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return [chr(256 + hidden.index(b)) if b in hidden else chr(b) for b in range(256)]


def _write_hf(module: nn.Module, target: Path) -> None:
    """A model read from a GGUF file says that it is quantised, which its weights no longer are."""
    config: Any = module.config
    quantised = getattr(config, "quantization_config", None)
    transformers = optional("transformers", "hf")
    with hf.quiet(transformers), suppress(AttributeError):
        if quantised is not None:
            del config.quantization_config
    try:
        with hf.quiet(transformers):
            config.save_pretrained(target)
            generation = getattr(module, "generation_config", None)
            if generation is not None and module.can_generate():  # type: ignore[operator]
                generation.save_pretrained(target)
    finally:
        if quantised is not None:
            config.quantization_config = quantised
    save_file(_plain_state(module), target / WEIGHTS, metadata={"format": "pt"})


def _write_adapter(module: nn.Module, target: Path) -> None:
    with hf.quiet(optional("transformers", "hf")):
        module.save_pretrained(target)  # type: ignore[operator]


def _merged(module: nn.Module) -> nn.Module:
    """A copy with the adapters added into the weights; the model that trains stays as it is."""
    from copy import deepcopy

    merged: nn.Module = deepcopy(module).merge_and_unload()  # type: ignore[operator]
    return merged


def _plain_state(module: nn.Module) -> dict[str, Tensor]:
    """Every tensor once: tied ones under their first name, on the CPU, in memory of their own."""
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            state[name] = tensor.detach().to("cpu", copy=True).contiguous()
    return state


def _is_export(folder: Path) -> bool:
    return any(folder.glob("*.safetensors"))


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
