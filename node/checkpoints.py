"""Weights on disk: the last few rounds as safetensors files, each whole or absent.

A file carries the BLAKE3 of its own tensors in its header, so one that a failing disk or a stray
hand changed is noticed and the one before it is used. Nothing but safetensors is ever read.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, uint8

from node.durable import TEMPORARY_SUFFIX, write_atomically
from node.store import StoreError, StoreFull

KEPT = 2
_NAME = re.compile(r"round-(\d{12})\.safetensors")
_FORMAT = "1"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What one file says about itself; its tensors have been checked against it."""

    path: Path
    round: int
    entry_hash: bytes
    meta: Mapping[str, str]
    tensors: Mapping[str, Tensor]


def save(
    home: Path,
    round: int,
    entry_hash: bytes,
    tensors: Mapping[str, Tensor],
    meta: Mapping[str, str] | None = None,
) -> Path:
    """Write one checkpoint, then drop all but the newest two. Raises StoreFull."""
    folder = _folder(home)
    path = folder / f"round-{round:012}.safetensors"
    flat = _apart(tensors)
    header = {
        "format": _FORMAT,
        "round": str(round),
        "entry": entry_hash.hex(),
        "meta": json.dumps(dict(meta or {}), sort_keys=True),
        "blake3": "",
    }
    header["blake3"] = _digest(header, flat)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _remove_temporaries(folder)
        write_atomically(path, lambda temporary: save_file(flat, temporary, header))
    except (OSError, SafetensorError) as error:
        # safetensors reports a full disk in words only.
        text = str(error)
        if "No space left" in text or "quota" in text.lower():
            raise StoreFull(
                f"no room left for a checkpoint in {folder}", "free some space"
            ) from error
        raise StoreError(f"cannot write {path}: {text}", "check the disk") from error
    for old in _files(folder)[:-KEPT]:
        old.unlink(missing_ok=True)
    return path


def rounds(home: Path) -> list[int]:
    """The rounds that have a file, oldest first. Whether a file is sound, only `load` tells."""
    return [_round_of(path) for path in _files(_folder(home))]


def load(home: Path, round: int) -> Checkpoint | None:
    """None when the file is not there or is damaged."""
    path = _folder(home) / f"round-{round:012}.safetensors"
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if header.get("format") != _FORMAT or header["blake3"] != _digest(header, tensors):
            return None
        if int(header["round"]) != round:
            return None
        entry = bytes.fromhex(header["entry"])
        return Checkpoint(path, round, entry, json.loads(header["meta"]), tensors)
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


def newest(home: Path, round_max: int | None = None) -> Checkpoint | None:
    """The newest sound checkpoint, at most of round `round_max`."""
    for round in reversed(rounds(home)):
        if round_max is not None and round > round_max:
            continue
        found = load(home, round)
        if found is not None:
            return found
    return None


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, in one piece each; safetensors refuses two names for one memory (tied ones)."""
    apart: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        apart[name] = plain.clone() if plain.data_ptr() in seen else plain
        seen.add(plain.data_ptr())
    return apart


def _digest(header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """Over everything that the file says; each part with its length, so none can borrow."""
    state = blake3()
    told = {key: value for key, value in header.items() if key != "blake3"}
    layout = [(name, str(t.dtype), list(t.shape)) for name, t in sorted(tensors.items())]
    state.update(json.dumps([told, layout], sort_keys=True).encode())
    for _, tensor in sorted(tensors.items()):
        if tensor.numel():
            state.update(tensor.reshape(-1).view(uint8).numpy().data)
    return state.hexdigest()


def _folder(home: Path) -> Path:
    return home / "checkpoints"


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def _round_of(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match is not None, "only files with such a name are listed"
    return int(match[1])


def _remove_temporaries(folder: Path) -> None:
    """What a killed process was still writing."""
    for path in folder.glob(f"*{TEMPORARY_SUFFIX}"):
        path.unlink(missing_ok=True)
