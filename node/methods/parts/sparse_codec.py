"""Sparse updates as bytes: what a payload or an attachment of a sparse method is made of.

    version  1 byte   0x10 + bits of a symbol (1 or 2)
    then for each tensor of the layout that has elements, in the model's order:
    divisor  uint16   of the code of its positions; at least 1, at most the elements of its longest
                      chunk, where 0 stands for 65536
    low      bf16     its magnitudes: 0 or within MAGNITUDE_MIN..MAGNITUDE_MAX, low <= high; equal
    high     bf16     when a symbol has one bit
    lengths  uint32   bytes of positions, for each span of the tensor
    symbols           of each value, packed from the lowest bits up: 1 for a minus, 2 for `high`
    positions         of each span, coded as `kernels.sparse` says, padded with zero bits

Numbers are little-endian. How many tensors, spans and values there are is the layout's to say. A
tensor takes six bytes and four for every million elements on top of its values. A value takes its
symbol and, when 64 of 4096 are kept and all positions are equally likely, 7.46 bits of position;
log2(binomial(4096, 64)) / 64 = 7.36 would be the least.

Reading is strict: what `encode` would not lay out this way is refused, whatever the bytes, and they
are read once from end to end before anything is made of them. Two things are left to the writer,
since all readers agree on them anyway: the divisor, and which magnitude stands for a value.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from node.kernels import sparse
from node.kernels.threads import Threads
from node.methods.parts.chunks import CHUNK_MAX, HEADER_BYTES, Layout, TensorChunks
from node.methods.parts.reading import ByteReader, magnitude_of, pattern_of
from node.methods.parts.sparsify import Selection

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]

VERSION: Final = 0x10
THREADS: Final = Threads()

_HEADER: Final = struct.Struct("<HHH")
assert _HEADER.size == HEADER_BYTES


@dataclass(frozen=True, slots=True)
class TensorUpdate:
    """Where one tensor's update lies in the bytes; all within bounds."""

    divisor: int
    low: float
    high: float
    symbols: Bytes
    streams: tuple[Bytes, ...]  # the positions of each span


@dataclass(frozen=True, slots=True)
class SparseUpdate:
    """Bytes that were checked, and stay as they are: decoding them cannot fail."""

    layout: Layout
    tensors: tuple[TensorUpdate, ...]  # one for each of the layout


def encode(layout: Layout, selections: Sequence[Selection]) -> bytes:
    """The bytes of what each tensor of the layout sends."""
    assert len(selections) == len(layout.tensors), "one selection for each tensor"
    parts = [bytes([VERSION + layout.symbol_bits])]
    for tensor, selection in enumerate(selections):
        if layout.tensors[tensor].size:
            parts += _encode_tensor(layout, tensor, selection)
    return b"".join(parts)


def decode(layout: Layout, data: bytes) -> SparseUpdate:
    """Check the bytes against the layout. Raises ValueError for any that do not fit it."""
    reader = ByteReader(np.frombuffer(data, np.uint8))
    if reader.take(1, "the version")[0] != VERSION + layout.symbol_bits:
        raise ValueError(
            f"version {data[0]:#x} of the sparse code; this run has"
            f" {VERSION + layout.symbol_bits:#x}"
        )
    tensors = tuple(_decode_tensor(layout, tensor, reader) for tensor in range(len(layout.tensors)))
    if reader.left:
        raise ValueError(f"{reader.left} bytes behind the last tensor")
    update = SparseUpdate(layout, tensors)
    THREADS.map(lambda part: _check_span(update, *part), _spans(layout))
    return update


def positions_of(update: SparseUpdate, tensor: int) -> Ints:
    """(kept,) int64: the positions of a tensor's values, rising."""
    positions = np.empty(update.layout.tensors[tensor].kept, np.int64)
    for number, span in enumerate(update.layout.spans[tensor]):
        part = positions[span.first : span.first + span.kept]
        fault = _read_span(update, tensor, number, part)
        assert not fault, "the bytes have changed since they were checked"
        part += span.start
    return positions


def symbols_of(update: SparseUpdate, tensor: int) -> Bytes:
    """(kept,) uint8: the symbols of a tensor's values."""
    kept = update.layout.tensors[tensor].kept
    return _unpack(update.tensors[tensor].symbols, update.layout.symbol_bits)[:kept]


def values_of(update: SparseUpdate, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of all tensors: (kept,) int64 positions in the flat vector, rising, and their (kept,) float32
    values.
    """
    positions, values = [], []
    for number, (offset, tensor) in enumerate(
        zip(update.layout.offsets, update.tensors, strict=True)
    ):
        positions.append(torch.from_numpy(positions_of(update, number)) + offset)
        table = torch.tensor([tensor.low, -tensor.low, tensor.high, -tensor.high])
        values.append(table[torch.from_numpy(symbols_of(update, number)).long()])
    return torch.cat(positions).to(device), torch.cat(values).to(device)


def _encode_tensor(layout: Layout, tensor: int, selection: Selection) -> Iterable[bytes]:
    chunks = layout.tensors[tensor]
    positions = np.ascontiguousarray(selection.positions.cpu().numpy())
    assert positions.shape == (chunks.kept,), "as many values as the layout keeps"
    divisor, bits = _best_divisor(chunks, positions)
    streams = [
        _encode_span(chunks, positions, span.first, span.kept, divisor, bits)
        for span in layout.spans[tensor]
    ]
    low, high = pattern_of(selection.low), pattern_of(selection.high)
    yield _HEADER.pack(divisor % CHUNK_MAX, low, high)
    yield np.array([len(stream) for stream in streams], "<u4").tobytes()
    yield _pack(selection.symbols.cpu().numpy(), layout.symbol_bits)
    yield from streams


def _best_divisor(chunks: TensorChunks, positions: Ints) -> tuple[int, int]:
    """The cheapest divisor for a tensor's positions, and the bits that they take."""
    counts = np.zeros(min(chunks.chunk, chunks.size), np.int64)
    fault = sparse.count_gaps(positions, chunks.chunk, chunks.k, chunks.size, counts)
    assert not fault, "positions rise in each chunk"
    divisor, bits = sparse.best_divisor(counts)
    return divisor, bits


def _encode_span(
    chunks: TensorChunks, positions: Ints, first: int, kept: int, divisor: int, bits: int
) -> bytes:
    out = np.empty(-(-bits // 8), np.uint8)  # a span takes no more than its tensor
    size = sparse.write_span(positions, first, first + kept, chunks.chunk, chunks.k, divisor, out)
    assert size >= 0, "the positions take as many bits as were counted"
    return out[:size].tobytes()


def _decode_tensor(layout: Layout, tensor: int, reader: ByteReader) -> TensorUpdate:
    chunks, what = layout.tensors[tensor], f"tensor {tensor}"
    if not chunks.size:
        return TensorUpdate(1, 0.0, 0.0, np.empty(0, np.uint8), ())
    divisor, low, high = _HEADER.unpack(reader.take(_HEADER.size, what).tobytes())
    divisor = divisor or CHUNK_MAX
    if divisor > min(chunks.chunk, chunks.size):
        raise ValueError(f"{what}: a divisor of {divisor} is more than a chunk has elements")
    if low > high or (layout.symbol_bits == 1 and low != high):
        raise ValueError(f"{what}: its magnitudes are out of order")
    lengths = reader.take(4 * len(layout.spans[tensor]), what).view("<u4").tolist()
    symbols = reader.take(layout.symbol_bytes(tensor), what)
    unused = 8 * len(symbols) - chunks.kept * layout.symbol_bits
    if int(symbols[-1]) >> (8 - unused):
        raise ValueError(f"{what}: the padding behind its symbols is not zero")
    streams = tuple(reader.take(length, what) for length in lengths)
    return TensorUpdate(
        divisor, magnitude_of(low, what), magnitude_of(high, what), symbols, streams
    )


def _spans(layout: Layout) -> Iterable[tuple[int, int]]:
    """(tensor, number of the span in it) of all spans."""
    return ((t, s) for t, spans in enumerate(layout.spans) for s in range(len(spans)))


def _check_span(update: SparseUpdate, tensor: int, number: int) -> None:
    scratch = np.empty(update.layout.spans[tensor][number].kept, np.int64)
    fault = _read_span(update, tensor, number, scratch)
    if fault:
        raise ValueError(f"tensor {tensor}: {sparse.FAULTS[fault]}")


def _read_span(update: SparseUpdate, tensor: int, number: int, positions: Ints) -> int:
    chunks, span = update.layout.tensors[tensor], update.layout.spans[tensor][number]
    part = update.tensors[tensor]
    fault: int = sparse.read_span(
        part.streams[number], part.divisor, chunks.chunk, chunks.k, span.size, positions
    )
    return fault


def _pack(symbols: Bytes, bits: int) -> bytes:
    each = 8 // bits  # symbols of a byte
    padded = np.zeros(-(-len(symbols) // each) * each, np.uint8)
    padded[: len(symbols)] = symbols
    packed = np.zeros(len(padded) // each, np.uint8)
    for place in range(each):
        packed |= padded[place::each] << np.uint8(place * bits)
    return packed.tobytes()


def _unpack(packed: Bytes, bits: int) -> Bytes:
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return ((packed[:, None] >> shifts) & np.uint8((1 << bits) - 1)).reshape(-1)
