"""Checkpoint files: whole or absent, checked, the newest two kept."""

import stat
from pathlib import Path

import pytest
import torch
from torch import Tensor

from node import checkpoints

ENTRY = b"e" * 32


def tensors(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(7, 5, generator=generator)
    return {
        "weight": weight,
        "tied": weight,
        "turned": weight.T,
        "half": weight.to(torch.bfloat16),
        "step": torch.tensor(3, dtype=torch.int64),
        "none": torch.empty(0),
    }


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    assert checkpoints.newest(tmp_path) is None
    path = checkpoints.save(tmp_path, 12, ENTRY, tensors(), {"method": "spsa"})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = checkpoints.newest(tmp_path)
    assert found is not None
    assert (found.round, found.entry_hash, found.meta) == (12, ENTRY, {"method": "spsa"})
    assert_same(dict(found.tensors), tensors())


def test_the_newest_two_are_kept_and_leftovers_go(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "round-000000000007.safetensors.tmp").write_bytes(b"half")
    for round in (1, 2, 10, 9):
        checkpoints.save(tmp_path, round, ENTRY, tensors(round))
    assert checkpoints.rounds(tmp_path) == [9, 10]
    assert len(list(folder.iterdir())) == 2
    older = checkpoints.newest(tmp_path, round_max=9)
    assert older is not None
    assert_same(dict(older.tensors), tensors(9))


@pytest.mark.parametrize("how", ["torn", "flipped", "header", "empty", "foreign", "renamed"])
def test_a_damaged_file_is_passed_over_for_the_one_before(tmp_path: Path, how: str) -> None:
    checkpoints.save(tmp_path, 1, ENTRY, tensors(1))
    path = checkpoints.save(tmp_path, 2, ENTRY, tensors(2))
    raw = bytearray(path.read_bytes())
    match how:
        case "torn":
            raw = raw[:-40]
        case "flipped":
            raw[-3] ^= 1
        case "header":
            raw = bytearray(raw.replace(ENTRY.hex().encode(), (b"f" * 32).hex().encode()))
        case "empty":
            raw = bytearray()
        case "foreign":
            raw = bytearray(b"\x80\x04cos\nsystem\n" * 100)
        case "renamed":
            path.rename(path.with_name("round-000000000003.safetensors"))
            path = path.with_name("round-000000000003.safetensors")
    path.write_bytes(raw)
    found = checkpoints.newest(tmp_path)
    assert found is not None
    assert found.round == 1
    assert_same(dict(found.tensors), tensors(1))
