"""Data: samples, the held-out part, the digest, and what is said when something is missing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from node.errors import ConfigError
from node.training.data import Data, open_data
from node.training.data_config import DataConfig
from node.training.tokens import ByteTokenizer

BYTES = ByteTokenizer()


def opened(root: Path, **fields: object) -> Data:
    return open_data(DataConfig.model_validate({"context": 8, "batch": 2, **fields}), BYTES, root)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """40 documents, each of a letter of its own."""
    for i in range(40):
        (tmp_path / f"{i:02}.txt").write_text(chr(65 + i) * 50)
    return tmp_path


def seen(data: Data) -> set[int]:
    batches = [data.batch(slot) for slot in range(data.batches)]
    return {int(t) for b in batches for t in torch.cat([b.inputs.flatten(), b.targets.flatten()])}


def test_held_out_documents_are_never_trained_on(folder: Path) -> None:
    data = opened(folder, source="text", path=".", held_out=0.2, held_out_batches=100)
    held = {int(t) for b in data.held_out() for t in b.inputs.flatten()} - {0}
    assert 2 <= len(held) <= 20
    assert held & seen(data) <= {0}


def test_a_single_document_is_cut_at_a_place(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("a" * 900 + "b" * 100)
    data = opened(tmp_path, source="text", path="one.txt", held_out=0.1)
    assert seen(data) == {ord("a")}
    assert {int(t) for b in data.held_out() for t in b.inputs.flatten()} <= {ord("b"), 0}


def test_targets_are_the_next_tokens_and_epochs_cover_everything(tmp_path: Path) -> None:
    np.arange(1000, dtype="<u2").tofile(tmp_path / "a.bin")
    config = DataConfig(source="tokens", path=("a.bin",), context=8, batch=2, held_out=0.1)

    class Wide(ByteTokenizer):
        size = 1000

    data = open_data(config, Wide(), tmp_path)
    starts = []
    for slot in range(data.batches):
        batch = data.batch(slot)
        assert torch.equal(batch.targets, batch.inputs + 1)
        starts += batch.inputs[:, 0].tolist()
    assert sorted(starts) == list(range(0, 8 * len(starts), 8))
    assert max(starts) + 8 < 900
    again: list[int] = []
    for slot in range(data.batches, 2 * data.batches):
        again += data.batch(slot).inputs[:, 0].tolist()
    assert sorted(again) == sorted(starts)
    assert again != starts


def test_the_digest_is_of_the_tokens(folder: Path) -> None:
    first = opened(folder, source="text", path=".").digest
    assert first == opened(folder, source="text", path="*.txt").digest
    (folder / "07.txt").write_text("something else, of another length")
    assert first != opened(folder, source="text", path=".").digest
    assert opened(folder, source="text", path=".", private=True).digest is None


def rows(tmp_path: Path) -> Path:
    lines = [
        {"text": f"number {i}", "label": ["bad", "good"][i % 2], "other": i} for i in range(60)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


LABELS: dict[str, Any] = {
    "source": "jsonl", "path": "rows.jsonl", "task": "label-words", "labels": ("bad", "good"),
    "label_words": ("awful", "great"), "template": "{text}: ", "context": 32,
}  # fmt: skip


def test_label_words_become_one_token_each(tmp_path: Path) -> None:
    data = opened(rows(tmp_path), **LABELS)
    batch = data.batch(0)
    assert batch.label_words is not None
    assert batch.label_words.tolist() == [ord("a"), ord("g")]
    assert batch.lengths is not None
    for row, length, label in zip(batch.inputs, batch.lengths, batch.targets, strict=True):
        text = bytes(row[: int(length)].tolist()).decode()
        assert text.startswith("number ")
        assert text.endswith(": ")
        assert int(text[7:-2]) % 2 == int(label)


def test_parquet_holds_the_same_as_json(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    lines = [json.loads(x) for x in (rows(tmp_path) / "rows.jsonl").read_text().splitlines()]
    parquet.write_table(pyarrow.Table.from_pylist(lines), tmp_path / "rows.parquet")
    same = opened(tmp_path, **{**LABELS, "source": "parquet", "path": "rows.parquet"})
    assert same.digest == opened(tmp_path, **LABELS).digest
    with pytest.raises(ConfigError, match="no column 'absent'"):
        opened(tmp_path, source="parquet", path="rows.parquet", text_field="absent")


def test_the_standard_library_is_there() -> None:
    data = opened(Path(), source="python-stdlib", bytes_max=1 << 18)
    assert data.batches > 5000


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"source": "text", "path": "nowhere.txt"}, "no file at"),
        ({"source": "text", "path": "nowhere/*.txt"}, "no file at"),
        ({"source": "text", "path": "empty"}, "holds no"),
        ({"source": "text", "path": "short.txt"}, "too short"),
        ({"source": "text", "path": "blank.txt"}, "no text"),
        ({"source": "tokens", "path": "odd.bin"}, "whole tokens"),
        ({"source": "tokens", "path": "large.bin"}, "the token 60000"),
        ({"source": "jsonl", "path": "bad.jsonl"}, "line 2"),
        ({"source": "jsonl", "path": "list.jsonl"}, "not a JSON object"),
        ({"source": "jsonl", "path": "rows.jsonl", "text_field": "x"}, "no field 'x'"),
        ({**LABELS, "labels": ("bad", "other")}, "label 'good'"),
        ({**LABELS, "label_words": ("good", "great")}, "do not differ"),
    ],
)
def test_what_is_wrong_is_said(fields: dict[str, Any], says: str, tmp_path: Path) -> None:
    (rows(tmp_path) / "empty").mkdir()
    (tmp_path / "short.txt").write_text("hi")
    (tmp_path / "blank.txt").write_text("")
    (tmp_path / "odd.bin").write_bytes(b"123")
    np.array([1, 60000], dtype="<u2").tofile(tmp_path / "large.bin")
    (tmp_path / "bad.jsonl").write_text('{"text": "x"}\n{"text"')
    (tmp_path / "list.jsonl").write_text("[1]")
    with pytest.raises(ConfigError, match=says) as error:
        opened(tmp_path, **fields)
    assert error.value.hint or "holds no" in error.value.message


@pytest.mark.parametrize(
    "fields",
    [
        {"source": "text"},
        {"source": "tokens", "path": "x", "task": "classifier"},
        {"source": "jsonl", "path": "x", "task": "label-words", "labels": ("a", "b")},
        {"source": "hub", "path": ("a", "b")},
        {"source": "text", "path": "x", "surprise": 1},
    ],
)
def test_configurations_that_contradict_themselves(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DataConfig(**fields)
