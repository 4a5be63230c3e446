"""The sparse codec and its merge once more, in the obvious way: bits are characters."""

import math
import struct
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from node.methods.parts.chunks import SPAN_ELEMENTS, Layout, TensorChunks
from node.methods.parts.sparsify import Selection

Values = list[tuple[int, float]]  # (position, value) of what a tensor sends


def take_off(values: torch.Tensor, selection: Selection) -> None:
    """In place: what was selected, as everybody decodes it."""
    values[selection.positions] -= selection.decoded


def chunk_lengths(tensor: TensorChunks) -> list[tuple[int, int]]:
    """(elements, kept) of each chunk."""
    lengths = [min(tensor.chunk, tensor.size - s) for s in range(0, tensor.size, tensor.chunk)]
    return [(n, max(1, math.floor(tensor.k * n / tensor.chunk + 0.5))) for n in lengths]


def chunks_per_span(tensor: TensorChunks) -> int:
    return max(1, SPAN_ELEMENTS // tensor.chunk)


def code(gap: int, divisor: int) -> str:
    bits = "1" * (gap // divisor) + "0"
    rest, whole = gap % divisor, divisor.bit_length() - 1
    unused = 2 ** (whole + 1) - divisor
    if rest < unused:
        return bits + binary(rest, whole)
    return bits + binary((rest + unused) // 2, whole) + str((rest + unused) % 2)


def binary(number: int, width: int) -> str:
    """The lowest bit first."""
    return "".join(str(number >> i & 1) for i in range(width))


def packed(bits: str) -> bytes:
    return np.packbits(np.array([int(bit) for bit in bits], np.uint8), bitorder="little").tobytes()


def pattern(magnitude: float) -> int:
    return int(np.float32(magnitude).view(np.uint32)) >> 16


def gaps_of_chunks(tensor: TensorChunks, positions: Sequence[int]) -> list[list[int]]:
    left, gaps = list(positions), []
    for number, (_, kept) in enumerate(chunk_lengths(tensor)):
        before, mine = number * tensor.chunk - 1, []
        for position in left[:kept]:
            mine.append(position - before - 1)
            before = position
        gaps.append(mine)
        left = left[kept:]
    assert not left
    return gaps


def encode(layout: Layout, selections: Sequence[Selection]) -> bytes:
    out = bytes([0x10 + layout.symbol_bits])
    for tensor, selection in zip(layout.tensors, selections, strict=True):
        if not tensor.size:
            continue
        gaps = gaps_of_chunks(tensor, selection.positions.tolist())
        every = [gap for chunk in gaps for gap in chunk]
        longest = min(tensor.chunk, tensor.size)
        divisor = min(range(1, longest + 1), key=lambda m: sum(len(code(g, m)) for g in every))
        spans = chunks_per_span(tensor)
        streams = [
            packed("".join(code(gap, divisor) for chunk in gaps[at : at + spans] for gap in chunk))
            for at in range(0, len(gaps), spans)
        ]
        magnitudes = pattern(selection.low), pattern(selection.high)
        symbols = [binary(symbol, layout.symbol_bits) for symbol in selection.symbols.tolist()]
        out += struct.pack("<HHH", divisor % 65536, *magnitudes)
        out += b"".join(struct.pack("<I", len(stream)) for stream in streams)
        out += packed("".join(symbols)) + b"".join(streams)
    return out


def decode(layout: Layout, data: bytes) -> list[Values]:
    """What a payload that was accepted says, tensor by tensor. Raises for one that says nothing."""
    at, tensors = 1, []
    for tensor in layout.tensors:
        if not tensor.size:
            tensors.append([])
            continue
        divisor, *magnitudes = struct.unpack_from("<HHH", data, at)
        low, high = (float(np.uint32(p << 16).view(np.float32)) for p in magnitudes)
        chunks, spans = chunk_lengths(tensor), chunks_per_span(tensor)
        count = math.ceil(len(chunks) / spans)
        lengths = struct.unpack_from(f"<{count}I", data, at + 6)
        at += 6 + 4 * count
        symbol_bytes = math.ceil(tensor.kept * layout.symbol_bits / 8)
        symbols, at = bits_of(data[at : at + symbol_bytes]), at + symbol_bytes
        values: Values = []
        for number, length in enumerate(lengths):
            bits, at = bits_of(data[at : at + length]), at + length
            for chunk in range(number * spans, min((number + 1) * spans, len(chunks))):
                position = chunk * tensor.chunk - 1
                for _ in range(chunks[chunk][1]):
                    position += 1 + read_gap(bits, divisor or 65536)
                    assert position < chunk * tensor.chunk + chunks[chunk][0]
                    symbol = take(symbols, layout.symbol_bits)
                    value = high if symbol & 2 else low
                    values.append((position, -value if symbol & 1 else value))
            assert "1" not in "".join(bits)
        tensors.append(values)
    assert at == len(data)
    return tensors


def bits_of(data: bytes) -> Iterator[str]:
    return iter("".join(binary(byte, 8) for byte in data))


def take(bits: Iterator[str], width: int) -> int:
    return sum(int(next(bits)) << i for i in range(width))


def read_gap(bits: Iterator[str], divisor: int) -> int:
    ones = 0
    while next(bits) == "1":
        ones += 1
    whole = divisor.bit_length() - 1
    unused = 2 ** (whole + 1) - divisor
    rest = take(bits, whole)
    if rest >= unused:
        rest = 2 * rest + int(next(bits)) - unused
    return ones * divisor + rest


def summed(
    size: int,
    senders: Sequence[tuple[Values, float, int]],  # values, coefficient, share
    mean: bool,
) -> NDArray[np.float32]:
    """What a merge takes off one tensor, element by element."""
    sums, sent = np.zeros(size, np.float32), np.zeros(size, np.int64)
    for values, coefficient, share in senders:
        for position, value in values:
            sums[position] += np.float32(float(np.float32(coefficient)) * value)
            sent[position] += share
    if mean:
        sums /= np.maximum(sent, 1).astype(np.float32)
    return sums


def moved(weights: NDArray[np.float32], change: NDArray[np.float32]) -> NDArray[np.float32]:
    """fp32 weights after a merge."""
    with np.errstate(invalid="ignore", over="ignore"):
        after = weights - change
    after[np.isnan(after)] = np.uint32(0x7FC00000).view(np.float32)
    return after


def values_of(selection: Selection) -> Values:
    return list(zip(selection.positions.tolist(), selection.decoded.tolist(), strict=True))


def random_selection(
    tensor: TensorChunks, generator: torch.Generator, symbol_bits: int = 2
) -> Selection:
    """Any places, any symbols: what a stranger may send."""
    parts = [
        torch.randperm(length, generator=generator)[:kept].sort().values + number * tensor.chunk
        for number, (length, kept) in enumerate(chunk_lengths(tensor))
    ]
    positions = torch.cat([torch.empty(0, dtype=torch.int64), *parts])
    symbols = torch.randint(0, 2**symbol_bits, positions.shape, generator=generator)
    scale = torch.randint(-25, 10, (1,), generator=generator).item()
    low, high = (torch.rand(2, generator=generator) * 2.0**scale).bfloat16().sort().values.tolist()
    return Selection(positions, symbols.to(torch.uint8), high if symbol_bits == 1 else low, high)
