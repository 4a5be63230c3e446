"""The CPU back end: Numba, one pass over memory for each operation.

Work goes by tiles of 2,048 elements, aligned to the flat vector, whose random words, sums and signs
stay in the first-level cache; a tensor that begins or ends inside a tile uses part of it. Threads
take runs of whole tiles, so their number cannot change a bit.

How it gets its speed: Philox keeps each 32-bit word in a 64-bit lane and never masks the products,
because a multiplication reads the low half only; LLVM then vectorises sixteen blocks at a time. The
sums over contributions of the 32 elements of one random word stay in vector registers (`_sum_of`).

When compiling happens, and why all of it is in this file, says `jit`.
"""

import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Final, TypeAlias, TypeVar, cast

import numpy as np
import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor

from node.kernels import philox
from node.kernels.base import CheckedKernels
from node.kernels.jit import helper, kernel
from node.kernels.threads import Threads

if sys.byteorder != "little":
    raise ImportError("the Numba kernels take vectors apart in little-endian order")

Array: TypeAlias = NDArray[Any]
R = TypeVar("R")
SumWord: TypeAlias = Callable[[Array, Array, int, np.int32, Array], None]

_BLOCKS: Final = 16  # Philox blocks in a tile
_WORDS: Final = 4 * _BLOCKS
_TILE: Final = 32 * _WORDS  # elements in a tile of directions
_BATCH: Final = 256  # keys summed in one pass of `accumulate`: 64 KiB of random words
_DIGIT_BITS: Final = 22  # it sums digits of this size in int32: 256 * 2^21 < 2^31
_STRETCH: Final = 1 << 15  # 16-bit words that `digest` widens at a time
_PARALLEL_MIN: Final = 1 << 17  # elements; below it, handing work over costs more than it saves

_U1: Final = np.uint32(1)
_U16: Final = np.uint32(16)
_U32: Final = np.uint64(32)
_LOW: Final = np.uint64(0xFFFFFFFF)
_SIGN: Final = np.int32(-(2**31))
_M0, _M1 = (np.uint64(number) for number in philox.MULTIPLIERS)
_W0, _W1 = (np.uint64(number) for number in philox.WEYL)
_ROUNDS: Final = philox.ROUNDS
_DIRECTIONS, _NOISE, _DIGEST = (
    np.uint64(stream) for stream in (philox.DIRECTIONS, philox.NOISE, philox.DIGEST)
)
_NAN: Final = np.array(0x7FC00000, dtype=np.uint32).view(np.float32)[()]


def _sum_of(bits: int) -> SumWord:
    """An intrinsic, sum_word(words, values, at, start, sums): one word's sums over contributions.

    sums[32 * at + k] = start + sum over c of values[c] where bit k of words[c, at] is set, modulo
    2^bits; `bits`, 16 or 32, is the size of an element of `sums`. `values` are int32; for 16 bits
    both halves of a value hold the same number.

    Vector code, because LLVM does not find it in a loop: the word is copied to all lanes, each lane
    tests its own bit and takes or leaves the value. Copies are 32 bits wide (a broadcast straight
    from memory), so 16-bit lanes see the word's two halves in turn, and their order is put right
    once, after the last contribution.
    """
    turns = 32 // bits
    lane, index = ir.IntType(bits), ir.IntType(32)
    lanes = ir.VectorType(lane, 32)
    own_bit = ir.Constant(lanes, [1 << (k // turns) for k in range(32)])
    order = ir.Constant(
        ir.VectorType(index, 32), [(k % bits) * turns + k // bits for k in range(32)]
    )
    copies = ir.Constant(ir.VectorType(index, bits), [0] * bits)

    def splat(builder: ir.IRBuilder, number: ir.Value) -> ir.Value:
        one = ir.Constant(ir.VectorType(index, 1), ir.Undefined)
        one = builder.insert_element(one, number, index(0))
        return builder.bitcast(builder.shuffle_vector(one, one, copies), lanes)

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
        words, values, sums = (
            context.make_array(signature.args[i])(context, builder, args[i]) for i in (0, 1, 4)
        )
        at, start = args[2:4]
        count, stride = cgutils.unpack_tuple(builder, words.shape)  # type: ignore[no-untyped-call]
        total = cgutils.alloca_once_value(builder, splat(builder, start))  # type: ignore[no-untyped-call]
        with cgutils.for_range(builder, count) as loop:
            place = builder.add(builder.mul(loop.index, stride), at)
            word = splat(builder, builder.load(builder.gep(words.data, [place])))
            value = splat(builder, builder.load(builder.gep(values.data, [loop.index])))
            hit = builder.icmp_signed("==", builder.and_(word, own_bit), own_bit)
            term = builder.select(hit, value, ir.Constant(lanes, None))
            builder.store(builder.add(builder.load(total), term), total)
        result = builder.load(total)
        result = builder.shuffle_vector(result, result, order)
        target = builder.gep(sums.data, [builder.mul(at, at.type(32))])
        store = builder.store(result, builder.bitcast(target, lanes.as_pointer()))
        store.align = bits // 8
        return context.get_dummy_value()

    def sum_word(context, words, values, at, start, sums):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
        return types.void(words, values, types.int64, types.int32, sums), emit

    return cast(SumWord, intrinsic(sum_word))


_sum_word16 = _sum_of(16)
_sum_word32 = _sum_of(32)


@helper
def _fill_words(key: np.uint64, first_block: np.uint64, stream: np.uint64, words: Array) -> None:
    """words (64,) uint32: word q of block first_block + i goes to place 4 * i + q."""
    k0, k1 = key & _LOW, key >> _U32
    for i in range(_BLOCKS):
        block = first_block + np.uint64(i)
        c0, c1, c2, c3 = block, block >> _U32, stream, np.uint64(0)
        a0, a1 = k0, k1
        for _ in range(_ROUNDS):
            # Only low halves count, here and below; the high halves hold rubbish.
            p0, p1 = (c0 & _LOW) * _M0, (c2 & _LOW) * _M1
            c0, c1 = (p1 >> _U32) ^ c1 ^ a0, p1
            c2, c3 = (p0 >> _U32) ^ c3 ^ a1, p0
            a0, a1 = a0 + _W0, a1 + _W1
        words[4 * i] = c0
        words[4 * i + 1] = c1
        words[4 * i + 2] = c2
        words[4 * i + 3] = c3


@helper
def _fill_directions(keys: Array, tile: int, words: Array) -> None:
    """words (keys, 64) uint32: the bits of one tile for each key."""
    for c in range(keys.size):
        _fill_words(keys[c], np.uint64(tile * _BLOCKS), _DIRECTIONS, words[c])


@helper
def _fill_moves(keys: Array, values: Array, start: np.int32, tile: int, moves: Array) -> None:
    """moves (2048,) fp32: +-scale for one tile. `keys` holds one key, `values` the sign bit and
    `start` the pattern of -scale: adding the sign bit, modulo 2^32, turns it into +scale."""
    words = np.empty((1, _WORDS), np.uint32)
    bits = moves.view(np.int32)  # not in the loop: a view costs as much as what it is used for
    _fill_directions(keys, tile, words)
    for at in range(_WORDS):
        _sum_word32(words, values, at, start, bits)


@helper
def _fill_sums16(
    keys: Array, values: Array, start: np.int32, tile: int, words: Array, sums: Array
) -> None:
    """sums (2048,) int16: A of one tile; `words` (keys, 64) is scratch."""
    _fill_directions(keys, tile, words)
    for at in range(_WORDS):
        _sum_word16(words, values, at, start, sums)


@helper
def _tile_of(tile: int, offset: int, size: int) -> tuple[int, int, int]:
    """Which elements of a tensor lie in tile number `tile`: the first, the last plus one, and the
    place of the first inside the tile."""
    base = tile * _TILE - offset
    start = max(base, 0)
    return start, min(base + _TILE, size), start - base


@kernel("void(float32[::1], int64, uint64[::1], int32[::1], int32, float32[::1])")
def _perturb32(
    weights: Array, offset: int, keys: Array, values: Array, start: np.int32, out: Array
) -> None:
    moves = np.empty(_TILE, np.float32)
    for tile in range(offset // _TILE, (offset + weights.size - 1) // _TILE + 1):
        _fill_moves(keys, values, start, tile, moves)
        first, last, inside = _tile_of(tile, offset, weights.size)
        w, o, m = weights[first:last], out[first:last], moves[inside:]
        for i in range(w.size):
            moved = w[i] + m[i]
            o[i] = moved if moved == moved else _NAN


@kernel("void(uint16[::1], int64, uint64[::1], int32[::1], int32, uint16[::1])")
def _perturb16(
    weights: Array, offset: int, keys: Array, values: Array, start: np.int32, out: Array
) -> None:
    moves = np.empty(_TILE, np.float32)
    value = np.empty(_TILE, np.float32)
    bits = value.view(np.uint32)
    for tile in range(offset // _TILE, (offset + weights.size - 1) // _TILE + 1):
        _fill_moves(keys, values, start, tile, moves)
        first, last, inside = _tile_of(tile, offset, weights.size)
        w, o, m = weights[first:last], out[first:last], moves[inside:]
        for i in range(w.size):
            bits[i] = np.uint32(w[i]) << _U16
        for i in range(w.size):
            moved = value[i] + m[i]
            value[i] = moved if moved == moved else _NAN
        for i in range(w.size):  # to nearest, ties to even
            o[i] = (bits[i] + np.uint32(0x7FFF) + ((bits[i] >> _U16) & _U1)) >> _U16


@kernel("void(float32[::1], int64, uint64[::1], int32[::1], int32, float32)")
def _merge32(
    weights: Array, offset: int, keys: Array, values: Array, start: np.int32, step: np.float32
) -> None:
    words = np.empty((keys.size, _WORDS), np.uint32)
    sums = np.empty(_TILE, np.int16)
    for tile in range(offset // _TILE, (offset + weights.size - 1) // _TILE + 1):
        _fill_sums16(keys, values, start, tile, words, sums)
        first, last, inside = _tile_of(tile, offset, weights.size)
        w, a = weights[first:last], sums[inside:]
        for i in range(w.size):
            moved = w[i] - step * np.float32(a[i])
            w[i] = moved if moved == moved else _NAN


@kernel("void(uint16[::1], int64, uint64[::1], int32[::1], int32, float32, uint64)")
def _merge16(
    weights: Array,
    offset: int,
    keys: Array,
    values: Array,
    start: np.int32,
    step: np.float32,
    noise_key: np.uint64,
) -> None:
    words = np.empty((keys.size, _WORDS), np.uint32)
    sums = np.empty(_TILE, np.int16)
    noise = np.empty((_TILE // (2 * _WORDS), _WORDS), np.uint32)
    halves = noise.reshape(-1).view(np.uint16)  # little-endian: the low half comes first
    value = np.empty(_TILE, np.float32)
    bits = value.view(np.uint32)
    for tile in range(offset // _TILE, (offset + weights.size - 1) // _TILE + 1):
        _fill_sums16(keys, values, start, tile, words, sums)
        for n in range(len(noise)):
            block = np.uint64((tile * len(noise) + n) * _BLOCKS)
            _fill_words(noise_key, block, _NOISE, noise[n])
        first, last, inside = _tile_of(tile, offset, weights.size)
        w, a, r = weights[first:last], sums[inside:], halves[inside:]
        for i in range(w.size):
            bits[i] = np.uint32(w[i]) << _U16
        for i in range(w.size):
            moved = value[i] - step * np.float32(a[i])
            value[i] = moved if moved == moved else _NAN
        for i in range(w.size):
            w[i] = (bits[i] + np.uint32(r[i])) >> _U16


@kernel("void(int64[::1], int64, uint64[::1], int32[::1], int32, int64)")
def _accumulate64(
    total: Array, offset: int, keys: Array, values: Array, start: np.int32, shift: int
) -> None:
    words = np.empty((keys.size, _WORDS), np.uint32)
    sums = np.empty(_TILE, np.int32)
    for tile in range(offset // _TILE, (offset + total.size - 1) // _TILE + 1):
        _fill_directions(keys, tile, words)
        for at in range(_WORDS):
            _sum_word32(words, values, at, start, sums)
        first, last, inside = _tile_of(tile, offset, total.size)
        t, a = total[first:last], sums[inside:]
        for i in range(t.size):
            t[i] += np.int64(a[i]) << shift


@kernel("uint64(uint32[::1], int64, uint64)")
def _digest32(data: Array, position: int, key: np.uint64) -> np.uint64:
    span = 2 * _BLOCKS  # coefficients made at a time
    words = np.empty(_WORDS, np.uint32)
    coefficients = words.view(np.uint64)  # little-endian: the low word comes first
    total = np.uint64(0)
    for group in range(position // span, (position + data.size - 1) // span + 1):
        _fill_words(key, np.uint64(group * _BLOCKS), _DIGEST, words)
        base = group * span - position
        first = max(base, 0)
        d, c = data[first : min(base + span, data.size)], coefficients[first - base :]
        for i in range(d.size):
            total += c[i] * np.uint64(d[i])
    return total


@kernel("void(uint64, int64, uint16[::1])")
def _fill_noise(key: np.uint64, position: int, noise: Array) -> None:
    """noise (n,): the 16 random bits of each of n elements from `position` on."""
    span = 8 * _BLOCKS  # elements that one call serves
    words = np.empty(_WORDS, np.uint32)
    halves = words.view(np.uint16)  # little-endian: the low half comes first
    for group in range(position // span, (position + noise.size - 1) // span + 1):
        _fill_words(key, np.uint64(group * _BLOCKS), _NOISE, words)
        base = group * span - position
        first = max(base, 0)
        part = noise[first : min(base + span, noise.size)]
        for i in range(part.size):
            part[i] = halves[first - base + i]


def rounding_noise(key: int, position: int, count: int) -> NDArray[np.uint16]:
    """(count,): the 16 random bits that round each bf16 weight from `position` on."""
    noise = np.empty(count, np.uint16)
    if count:
        _fill_noise(np.uint64(key), position, noise)
    return noise


class CpuKernels(CheckedKernels):
    name = "cpu"

    def __init__(self, threads: int | None = None) -> None:
        """`threads`: how many to use; None follows `torch.get_num_threads()` at each call."""
        self._threads = Threads(threads)

    def _perturb(self, weights: Tensor, offset: int, key: int, scale: float, out: Tensor) -> None:
        perturb = _perturb32 if weights.dtype == torch.float32 else _perturb16
        source, target = array_of(weights), array_of(out)
        keys, sign = np.array([key], np.uint64), np.array([_SIGN], np.int32)
        start = np.float32(-scale).view(np.int32)

        def work(part: slice, position: int) -> None:
            perturb(source[part], position, keys, sign, start, target[part])

        self._each(source.size, offset, work)

    def _merge(
        self,
        weights: Tensor,
        offset: int,
        keys: Sequence[int],
        values: Sequence[int],
        step: float,
        noise_key: int,
    ) -> None:
        data, step32, noise = array_of(weights), np.float32(step), np.uint64(noise_key)
        keys64 = np.array([int(key) for key in keys], np.uint64)
        # A = 2 * (sum where the bit is set) - (sum of all); right modulo 2^16, and |A| < 2^15.
        bytes16 = np.array([int(value) for value in values], np.int16)
        doubled, start = np.repeat(2 * bytes16, 2).view(np.int32), _both_halves(-int(bytes16.sum()))

        def work(part: slice, position: int) -> None:
            if data.dtype == np.float32:
                _merge32(data[part], position, keys64, doubled, start, step32)
            else:
                _merge16(data[part], position, keys64, doubled, start, step32, noise)

        self._each(data.size, offset, work)

    def _accumulate(
        self, total: Tensor, offset: int, keys: Sequence[int], values: Sequence[int]
    ) -> None:
        for begin in range(0, len(keys), _BATCH):
            keys64 = np.array([int(key) for key in keys[begin : begin + _BATCH]], np.uint64)
            rest = [int(value) for value in values[begin : begin + _BATCH]]
            shift = 0
            while any(rest):
                digits = [_low_digit(value) for value in rest]
                self._add_digits(array_of(total), offset, keys64, digits, shift)
                rest = [(v - d) >> _DIGIT_BITS for v, d in zip(rest, digits, strict=True)]
                shift += _DIGIT_BITS

    def _add_digits(
        self, total: Array, offset: int, keys: Array, digits: Sequence[int], shift: int
    ) -> None:
        """total += 2^shift * sum over c of digits[c] * s(keys[c])"""
        doubled, start = np.array([2 * d for d in digits], np.int32), np.int32(-sum(digits))

        def work(part: slice, position: int) -> None:
            _accumulate64(total[part], position, keys, doubled, start, shift)

        self._each(total.size, offset, work)

    def _digest(self, words: Tensor, first: int, key: int) -> int:
        data, key64 = array_of(words), np.uint64(key)
        stretch = data.size if data.dtype == np.uint32 else _STRETCH

        def work(part: slice, position: int) -> int:
            total = 0
            for begin in range(part.start, part.stop, stretch):
                piece = data[begin : min(begin + stretch, part.stop)]
                widened = piece.astype(np.uint32, copy=False)
                total += int(_digest32(widened, position + begin - part.start, key64))
            return total

        return sum(self._each(data.size, first, work))

    def _each(self, count: int, offset: int, work: Callable[[slice, int], R]) -> list[R]:
        """Run `work(part, position of the part)` over `count` elements from `offset` on."""
        threads = self._threads.count
        if threads == 1 or count < _PARALLEL_MIN:
            return [work(slice(0, count), offset)]
        shares = [offset + count * i // threads for i in range(1, threads)]
        cuts = [0, *(max(0, share // _TILE * _TILE - offset) for share in shares), count]
        parts = [slice(a, b) for a, b in pairwise(cuts) if a < b]
        return self._threads.map(lambda part: work(part, offset + part.start), parts)


def create() -> CpuKernels:
    return CpuKernels()


def array_of(tensor: Tensor) -> Array:
    """The tensor's memory as NumPy sees it; 16-bit and 32-bit patterns as unsigned integers."""
    if tensor.device.type != "cpu":
        raise ValueError(f"the cpu kernels cannot reach a tensor on {tensor.device}")
    if tensor.dtype in (torch.bfloat16, torch.int16):
        return tensor.view(torch.int16).numpy().view(np.uint16)
    if tensor.dtype == torch.int32:
        return tensor.numpy().view(np.uint32)
    array: Array = tensor.numpy()
    return array


def _both_halves(number: int) -> np.int32:
    """A 16-bit number in both halves of 32 bits."""
    return np.int32(np.full(2, number, np.int16).view(np.int32)[0])


def _low_digit(value: int) -> int:
    """The lowest signed digit of `value` in base 2^22: -2^21 <= digit < 2^21."""
    half = 1 << (_DIGIT_BITS - 1)
    return ((value + half) & ((1 << _DIGIT_BITS) - 1)) - half
