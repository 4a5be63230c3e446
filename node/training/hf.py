"""Hugging Face models and tokenizers: loading, quietly, without ever running code that comes with a
model.
"""

import logging
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from fractions import Fraction
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import nn

from node.errors import ConfigError, MissingExtra, optional
from node.training.initial import fill_uniform
from node.training.tokens import HfTokenizer, Tokenizer

_PACKAGE = "package:"
_HEAD_SEED = 0x4EAD  # new classifier heads start the same in every run
_HEAD_BOUND = Fraction(1, 32)

Head = Literal["causal-lm", "classifier"]


def load(
    path: str,
    root: Path,
    revision: str | None,
    gguf_file: str | None,
    head: Head,
    labels: int | None,
) -> tuple[nn.Module, Tokenizer, int]:
    """The model in fp32, its tokenizer, and the most tokens it takes. Raises ConfigError."""
    transformers = optional("transformers", "hf")
    if gguf_file is not None:
        optional("gguf", "hf")
    where = locate(path, root, gguf_file)
    options: dict[str, Any] = {"trust_remote_code": False}
    if revision is not None:
        options["revision"] = revision
    loading = {**options, "use_safetensors": True}  # never a pickle
    if gguf_file is not None:
        options["gguf_file"] = gguf_file
        loading = options
    kind = "AutoModelForCausalLM" if head == "causal-lm" else "AutoModelForSequenceClassification"
    extra = {"num_labels": labels} if labels is not None else {}
    with quiet(transformers), _explained(path):
        tokenizer = transformers.AutoTokenizer.from_pretrained(where, **options)
        module, report = getattr(transformers, kind).from_pretrained(
            where, dtype=torch.float32, output_loading_info=True, **loading, **extra
        )
    _fill_missing(module, report["missing_keys"])
    _plain(module)
    context = int(getattr(module.config, "max_position_embeddings", None) or 1 << 20)
    return module, HfTokenizer(tokenizer), context


def locate(path: str, root: Path, file: str | None = None) -> str:
    """A folder on this machine, or a hub id as it is. Raises ConfigError for a folder that is not
    there.
    """
    if path.startswith(_PACKAGE):
        folder = package_folder(path.removeprefix(_PACKAGE))
    else:
        folder = root / Path(path).expanduser()
        looks_local = path.startswith(("/", "./", "../", "~")) or path.count("/") > 1
        if not folder.is_dir():
            if looks_local:
                raise ConfigError(f"there is no folder {folder}", "check `path` in [model]")
            return path
    if file is not None and not (folder / file).is_file():
        names = sorted(p.name for p in folder.glob("*.gguf"))
        raise ConfigError(
            f"{folder} has no file {file!r}",
            f"it has {', '.join(names)}" if names else "check `gguf_file` in [model]",
        )
    return str(folder)


def package_folder(name: str) -> Path:
    """`NAME` or `NAME/FOLDER`: where an installed package's files lie. The package is not
    imported.
    """
    package, _, below = name.partition("/")
    try:
        spec = find_spec(package) if package.isidentifier() else None
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"the Python package {package!r} is not installed",
            f"pip install {package.replace('_', '-')}",
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / below
    if ".." in Path(below).parts or not folder.is_dir():
        raise ConfigError(f"the package {package!r} has no folder {below!r}")
    return folder


@contextmanager
def quiet(transformers: ModuleType) -> Iterator[None]:
    """No progress bars, no advice on standard error. Errors are raised as ever."""
    level = transformers.logging.get_verbosity()
    had_bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    disabled = logging.root.manager.disable
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()):  # some bars obey nothing else
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        transformers.logging.set_verbosity(level)
        if had_bars:
            transformers.logging.enable_progress_bar()


@contextmanager
def _explained(path: str) -> Iterator[None]:
    """What transformers raises, as one message and a next step."""
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    try:
        yield
    except ImportError as error:
        missing = getattr(error, "name", None)
        raise MissingExtra(missing or "a package that this model needs", "hf") from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        hint = "HF_HUB_OFFLINE is set: only folders and cached models can be read" if offline else (
            "check `path` in [model]: a folder with config.json, or a hub id"
        )  # fmt: skip
        raise ConfigError(f"the model {path!r} cannot be loaded: {first}", hint) from error


def _fill_missing(module: nn.Module, missing: Iterable[str]) -> None:
    """Weights that the file does not hold (a new classifier head) would start at random,
    differently everywhere.
    """
    names = set(missing)
    for index, (name, parameter) in enumerate(module.named_parameters()):
        if name not in names:
            continue
        if parameter.dim() > 1:
            fill_uniform(parameter.data, _HEAD_BOUND, _HEAD_SEED, index)
        elif "norm" in name.lower() and name.endswith("weight"):
            torch.nn.init.ones_(parameter)
        else:
            torch.nn.init.zeros_(parameter)


def _plain(module: nn.Module) -> None:
    """No key-value cache in a training forward; padding that a classifier can find."""
    config: Any = module.config
    config.use_cache = False
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = getattr(config, "eos_token_id", None) or 0
