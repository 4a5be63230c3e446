"""Compiled loops for dense updates: coding them, checking them, and the outer step.

What the bytes mean says `methods.parts.dense_codec`, what the step computes
`methods.parts.outer_step`. A span is a run of whole blocks of one tensor, of which the last may be
shorter; a block shares a scale. What is worked on stays in the first-level cache, so each element
of weights and momentum is read and written once, whatever the number of senders.

No sum here takes a product as it comes: between the two stands a comparison with `tiny`, so that
there is nothing to fuse; and LLVM, which is told of no fast mathematics, fuses nothing anyway.

The bytes of senders lie where they came to, at odd addresses and in any number. The loops are given
addresses, therefore, and read what the layout of an update says: whoever calls them has to see to
it that so many bytes are there.
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
    raise ImportError("the dense loops load and store numbers as they are in an update")

Array: TypeAlias = NDArray[Any]

OUTSIDE: Final = -1
NO_CODE: Final = -2
NOT_EMPTY: Final = -3
NOT_FINITE: Final = -4
# What is wrong with bytes, in words, for the negative results of `check_span`.
FAULTS: Final = {
    OUTSIDE: "a value is neither +0 nor of a magnitude that may travel",
    NO_CODE: "a code stands for nothing",
    NOT_EMPTY: "a block of scale 0 holds something",
}

# Elements that are stepped at a time. So short that all senders' bytes come from memory side by
# side: by whole blocks, one sender after the other, it took half as long again.
_PIECE: Final = 256
_ZERO: Final = np.float32(0)
_INT8_MAX: Final = np.float32(127)
_E3M0_LEAST: Final = np.float32(2.0**-6)
_E3M0_BORDER: Final = np.float32(2.0**-7)  # between it and 0
_U16: Final = np.uint32(16)
_MAGNITUDE: Final = np.uint32(0x7FFFFFFF)
_INFINITY: Final = np.uint32(0x7F800000)
_NAN: Final = np.array(0x7FC00000, dtype=np.uint32).view(np.float32)[()]


def _loading(kind: types.Type) -> Callable[[int, int], Any]:
    """An intrinsic, load(address, index): of numbers that lie there, aligned or not."""

    def load_of(context, address, index):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
            numbers = builder.inttoptr(args[0], context.get_value_type(kind).as_pointer())
            number = builder.load(builder.gep(numbers, [args[1]]))
            number.align = 1
            return number

        return kind(types.int64, types.int64), emit

    return cast(Callable[[int, int], Any], intrinsic(load_of))


def _storing(kind: types.Type) -> Callable[[int, int, Any], None]:
    """An intrinsic, store(address, index, number)."""

    def store_of(context, address, index, number):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
            numbers = builder.inttoptr(args[0], context.get_value_type(kind).as_pointer())
            builder.store(args[2], builder.gep(numbers, [args[1]])).align = 1
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, kind), emit

    return cast(Callable[[int, int, Any], None], intrinsic(store_of))


def _float_of(context, pattern):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.uint32), emit


def _pattern_of(context, number):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
        return builder.bitcast(args[0], ir.IntType(32))

    return types.uint32(types.float32), emit


_float_at, _put_float = _loading(types.float32), _storing(types.float32)
_word_at, _put_word = _loading(types.uint16), _storing(types.uint16)
_byte_at, _put_byte = _loading(types.uint8), _storing(types.uint8)
_int8_at, _put_int8 = _loading(types.int8), _storing(types.int8)
_as_float = cast(Callable[[Any], np.float32], intrinsic(_float_of))
_as_pattern = cast(Callable[[np.float32], np.uint32], intrinsic(_pattern_of))


# Reading


@helper
def _from_bf16(word: np.uint16) -> np.float32:
    return _as_float(np.uint32(word) << _U16)


@helper
def _scaled(value: np.float32, factor: np.float32, tiny: np.float32) -> np.float32:
    product = value * factor
    return _ZERO if abs(product) < tiny else product


@helper
def _clamped(value: np.float32, limit: np.float32) -> np.float32:
    """A NaN stays one."""
    return limit if value > limit else (-limit if value < -limit else value)


@helper
def _add_floats(total: Array, at: int, share: np.float32, tiny: np.float32) -> None:
    for i in range(total.size):
        total[i] += _scaled(_float_at(at, i), share, tiny)


@helper
def _add_bf16(total: Array, at: int, share: np.float32, tiny: np.float32) -> None:
    for i in range(total.size):
        total[i] += _scaled(_from_bf16(_word_at(at, i)), share, tiny)


@helper
def _add_int8(
    total: Array, at: int, scale: np.float32, share: np.float32, tiny: np.float32
) -> None:
    for i in range(total.size):
        total[i] += _scaled(np.float32(_int8_at(at, i)) * scale, share, tiny)


@helper
def _e3m0(code: np.uint32, base: np.uint32, least: np.uint32) -> np.float32:
    """Of four bits, e and a sign: +-2**e of the number that `base` is the pattern of, and 0 for an
    e below `least`.
    """
    exponent = np.uint32(code & np.uint32(7))
    sign = np.uint32(np.uint32(code & np.uint32(8)) << np.uint32(28))
    pattern = np.uint32(base + np.uint32(exponent << np.uint32(23))) ^ sign
    return _as_float(np.uint32(pattern)) if exponent >= least else _ZERO


@helper
def _add_e3m0(
    total: Array, at: int, scale: np.float32, share: np.float32, tiny: np.float32
) -> None:
    """A power of two times a scale, times a share: the power commutes with rounding, as long as
    nothing is subnormal, and what could be is below `tiny`, and nothing. So one product serves all
    eight, and the rest is done on exponents.
    """
    largest = scale * share
    least, smallest = np.uint32(1), abs(largest) * _E3M0_LEAST
    while least < np.uint32(8) and smallest < tiny:
        least, smallest = np.uint32(least + np.uint32(1)), smallest * np.float32(2)
    base = np.uint32(_as_pattern(largest) - np.uint32(7 << 23))
    for i in range(total.size // 2):
        pair = np.uint32(_byte_at(at, i))
        total[2 * i] += _e3m0(np.uint32(pair & np.uint32(15)), base, least)
        total[2 * i + 1] += _e3m0(np.uint32(pair >> np.uint32(4)), base, least)
    if total.size % 2:
        code = np.uint32(_byte_at(at, total.size // 2)) & np.uint32(15)
        total[total.size - 1] += _e3m0(np.uint32(code), base, least)


@helper
def _add(
    total: Array,  # (elements of the piece,) float32, in and out
    scale_at: int,  # addresses
    values_at: int,
    bits: int,
    share: np.float32,
    tiny: np.float32,
) -> None:
    """What one sender adds to one piece."""
    if bits == 32:
        _add_floats(total, values_at, share, tiny)
    elif bits == 16:
        _add_bf16(total, values_at, share, tiny)
    elif bits == 8:
        _add_int8(total, values_at, _from_bf16(_word_at(scale_at, 0)), share, tiny)
    else:
        _add_e3m0(total, values_at, _from_bf16(_word_at(scale_at, 0)), share, tiny)


# The outer step


@helper
def _push(
    momentum: Array, total: Array, mu: np.float32, limit: np.float32, tiny: np.float32
) -> None:
    """m <- mu * m + total, within +-limit; total <- total + mu * m."""
    for i in range(total.size):
        m = _clamped(_scaled(momentum[i], mu, tiny) + total[i], limit)
        momentum[i] = m if m == m else _NAN
        total[i] += _scaled(m, mu, tiny)


@helper
def _descend(theta: Array, direction: Array, rate: np.float32, tiny: np.float32) -> None:
    for i in range(theta.size):
        moved = theta[i] - _scaled(direction[i], rate, tiny)
        theta[i] = moved if moved == moved else _NAN


@kernel(
    "void(float32[::1], float32[::1], int64[::1], float32[::1], int64, int64, int64, int64,"
    " float32, float32, float32, float32)"
)
def step_span(
    theta: Array,  # (elements of the span,) float32, in and out
    momentum: Array,  # the same, or empty: none
    senders: Array,  # (senders,) int64: addresses of their updates, in the order of adding
    shares: Array,  # (senders,) float32
    scales: int,  # the bytes of an update at which the span's own begin
    values: int,
    bits: int,
    block: int,  # elements; a multiple of _PIECE
    rate: np.float32,
    mu: np.float32,
    limit: np.float32,  # infinite: none
    tiny: np.float32,
) -> None:
    total = np.empty(_PIECE, np.float32)
    for first in range(0, theta.size, _PIECE):
        t = total[: min(_PIECE, theta.size - first)]
        t[:] = _ZERO
        for r in range(senders.size):
            scale_at = senders[r] + scales + first // block * 2
            values_at = senders[r] + values + first * bits // 8
            _add(t, scale_at, values_at, bits, shares[r], tiny)
        if momentum.size:
            _push(momentum[first : first + t.size], t, mu, limit, tiny)
        _descend(theta[first : first + t.size], t, rate, tiny)


@kernel("void(float32[::1], float32[::1], float32, float32)")
def descend_span(theta: Array, direction: Array, rate: np.float32, tiny: np.float32) -> None:
    """theta <- theta - rate * direction."""
    _descend(theta, direction, rate, tiny)


# Checking
#
# What was seen is kept in numbers as wide as those that are looked at: wider ones, such as Numba
# chooses, took up to ten times as long.


@helper
def _check_floats(at: int, count: int, least: np.float32, most: np.float32) -> int:
    """Patterns of magnitudes rise as these do. A NaN's lie above all, and that of 0 below."""
    low, wrong = _as_pattern(least), np.uint32(0)
    room = np.uint32(_as_pattern(most) - low)
    for i in range(count):
        pattern = _as_pattern(_float_at(at, i))
        above = np.uint32(np.uint32(pattern & _MAGNITUDE) - low)
        wrong = np.uint32(wrong | np.uint32((above > room) & (pattern != np.uint32(0))))
    return OUTSIDE if wrong else 0


@helper
def _check_bf16(at: int, count: int, least: np.float32, most: np.float32) -> int:
    low, wrong = np.uint16(_as_pattern(least) >> _U16), np.uint16(0)
    room = np.uint16(np.uint16(_as_pattern(most) >> _U16) - low)
    for i in range(count):
        word = _word_at(at, i)
        above = np.uint16(np.uint16(word & np.uint16(0x7FFF)) - low)
        wrong = np.uint16(wrong | np.uint16((above > room) & (word != np.uint16(0))))
    return OUTSIDE if wrong else 0


@helper
def _check_int8(at: int, count: int, is_empty: bool) -> int:
    wrong, held = np.uint8(0), np.uint8(0)
    for i in range(count):
        code = _byte_at(at, i)
        wrong = np.uint8(wrong | np.uint8(code == np.uint8(0x80)))
        held = np.uint8(held | code)
    if wrong:
        return NO_CODE
    return NOT_EMPTY if is_empty and held else 0


@helper
def _check_e3m0(at: int, pairs: int, is_empty: bool) -> int:
    wrong, held = np.uint8(0), np.uint8(0)
    for i in range(pairs):
        pair = _byte_at(at, i)
        low, high = np.uint8(pair & np.uint8(0x0F)), np.uint8(pair & np.uint8(0xF0))
        wrong = np.uint8(wrong | np.uint8((low == np.uint8(0x08)) | (high == np.uint8(0x80))))
        held = np.uint8(held | pair)
    if wrong:
        return NO_CODE
    return NOT_EMPTY if is_empty and held else 0


@kernel("int64(int64, int64, int64, int64, int64, float32, float32)")
def check_span(
    scales_at: int,  # addresses: scales are checked already
    values_at: int,
    size: int,  # elements
    bits: int,
    block: int,
    least: np.float32,  # magnitudes of floats
    most: np.float32,
) -> int:
    """0, or a fault."""
    for first in range(0, size, block):
        count, at = min(block, size - first), values_at + first * bits // 8
        if bits == 32:
            fault = _check_floats(at, count, least, most)
        elif bits == 16:
            fault = _check_bf16(at, count, least, most)
        else:
            is_empty = _word_at(scales_at, first // block) == np.uint16(0)
            if bits == 8:
                fault = _check_int8(at, count, is_empty)
            else:
                fault = _check_e3m0(at, (count + 1) // 2, is_empty)
        if fault:
            return fault
    return 0


# Writing


@helper
def _to_bf16(value: np.float32) -> np.uint16:
    """To nearest, ties to even; not for a NaN."""
    pattern = _as_pattern(value)
    odd = np.uint32(pattern >> _U16) & np.uint32(1)
    return np.uint16(np.uint32(np.uint32(pattern + np.uint32(0x7FFF)) + odd) >> _U16)


@helper
def _within(value: np.float32, least: np.float32, most: np.float32) -> np.float32:
    """The nearest that may travel; what is smaller than the least: +0."""
    return _ZERO if abs(value) < least else _clamped(value, most)


@helper
def _largest(values: Array) -> np.uint32:
    """The pattern of the largest magnitude; past `_INFINITY` if there is a NaN."""
    largest = np.uint32(0)
    for i in range(values.size):
        largest = max(largest, np.uint32(_as_pattern(values[i]) & _MAGNITUDE))
    return largest


@helper
def _put_int8s(values: Array, at: int, scale: np.float32) -> None:
    for i in range(values.size):
        _put_int8(at, i, np.int8(np.rint(_clamped(values[i] / scale, _INT8_MAX))))


@helper
def _to_e3m0(share: np.float32) -> np.uint32:
    """The code of the nearest of 0 and 2**-6 .. 2**0, by magnitude.

    Half way between two powers is 1.5 times the lower one: half a mantissa more would be the next
    exponent. 2**-7 is half way from 0, and 2**-6 what comes next to it.
    """
    magnitude = np.uint32(_as_pattern(share) & _MAGNITUDE)
    above = np.int32(np.uint32(magnitude + np.uint32(0x400000)) >> np.uint32(23)) - np.int32(120)
    code = np.uint32(min(max(above, np.int32(1)), np.int32(7)))
    sign = np.uint32(8) if share < _ZERO else np.uint32(0)
    return np.uint32(code | sign) if abs(share) >= _E3M0_BORDER else np.uint32(0)


@helper
def _put_e3m0s(values: Array, at: int, scale: np.float32) -> None:
    for i in range(values.size // 2):
        low, high = _to_e3m0(values[2 * i] / scale), _to_e3m0(values[2 * i + 1] / scale)
        _put_byte(at, i, np.uint8(low | np.uint32(high << np.uint32(4))))
    if values.size % 2:
        last = _to_e3m0(values[values.size - 1] / scale)
        _put_byte(at, values.size // 2, np.uint8(last))


@helper
def _put_scaled(
    values: Array,  # (elements of the block,) float32
    scale_at: int,
    values_at: int,
    bits: int,
    most: np.float32,  # the largest magnitude
    scale_least: np.float32,
    scale_most: np.float32,
) -> None:
    """A block's scale, and its codes."""
    wanted = min(most / _INT8_MAX if bits == 8 else most, scale_most)
    word = _to_bf16(wanted)
    scale = _from_bf16(word)
    if scale < scale_least:
        _put_word(scale_at, 0, np.uint16(0))
        for i in range((values.size * bits + 7) // 8):
            _put_byte(values_at, i, np.uint8(0))
        return
    _put_word(scale_at, 0, word)
    if bits == 8:
        _put_int8s(values, values_at, scale)
    else:
        _put_e3m0s(values, values_at, scale)


@kernel("int64(float32[::1], int64, int64, int64, int64, float32, float32, float32, float32)")
def code_span(
    values: Array,  # (elements of the span,) float32
    scales_at: int,  # addresses
    values_at: int,
    bits: int,
    block: int,
    least: np.float32,  # magnitudes of floats
    most: np.float32,
    scale_least: np.float32,
    scale_most: np.float32,
) -> int:
    """0, or NOT_FINITE, with rubbish written."""
    for first in range(0, values.size, block):
        v = values[first : min(first + block, values.size)]
        largest, at = _largest(v), values_at + first * bits // 8
        if largest >= _INFINITY:
            return NOT_FINITE
        if bits == 32:
            for i in range(v.size):
                _put_float(at, i, _within(v[i], least, most))
        elif bits == 16:
            for i in range(v.size):
                _put_word(at, i, _to_bf16(_within(v[i], least, most)))
        else:
            scale_at, magnitude = scales_at + first // block * 2, _as_float(largest)
            _put_scaled(v, scale_at, at, bits, magnitude, scale_least, scale_most)
    return 0
