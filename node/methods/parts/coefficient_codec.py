"""Coefficients as bytes: which ones of each tensor, and a sign or a small integer for each.

    version    1 byte   0x50 + bits of a value (1 or 8)
    then for each tensor of the layout that has elements, in the model's order:
    scale      bf16     of its values: 0 or within MAGNITUDE_MIN..MAGNITUDE_MAX
    positions           of tiles only
    values              of signs: 1 for a minus, packed from the lowest bits up, padded with zero
                        bits; else int8, -127..127

Numbers are little-endian. Positions are coded in one of two ways, as the layout says:

* numbered: at most k coefficients of a tile, all of them not 0. One number for each tile, as
  `kernels.subsets` says: 44 bits for 4 of 4096, of which log2(binomial(4096, 4)) = 43.4 is the
  least. A tile of zeros is a number, too, and takes no values;
* gaps, where k is too large for that: exactly k of each tile, as `kernels.sparse` says, behind the
  divisor (uint16, at least 1, at most a tile's coefficients) and the length in bytes (uint32).

Behind gaps and masks, whose places are fixed, a value may be 0. An int8 can say so; signs have a
byte in front of them: 0, and all are there; or 1, and a bit for each value that is not 0 comes
before the signs of those, which are not all.

Reading is strict: what `encode` would not lay out this way is refused, whatever the bytes. Three
things are left to the writer, since all readers agree on them anyway: the scale, the divisor, and
what a slot behind a tensor's end holds, which nobody looks at.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from node.errors import DivergedError
from node.kernels import sparse, subsets
from node.methods.parts.reading import ByteReader, magnitude_of, pattern_of
from node.methods.parts.sparsify import to_magnitude
from node.methods.parts.tiles import CoefficientLayout, Strides, Tiles, Values

Bytes = NDArray[np.uint8]
Signs = NDArray[np.int8]
Ints = NDArray[np.int64]

VERSION: Final = 0x50
_BITS: Final[dict[Values, int]] = {"sign": 1, "int8": 8}
_SCALE: Final = struct.Struct("<H")
_STREAM: Final = struct.Struct("<HI")


@dataclass(frozen=True, slots=True)
class Coefficients:
    """What one tensor sends. A coefficient is its symbol times the scale."""

    scale: float  # that bf16 holds; 0: nothing is sent
    symbols: Signs  # (n,): of each position; or of each slot, some of them 0
    positions: Ints | None = None  # (n,), rising, in the tensor's tiles; None: the mask says


def quantised(
    name: str,  # of the tensor, for the error
    chosen: Tensor,  # (n,) float32: what to send
    values: Values,
) -> tuple[float, Tensor]:
    """(scale, (n,) int8 symbols). Raises DivergedError for what is not finite.

    The scale of signs is the mean of those that are not 0; a 127th of the largest, of integers.
    """
    magnitudes = chosen.abs()
    total = float(magnitudes.sum(dtype=torch.float64))
    if not np.isfinite(total):
        raise DivergedError(name)
    if values == "sign":
        scale = to_magnitude(total / max(1, int((magnitudes > 0).sum())))
        symbols = chosen.sign()
    else:
        scale = to_magnitude(float(magnitudes.max()) / 127 if chosen.numel() else 0.0)
        symbols = (chosen / (scale or 1.0)).round().clamp(-127, 127)
    return scale, (symbols if scale else torch.zeros_like(symbols)).to(torch.int8)


def encode(layout: CoefficientLayout, tensors: Sequence[Coefficients]) -> bytes:
    """The bytes of what each tensor of the layout sends."""
    assert len(tensors) == len(layout.tensors), "one for each tensor"
    parts = [bytes([VERSION + _BITS[layout.values]])]
    for of, sent in zip(layout.tensors, tensors, strict=True):
        if of.elements:
            parts.append(_SCALE.pack(pattern_of(sent.scale)))
            parts += _encode_tensor(of, sent, layout.values)
    return b"".join(parts)


def decode(layout: CoefficientLayout, data: bytes) -> list[Coefficients]:
    """Raises ValueError for what `encode` would not have written."""
    reader = ByteReader(np.frombuffer(data, np.uint8))
    if reader.take(1, "the version")[0] != VERSION + _BITS[layout.values]:
        raise ValueError(f"an update of version {data[0]:#x} is unknown here")
    found = [_decode_tensor(of, layout.values, reader) for of in layout.tensors]
    if reader.left:
        raise ValueError(f"{reader.left} bytes behind the last tensor")
    return found


# One tensor


def _encode_tensor(of: Tiles | Strides, sent: Coefficients, values: Values) -> Iterator[bytes]:
    if isinstance(of, Strides):
        assert len(sent.symbols) == of.slots
        yield from _encode_any(sent.symbols, values)
        return
    assert sent.positions is not None
    if of.rank_bits is None:
        assert len(sent.symbols) == of.count * of.k
        yield from _encode_gaps(of, sent.positions)
        yield from _encode_any(sent.symbols, values)
    else:
        yield _encode_numbers(of, of.rank_bits, sent.positions)
        yield _packed(sent.symbols < 0) if values == "sign" else sent.symbols.tobytes()


def _decode_tensor(of: Tiles | Strides, values: Values, reader: ByteReader) -> Coefficients:
    positions = None if isinstance(of, Strides) else np.empty(0, np.int64)
    if not of.elements:
        return Coefficients(0.0, np.empty(0, np.int8), positions)
    scale = magnitude_of(_SCALE.unpack(reader.take(_SCALE.size, "a scale").tobytes())[0], "a scale")
    if isinstance(of, Strides):
        symbols = _decode_any(of.slots, values, reader)
    elif of.rank_bits is None:
        positions = _decode_gaps(of, reader)
        symbols = _decode_any(len(positions), values, reader)
        positions, symbols = positions[symbols != 0], symbols[symbols != 0]
    else:
        positions = _decode_numbers(of, of.rank_bits, reader)
        symbols = _decode_nonzero(len(positions), values, reader)
    if not scale and symbols.any():
        raise ValueError("a tensor of scale 0 holds something")
    return Coefficients(scale, symbols, positions)


# Positions


def _encode_numbers(of: Tiles, bits: int, positions: Ints) -> bytes:
    tile = positions // of.length
    counts = np.bincount(tile, minlength=of.count).astype(np.int64)
    assert len(counts) == of.count
    assert counts.max(initial=0) <= of.k
    out = np.zeros(-(-of.count * bits // 8), np.uint8)
    table = subsets.binomials(of.length, of.k)
    fault = subsets.write_subsets(positions - tile * of.length, counts, table, bits, out)
    assert not fault
    return out.tobytes()


def _decode_numbers(of: Tiles, bits: int, reader: ByteReader) -> Ints:
    data = reader.take(-(-of.count * bits // 8), "positions")
    counts = np.empty(of.count, np.int64)
    positions = np.empty(of.count * of.k, np.int64)
    table = subsets.binomials(of.length, of.k)
    found = subsets.read_subsets(data, table, bits, counts, positions)
    if found < 0:
        raise ValueError(subsets.FAULTS[found])
    return positions[:found] + np.repeat(np.arange(of.count) * of.length, counts)


def _encode_gaps(of: Tiles, positions: Ints) -> Iterator[bytes]:
    counts = np.zeros(of.length, np.int64)
    fault = sparse.count_gaps(positions, of.length, of.k, of.size, counts)
    assert not fault, "positions rise in each tile"
    divisor, bits = sparse.best_divisor(counts)
    out = np.empty(-(-bits // 8), np.uint8)
    size = sparse.write_span(positions, 0, len(positions), of.length, of.k, divisor, out)
    assert size == len(out), "the positions take as many bits as were counted"
    yield _STREAM.pack(divisor, size)
    yield out.tobytes()


def _decode_gaps(of: Tiles, reader: ByteReader) -> Ints:
    divisor, size = _STREAM.unpack(reader.take(_STREAM.size, "positions").tobytes())
    if not 1 <= divisor <= of.length:
        raise ValueError(f"a divisor of {divisor} does not lie within 1..{of.length}")
    positions = np.empty(of.count * of.k, np.int64)
    fault = sparse.read_span(
        reader.take(size, "positions"), divisor, of.length, of.k, of.size, positions
    )
    if fault:
        raise ValueError(sparse.FAULTS[fault])
    return positions


# Values


def _encode_any(symbols: Signs, values: Values) -> Iterator[bytes]:
    if values == "int8":
        yield symbols.tobytes()
        return
    there = symbols != 0
    if there.all():
        yield b"\0"
    else:
        yield b"\1"
        yield _packed(there)
    yield _packed(symbols[there] < 0)


def _decode_any(count: int, values: Values, reader: ByteReader) -> Signs:
    if values == "int8":
        return _int8(count, reader)
    symbols = np.zeros(count, np.int8)
    kind = reader.take(1, "signs")[0]
    if kind > 1:
        raise ValueError(f"signs of the kind {kind} are unknown here")
    there = np.ones(count, np.bool_) if kind == 0 else _unpacked(count, reader)
    if kind == 1 and there.all():
        raise ValueError("no value is 0, and yet each says that it is not")
    symbols[there] = _decode_nonzero(int(there.sum()), values, reader)
    return symbols


def _decode_nonzero(count: int, values: Values, reader: ByteReader) -> Signs:
    if values == "sign":
        return 1 - 2 * _unpacked(count, reader).astype(np.int8)
    symbols = _int8(count, reader)
    if not symbols.all():
        raise ValueError("a value that is sent is 0")
    return symbols


def _int8(count: int, reader: ByteReader) -> Signs:
    symbols = reader.take(count, "values").view(np.int8).copy()
    if (symbols == -128).any():
        raise ValueError("a code stands for nothing")
    return symbols


def _packed(bits: NDArray[np.bool_]) -> bytes:
    return np.packbits(bits, bitorder="little").tobytes()


def _unpacked(count: int, reader: ByteReader) -> NDArray[np.bool_]:
    bits = np.unpackbits(reader.take(-(-count // 8), "signs"), bitorder="little")
    if bits[count:].any():
        raise ValueError("the padding behind the bits is not zero")
    return bits[:count].astype(np.bool_)
