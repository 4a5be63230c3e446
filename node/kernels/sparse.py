"""Compiled loops for sparse updates: coding positions, checking them, merging them into weights.

A tensor is cut into chunks of `chunk` elements; each keeps `k` of them, a shorter last chunk fewer.
Value i of a tensor therefore lies in chunk i // k. Its place in the chunk is coded as the gap to
the one before, the number of elements between them, by the code of Golomb ("Run-length encodings",
1966): the gap over a divisor in unary, as ones that a zero ends, then the rest in truncated binary.
Places that are drawn evenly have gaps of a geometric distribution, for which some divisor makes
this the best prefix code there is (Gallager and Van Voorhis, 1975). Bits fill bytes from the lowest
up. A span is a run of whole chunks whose gaps are a stream of their own, padded with zero bits to a
whole byte.

Truncated binary of a rest r under a divisor m with 2^b <= m < 2^(b+1): with u = 2^(b+1) - m, a rest
below u takes b bits; others take b bits of (r + u) >> 1, which are then at least u, and one bit
more.

Numba checks no bounds. Whatever bytes come, `_read_chunk` reads only below the end that it is given
and writes only places below the chunk's length.
"""

import sys
from collections.abc import Callable
from typing import Any, Final, TypeAlias, cast

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from node.kernels.jit import helper, kernel

if sys.byteorder != "little":
    raise ImportError("the sparse loops load and take apart words in little-endian order")

Array: TypeAlias = NDArray[Any]

ENDS_EARLY: Final = -1
OUTSIDE: Final = -2
GOES_ON: Final = -3
PADDED_WRONG: Final = -4
# What went wrong, in words, for the negative results of the functions below.
FAULTS: Final = {
    ENDS_EARLY: "the positions end early",
    OUTSIDE: "a position lies outside its chunk",
    GOES_ON: "there are bytes behind the positions",
    PADDED_WRONG: "the padding behind the positions is not zero",
}

# Columns of a cursor: where one sender's stream and symbols are in a buffer.
AT: Final = 0  # the bit of the buffer that comes next
END: Final = 1  # the byte behind the stream
SYMBOL: Final = 2  # the number of the next symbol, counted from the buffer's first bit
DIVISOR: Final = 3
CURSOR: Final = 4  # columns

_BYTES: Final = "Array(uint8, 1, 'C', readonly=True)"  # takes writable arrays, too
_U0, _U1 = np.uint64(0), np.uint64(1)
_U16: Final = np.uint32(16)
_NAN: Final = np.array(0x7FC00000, dtype=np.uint32).view(np.float32)[()]


@helper
def _whole_bits(divisor: int) -> int:
    """b with 2^b <= divisor < 2^(b+1)."""
    bits = 0
    while divisor >> (bits + 1):
        bits += 1
    return bits


def _trailing_ones_of(context, window):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
    """How many of the lowest bits of a uint64 are ones: 0..64."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
        return builder.cttz(builder.not_(args[0]), ir.Constant(ir.IntType(1), 0))

    return types.int64(types.uint64), emit


def _load64_of(context, data, byte):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
    """The eight bytes of a uint8 array from `byte` on, the first one lowest. Checks nothing."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
        array = context.make_array(signature.args[0])(context, builder, args[0])
        place = builder.gep(array.data, [args[1]])
        word = builder.load(builder.bitcast(place, ir.IntType(64).as_pointer()))
        word.align = 1
        return word

    return types.uint64(data, types.int64), emit


_trailing_ones = cast(Callable[[np.uint64], int], intrinsic(_trailing_ones_of))
_load64 = cast(Callable[[Array, int], np.uint64], intrinsic(_load64_of))


@helper
def _signed(word: np.uint64) -> int:
    """As an int64: Numba makes floats of a sum of signed and unsigned."""
    return np.int64(word)  # type: ignore[return-value]


@helper
def _refill(
    data: Array, end: int, window: np.uint64, held: int, byte: int
) -> tuple[np.uint64, int, int]:
    """Hold more than 55 bits, or all that are left.

    `window` has the next `held` bits, the first one lowest; above them are zeros, or the bits that
    do come next. So a byte may be added twice, and eight are read at once where there are eight.
    """
    if byte + 8 <= end:
        window |= _load64(data, byte) << np.uint64(held)
        fresh = (63 - held) >> 3
        return window, held + 8 * fresh, byte + fresh
    while held <= 55 and byte < end:
        window |= np.uint64(data[byte]) << np.uint64(held)
        held += 8
        byte += 1
    return window, held, byte


@helper
def _read_chunk(
    data: Array,  # uint8
    at: int,  # the first bit
    end: int,  # the byte behind the last that may be read
    divisor: int,
    length: int,  # elements of the chunk
    places: Array,  # (values in the chunk,) int64, out: rising, below `length`
) -> int:
    """Decode one chunk; the bit behind it, or ENDS_EARLY or OUTSIDE."""
    bits = _whole_bits(divisor)
    short = (2 << bits) - divisor  # rests below it take `bits` bits
    mask = (_U1 << np.uint64(bits)) - _U1
    byte = at >> 3
    window, held = _U0, 0
    if at & 7:  # then the bit before was read, so this byte is there
        window, held = np.uint64(data[byte]) >> np.uint64(at & 7), 8 - (at & 7)
        byte += 1
    lowest = 0
    for i in range(places.size):
        place = lowest
        window, held, byte = _refill(data, end, window, held, byte)
        ones = _trailing_ones(window)
        while ones >= held:  # rare: the ones go on behind what is held, or the stream ends
            place += held * divisor
            if byte == end:
                return ENDS_EARLY
            if place >= length:
                return OUTSIDE
            window, held, byte = _refill(data, end, _U0, 0, byte)
            ones = _trailing_ones(window)
        place += ones * divisor
        window >>= np.uint64(ones + 1)  # and the zero
        held -= ones + 1
        if held <= bits:
            window, held, byte = _refill(data, end, window, held, byte)
        # Without a branch: mispredicted every other time, it made decoding take half as long again.
        rest = _signed(window & mask)
        more = int(rest >= short)
        rest += more * (rest + _signed((window >> np.uint64(bits)) & _U1) - short)
        window >>= np.uint64(bits + more)
        held -= bits + more
        if held < 0:
            return ENDS_EARLY
        place += rest
        if place >= length:
            return OUTSIDE
        places[i] = place
        lowest = place + 1
    return byte * 8 - held


@kernel(f"int64({_BYTES}, int64, int64, int64, int64, int64[::1])")
def read_span(
    stream: Array,  # uint8: nothing but this span's positions
    divisor: int,  # at least 1
    chunk: int,
    k: int,
    size: int,  # elements of the span
    positions: Array,  # (kept in the span,) int64, out: counted from the span's first element
) -> int:
    """Decode a span and check every bit of it; 0, or a fault."""
    at = 0
    for c in range((size + chunk - 1) // chunk):
        places = positions[c * k : min((c + 1) * k, positions.size)]
        length = min(chunk, size - c * chunk)
        at = _read_chunk(stream, at, stream.size, divisor, length, places)
        if at < 0:
            return at
        for i in range(places.size):
            places[i] += c * chunk
    left = stream.size * 8 - at
    if left >= 8:
        return GOES_ON
    if left and stream[stream.size - 1] >> (8 - left):
        return PADDED_WRONG
    return 0


@kernel("int64(int64[::1], int64, int64, int64, int64[::1])")
def count_gaps(
    positions: Array,  # (kept in the tensor,) int64
    chunk: int,
    k: int,
    size: int,  # elements of the tensor
    counts: Array,  # (chunk,) int64, in and out: how often each gap occurs
) -> int:
    """0, or OUTSIDE when a position is outside its chunk or does not rise."""
    for i in range(positions.size):
        first = i // k * chunk
        lowest = first if i % k == 0 else positions[i - 1] + 1
        if not lowest <= positions[i] < min(first + chunk, size):
            return OUTSIDE
        counts[positions[i] - lowest] += 1
    return 0


@kernel("UniTuple(int64, 2)(int64[::1])")
def best_divisor(counts: Array) -> tuple[int, np.int64]:
    """The divisor that codes these gaps in the fewest bits, and how many; the smallest of equals.

    A gap g costs 1 + b bits, and one more for every j >= 0 with g >= j * m + u: each is a one in
    unary or, for the last of them, the longer form of the rest. So with tail[x] = the number of
    gaps >= x, the exact cost of a divisor takes size / m additions.
    """
    size = counts.size
    tail = np.zeros(size + 1, np.int64)
    for x in range(size - 1, -1, -1):
        tail[x] = tail[x + 1] + counts[x]
    best, best_bits = 1, np.int64(1 << 62)
    for divisor in range(1, size + 1):
        whole = _whole_bits(divisor)
        short = (2 << whole) - divisor
        bits = tail[0] * (1 + whole)
        for x in range(short, size, divisor):
            bits += tail[x]
        if bits < best_bits:
            best, best_bits = divisor, bits
    return best, best_bits


@kernel("int64(int64[::1], int64, int64, int64, int64, int64, uint8[::1])")
def write_span(
    positions: Array,  # (kept in the tensor,) int64, as `count_gaps` accepts them
    first: int,  # the span's first value, and
    last: int,  # the one behind its last
    chunk: int,
    k: int,
    divisor: int,
    out: Array,  # uint8: large enough by `best_divisor`
) -> int:
    """Code a span; the bytes written, or ENDS_EARLY when they do not fit."""
    bits = _whole_bits(divisor)
    short = (2 << bits) - divisor
    window, held, byte = _U0, 0, 0  # `held` bits not written yet, the first one lowest
    for i in range(first, last):
        gap = positions[i] - (i // k * chunk if i % k == 0 else positions[i - 1] + 1)
        while True:
            while held >= 8:
                if byte == out.size:
                    return ENDS_EARLY
                out[byte] = window & np.uint64(0xFF)
                window >>= np.uint64(8)
                held -= 8
                byte += 1
            if gap < divisor:
                break
            window |= _U1 << np.uint64(held)
            held += 1
            gap -= divisor
        held += 1  # the zero
        if gap < short:
            window |= np.uint64(gap) << np.uint64(held)
            held += bits
        else:
            window |= np.uint64((gap + short) >> 1) << np.uint64(held)
            window |= np.uint64((gap + short) & 1) << np.uint64(held + bits)
            held += bits + 1
    while held > 0:
        if byte == out.size:
            return ENDS_EARLY
        out[byte] = window & np.uint64(0xFF)
        window >>= np.uint64(8)
        held -= 8
        byte += 1
    return byte


@helper
def _add_chunk(
    data: Array,
    cursors: Array,
    addends: Array,
    shares: Array,
    symbol_bits: int,
    length: int,
    places: Array,  # (values in the chunk,) int64: scratch
    sums: Array,  # (chunk,) float32, out
    sent: Array,  # (chunk,) float32, out; left alone without shares
) -> int:
    """What all senders add to one chunk, in their order; 0, or a fault."""
    mask = (1 << symbol_bits) - 1
    sums[:] = 0
    if shares.size:
        sent[:] = 0
    for r in range(len(cursors)):
        cursor, addend = cursors[r], addends[r]
        at = _read_chunk(data, cursor[AT], cursor[END], cursor[DIVISOR], length, places)
        if at < 0:
            return at
        bit = cursor[SYMBOL] * symbol_bits
        for i in range(places.size):
            sums[places[i]] += addend[(data[bit >> 3] >> (bit & 7)) & mask]
            bit += symbol_bits
        if shares.size:
            for i in range(places.size):
                sent[places[i]] += shares[r]
        cursor[AT] = at
        cursor[SYMBOL] += places.size
    return 0


@helper
def _divide(sums: Array, sent: Array) -> None:
    """Each sum over the shares of those who sent something; what nobody sent stays 0."""
    for i in range(sums.size):
        sums[i] /= sent[i] if sent[i] > 0 else np.float32(1)


@kernel(
    f"int64(float32[::1], {_BYTES}, int64[:, ::1], float32[:, ::1], float32[::1],"
    " int64, int64, int64, int64)"
)
def merge_span32(
    weights: Array,  # (elements of the span,) float32, in and out
    data: Array,  # uint8: the symbols and streams of all senders for this span
    cursors: Array,  # (senders, CURSOR) int64; used up
    addends: Array,  # (senders, symbols) float32: what each symbol adds
    shares: Array,  # (senders,) float32: divide by the shares of who sent; or empty: do not divide
    chunk: int,
    k: int,
    kept: int,  # values of one sender in this span
    symbol_bits: int,
) -> int:
    """weights -= sum of addends, chunk by chunk; 0, or a fault, with the weights half done."""
    sums, sent = np.empty(chunk, np.float32), np.empty(chunk, np.float32)
    scratch = np.empty(k, np.int64)
    for c in range((weights.size + chunk - 1) // chunk):
        w = weights[c * chunk : min((c + 1) * chunk, weights.size)]
        count = min(k, kept - c * k)
        fault = _add_chunk(
            data, cursors, addends, shares, symbol_bits, w.size, scratch[:count], sums, sent
        )
        if fault:
            return fault
        if shares.size:
            _divide(sums, sent)
        for i in range(w.size):
            moved = w[i] - sums[i]
            w[i] = moved if moved == moved else _NAN
    return 0


@kernel(
    f"int64(uint16[::1], {_BYTES}, int64[:, ::1], float32[:, ::1], float32[::1],"
    " int64, int64, int64, int64, uint16[::1])"
)
def merge_span16(
    weights: Array,  # (elements of the span,) uint16: bf16 patterns, in and out
    data: Array,
    cursors: Array,
    addends: Array,
    shares: Array,
    chunk: int,
    k: int,
    kept: int,
    symbol_bits: int,
    noise: Array,  # (elements of the span,) uint16: what rounds them
) -> int:
    """The same for bf16, rounded stochastically."""
    sums, sent = np.empty(chunk, np.float32), np.empty(chunk, np.float32)
    scratch = np.empty(k, np.int64)
    value = np.empty(chunk, np.float32)
    bits = value.view(np.uint32)
    for c in range((weights.size + chunk - 1) // chunk):
        w = weights[c * chunk : min((c + 1) * chunk, weights.size)]
        n = noise[c * chunk : c * chunk + w.size]
        count = min(k, kept - c * k)
        fault = _add_chunk(
            data, cursors, addends, shares, symbol_bits, w.size, scratch[:count], sums, sent
        )
        if fault:
            return fault
        if shares.size:
            _divide(sums, sent)
        for i in range(w.size):
            bits[i] = np.uint32(w[i]) << _U16
        for i in range(w.size):
            moved = value[i] - sums[i]
            value[i] = moved if moved == moved else _NAN
        for i in range(w.size):
            w[i] = (bits[i] + np.uint32(n[i])) >> _U16
    return 0
