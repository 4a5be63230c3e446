"""The data of a run: where it comes from, what a sample is, which samples are held out, and in
which order they come.

Everything is a function of the configuration and the bytes on disk, so two peers with the same data
see the same batch in the same slot. The digest covers the tokens themselves, so a different
tokenizer, file or Python version shows. Private data has no digest and says so: then each peer
reads its own folder, and slots mean nothing to others.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from blake3 import blake3

from node.errors import ConfigError
from node.training import sources
from node.training.data_config import DataConfig
from node.training.losses import Batch
from node.training.order import permuted
from node.training.tokens import Tokenizer

_CONTEXT = "peertrain 2026-11 data digest v1"
_SPLIT = "peertrain 2026-11 held-out split v1"
DOCUMENTS_MIN = 20  # with fewer, a region at the end is held out instead of whole documents

Ints = npt.NDArray[np.int64]
T = TypeVar("T")


class Samples(Protocol):
    def __len__(self) -> int: ...

    def batch(self, indices: Ints) -> Batch: ...

    def chunks(self) -> Iterator[bytes]:
        """Everything that matters, for the digest."""
        ...


class Data:
    def __init__(self, config: DataConfig, train: Samples, held_out: Samples) -> None:
        """Raises ConfigError when there is less than one batch."""
        if len(train) < config.batch or not len(held_out):
            raise ConfigError(
                f"the data is too short: {len(train)} samples to train on,"
                f" {len(held_out)} held out, batches of {config.batch}",
                "give more text, or lower `batch` or `context` in [data]",
            )
        self._config, self._train, self._held_out = config, train, held_out
        self.batches = len(train) // config.batch  # in one epoch
        self.samples = len(train)
        self.private = config.private
        self.digest: bytes | None = None if config.private else _digest(train, held_out)

    def batch(self, slot: int, part: int = 0, parts: int = 1) -> Batch:
        """The batch of a slot; slots count on through the epochs, each of which has an order of its
        own. With several `parts`: as if there were only this one of so many equal stretches of the
        samples, of `batches_in` batches.
        """
        return self.batches_of(np.array([slot]), np.array([part]), parts)

    def batches_of(self, slots: Ints, part: Ints, parts: int) -> Batch:
        """The batches of many slots, each in its part, one after the other as one batch."""
        size, samples = self._config.batch, len(self._train) // parts
        epochs, first = np.divmod(slots, self.batches_in(parts))
        places = first[:, None] * size + np.arange(size)
        found = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            those = epochs == epoch
            found[those] = permuted(
                places[those].reshape(-1), samples, epoch, self._config.seed
            ).reshape(-1, size)
        return self._train.batch((part[:, None] * samples + found).reshape(-1))

    def batches_in(self, parts: int) -> int:
        """Of each of so many parts, in one epoch; 0: they are too small."""
        return len(self._train) // parts // self._config.batch

    def held_out(self) -> list[Batch]:
        """The same batches every time, spread over everything that is held out."""
        size, total = self._config.batch, len(self._held_out)
        count = min(total, size * self._config.held_out_batches)
        indices = np.arange(count, dtype=np.int64) * total // count
        return [self._held_out.batch(indices[i : i + size]) for i in range(0, count, size)]


def open_data(config: DataConfig, tokenizer: Tokenizer, root: Path) -> Data:
    """Read and tokenise the data below `root`, this machine's data folder.

    Raises ConfigError with what is missing.
    """
    if config.task != "language-model":
        return _open_texts(config, tokenizer, root)
    if config.source == "tokens":
        train, held_out = _open_tokens(config, tokenizer, root)
    else:
        train, held_out = _tokenise(config, tokenizer, root)
    return Data(config, Windows(train, config.context), Windows(held_out, config.context))


class Windows:
    """Language modelling: windows of `context` tokens, side by side; a window's targets reach one
    token further.
    """

    def __init__(self, streams: Sequence[npt.NDArray[np.unsignedinteger]], context: int) -> None:
        self._streams = [s for s in streams if len(s) > context]
        self._context = context
        counts = [(len(s) - 1) // context for s in self._streams]
        self._ends = np.cumsum([0, *counts], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def batch(self, indices: Ints) -> Batch:
        which = np.searchsorted(self._ends, indices, side="right") - 1
        starts = (indices - self._ends[which]) * self._context
        rows = [
            self._streams[s][at : at + self._context + 1]
            for s, at in zip(which.tolist(), starts.tolist(), strict=True)
        ]
        tokens = torch.from_numpy(np.stack(rows).astype(np.int64))
        return Batch(tokens[:, :-1], tokens[:, 1:])

    def chunks(self) -> Iterator[bytes]:
        for stream in self._streams:
            yield len(stream).to_bytes(8, "little")
            for at in range(0, len(stream), 1 << 22):
                yield stream[at : at + (1 << 22)].astype("<u4").tobytes()


class Texts:
    """Classification: prompts with a label each, padded on the right to the longest of the
    batch.
    """

    def __init__(self, rows: Sequence[tuple[list[int], int]], label_words: Sequence[int]) -> None:
        self._rows = rows
        self._label_words = torch.tensor(label_words, dtype=torch.int64) if label_words else None

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, indices: Ints) -> Batch:
        rows = [self._rows[i] for i in indices.tolist()]
        lengths = torch.tensor([len(ids) for ids, _ in rows])
        inputs = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
        for row, (ids, _) in zip(inputs, rows, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        targets = torch.tensor([label for _, label in rows])
        return Batch(inputs, targets, lengths, self._label_words)

    def chunks(self) -> Iterator[bytes]:
        for ids, label in self._rows:
            yield len(ids).to_bytes(8, "little") + label.to_bytes(8, "little")
            yield np.array(ids, dtype="<u4").tobytes()


def _tokenise(
    config: DataConfig, tokenizer: Tokenizer, root: Path
) -> tuple[list[npt.NDArray[np.uint32]], list[npt.NDArray[np.uint32]]]:
    """All documents as one stream to train on and one held out."""
    texts = (t for t in _capped(_texts(config, root), config.bytes_max) if t)
    documents = list(_encoded(texts, tokenizer))
    if not documents:
        raise ConfigError("the data holds no text", "check `path` in [data]")
    if len(documents) < DOCUMENTS_MIN:
        whole = np.concatenate(documents)
        cut = len(whole) - max(int(len(whole) * config.held_out), 2)
        return [whole[:cut]], [whole[cut:]]
    train, held_out = _split(config, documents)
    return [np.concatenate(train)], [np.concatenate(held_out)]


def _encoded(texts: Iterable[str], tokenizer: Tokenizer) -> Iterator[npt.NDArray[np.uint32]]:
    end = np.array([] if tokenizer.separator is None else [tokenizer.separator], dtype=np.uint32)
    texts = iter(texts)
    while some := list(islice(texts, 256)):
        for ids in tokenizer.encode(some):
            array = np.frombuffer(ids, np.uint8) if isinstance(ids, bytes) else np.array(ids)
            yield np.concatenate([array.astype(np.uint32), end])


def _open_tokens(
    config: DataConfig, tokenizer: Tokenizer, root: Path
) -> tuple[list[npt.NDArray[np.unsignedinteger]], list[npt.NDArray[np.unsignedinteger]]]:
    """Memory-mapped files of ids; the end of each is held out."""
    train: list[npt.NDArray[np.unsignedinteger]] = []
    held_out: list[npt.NDArray[np.unsignedinteger]] = []
    for path in sources.resolve(config.path, root, ("*.bin",)):
        if not path.stat().st_size or path.stat().st_size % config.token_bytes:
            raise ConfigError(
                f"{path} is empty or does not hold whole tokens of {config.token_bytes} bytes",
                "check `token_bytes` in [data]",
            )
        ids = np.memmap(path, dtype=f"<u{config.token_bytes}", mode="r")
        if (
            top := max(int(ids[i : i + (1 << 22)].max()) for i in range(0, len(ids), 1 << 22))
        ) >= tokenizer.size:
            raise ConfigError(
                f"{path} holds the token {top}, but the model knows {tokenizer.size}",
                "check `token_bytes` in [data], and that this model's tokenizer made the file",
            )
        cut = len(ids) - max(int(len(ids) * config.held_out), 2)
        train.append(ids[: max(0, cut)])
        held_out.append(ids[max(0, cut) :])
    return train, held_out


def _open_texts(config: DataConfig, tokenizer: Tokenizer, root: Path) -> Data:
    numbers = {label: i for i, label in enumerate(config.labels)}
    prompts: list[str] = []
    labels: list[int] = []
    for row in _rows(config, root):
        label = sources.field_of(row, config.label_field)
        if label not in numbers:
            raise ConfigError(f"the data has a label {label!r}", "list it in `labels` in [data]")
        text = str(sources.field_of(row, config.text_field))
        prompts.append(config.template.replace("{text}", text))
        labels.append(numbers[label])
    ids = [list(row[-config.context :]) or [0] for row in tokenizer.encode(prompts)]
    words = _label_tokens(config, tokenizer)
    rows = list(zip(ids, labels, strict=True))
    train, held_out = _split(config, rows)
    return Data(config, Texts(train, words), Texts(held_out, words))


def _label_tokens(config: DataConfig, tokenizer: Tokenizer) -> list[int]:
    words = tokenizer.encode(config.label_words) if config.task == "label-words" else []
    tokens = [ids[0] for ids in words if ids]
    if len(set(tokens)) != len(words):
        raise ConfigError(
            f"the label words {config.label_words} do not differ in their first token",
            "choose other words, or add the leading space",
        )
    return tokens


def _texts(config: DataConfig, root: Path) -> Iterator[str]:
    if config.source == "python-stdlib":
        yield from sources.stdlib_texts()
    elif config.source == "text":
        yield from sources.text_files(config.path, root)
    else:
        for row in _rows(config, root):
            yield str(sources.field_of(row, config.text_field))


def _rows(config: DataConfig, root: Path) -> Iterator[sources.Row]:
    match config.source:
        case "jsonl":
            return sources.json_rows(config.path, root)
        case "parquet":
            labelled = config.task != "language-model"
            columns = [config.text_field, *([config.label_field] if labelled else [])]
            return sources.parquet_rows(config.path, root, columns)
        case _:
            return sources.hub_rows(config.path[0], config.subset, config.split)


def _capped(texts: Iterable[str], bytes_max: int) -> Iterator[str]:
    """Texts until `bytes_max` bytes; the last one is cut."""
    left = bytes_max
    for text in texts:
        data = text.encode()
        yield text if len(data) <= left else data[:left].decode(errors="ignore")
        left -= len(data)
        if left <= 0:
            return


def _split(config: DataConfig, items: Sequence[T]) -> tuple[list[T], list[T]]:
    """(to train on, held out). Decided for each item by itself, so that one more moves no other;
    the first is held out when chance would hold out none.
    """
    held = [_draw(config.seed, i) < config.held_out for i in range(len(items))]
    if not any(held):
        held[:1] = [True]
    train = [item for item, h in zip(items, held, strict=True) if not h]
    return train, [item for item, h in zip(items, held, strict=True) if h]


def _draw(seed: int, index: int) -> float:
    """Uniform in [0, 1)."""
    fields = seed.to_bytes(8, "little") + index.to_bytes(8, "little")
    return (
        int.from_bytes(blake3(fields, derive_key_context=_SPLIT).digest(length=4), "little") / 2**32
    )


def _digest(train: Samples, held_out: Samples) -> bytes:
    hasher = blake3(derive_key_context=_CONTEXT)
    for samples in (train, held_out):
        hasher.update(len(samples).to_bytes(8, "little"))
        for chunk in samples.chunks():
            hasher.update(chunk)
    return hasher.digest()
