"""The GPU back end: Triton, for CUDA tensors (and, under TRITON_INTERPRET=1, for tests on the CPU).

Two steps an operation. First one lane a Philox block writes the random words, 1/32 of the size of
fp32 weights, into scratch memory that fits the second-level cache; then one lane an element reads
its own bit, in a word that neighbours share. So no lane repeats another's Philox, and memory is
read in order. Tensors go through in chunks, which bounds the scratch memory.

Only integers and single fp32 additions and multiplications are used. Products are exact (see
`base`), so it would not matter if the compiler fused them, but it is told not to. Philox
stays in 32 bits: from widened products LLVM makes slow, full 64-bit ones. Keys are read from device
memory as int64, because Triton guesses a narrower type for a small number.
"""

# mypy: disallow_untyped_decorators=False

import os
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from node.kernels import philox
from node.kernels.base import CheckedKernels

_LANES: Final = 1024  # elements or blocks that one program works on
_SCRATCH_WORDS: Final = 1 << 23  # 32 MiB of random words: they stay in the cache of a current GPU
_CHUNK_MAX: Final = 1 << 24  # elements
_BATCH: Final = 256  # keys summed in one pass of `accumulate`

_M0 = tl.constexpr(philox.MULTIPLIERS[0])
_M1 = tl.constexpr(philox.MULTIPLIERS[1])
_W0 = tl.constexpr(philox.WEYL[0])
_W1 = tl.constexpr(philox.WEYL[1])
_ROUNDS = tl.constexpr(philox.ROUNDS)
_NOISE = tl.constexpr(philox.NOISE)
_DIGEST = tl.constexpr(philox.DIGEST)
_DIRECTIONS = tl.constexpr(philox.DIRECTIONS)
_LOW = tl.constexpr(0xFFFFFFFF)
_NAN = tl.constexpr(0x7FC00000)


@triton.jit
def _philox(key: tl.tensor, block: tl.tensor, stream: tl.constexpr) -> tuple[tl.tensor, ...]:
    """The four uint32 words of each block (int64) under one key (int64)."""
    c0 = (block & _LOW).to(tl.uint32)
    c1 = (block >> 32).to(tl.uint32)
    c3 = tl.zeros_like(c0)
    c2 = c3 + stream
    m0, m1 = c3 + _M0, c3 + _M1
    k0 = c3 + (key & _LOW).to(tl.uint32)
    k1 = c3 + ((key >> 32) & _LOW).to(tl.uint32)
    for _ in tl.static_range(_ROUNDS):
        high0, low0 = tl.umulhi(c0, m0), c0 * m0
        high1, low1 = tl.umulhi(c2, m1), c2 * m1
        c0, c1 = high1 ^ c1 ^ k0, low1
        c2, c3 = high0 ^ c3 ^ k1, low0
        k0 += _W0
        k1 += _W1
    return c0, c1, c2, c3


@triton.jit
def _load(weights: tl.tensor, i: tl.tensor, mask: tl.tensor, BF16: tl.constexpr) -> tl.tensor:
    """fp32 values; bf16 comes as int16 patterns."""
    if BF16:
        pattern = tl.load(weights + i, mask, other=0).to(tl.uint16, bitcast=True)
        return (pattern.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        return tl.load(weights + i, mask, other=0.0)


@triton.jit
def _bits(values: tl.tensor) -> tl.tensor:
    """fp32 patterns (uint32), with one pattern for all NaNs."""
    pattern = values.to(tl.uint32, bitcast=True)
    return tl.where(values == values, pattern, tl.zeros_like(pattern) + _NAN)


@triton.jit
def _store(
    out: tl.tensor, i: tl.tensor, mask: tl.tensor, pattern: tl.tensor, BF16: tl.constexpr
) -> None:
    """Write fp32 patterns; for bf16 their upper halves."""
    if BF16:
        tl.store(out + i, (pattern >> 16).to(tl.uint16).to(tl.int16, bitcast=True), mask)
    else:
        tl.store(out + i, pattern.to(tl.float32, bitcast=True), mask)


@triton.jit(do_not_specialize=["first_block", "rows", "blocks"])
def _words_kernel(
    words: tl.tensor,
    keys: tl.tensor,
    first_block: int,
    rows: int,
    blocks: int,
    LANES: tl.constexpr,
) -> None:
    """words (rows, blocks, 4) int32: the bits of directions, one row a key. Lanes run over rows and
    blocks alike, so that many keys fill a program even for a small tensor."""
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    mask = lane < rows * blocks
    key = tl.load(keys + lane // blocks, mask, other=0)
    block = first_block + (lane % blocks).to(tl.int64)
    w0, w1, w2, w3 = _philox(key, block, _DIRECTIONS)
    place = words + lane * 4
    tl.store(place, w0.to(tl.int32, bitcast=True), mask)
    tl.store(place + 1, w1.to(tl.int32, bitcast=True), mask)
    tl.store(place + 2, w2.to(tl.int32, bitcast=True), mask)
    tl.store(place + 3, w3.to(tl.int32, bitcast=True), mask)


@triton.jit(do_not_specialize=["count", "skip"])
def _perturb_kernel(
    weights: tl.tensor,
    out: tl.tensor,
    words: tl.tensor,
    count: int,
    skip: int,
    scale: float,
    BF16: tl.constexpr,
    LANES: tl.constexpr,
) -> None:
    """`skip`: how many bits of the first block belong to elements before the first one."""
    i = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    mask = i < count
    place = i + skip
    word = tl.load(words + (place >> 5), mask, other=0)
    hit = ((word >> (place & 31).to(tl.int32)) & 1) == 1
    moved = _load(weights, i, mask, BF16) + tl.where(hit, scale, -scale)
    pattern = _bits(moved)
    if BF16:  # to nearest, ties to even
        pattern += 0x7FFF + ((pattern >> 16) & 1)
    _store(out, i, mask, pattern, BF16)


@triton.jit(do_not_specialize=["count", "skip", "position", "rows", "stride"])
def _merge_kernel(
    weights: tl.tensor,
    words: tl.tensor,
    values: tl.tensor,
    noise_key: tl.tensor,
    count: int,
    skip: int,
    position: int,
    rows: int,
    stride: int,
    step: float,
    BF16: tl.constexpr,
    LANES: tl.constexpr,
) -> None:
    """`rows` contributions, each with `stride` words; `position` of the first element."""
    i = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    mask = i < count
    place = i + skip
    shift = (place & 31).to(tl.int32)
    total = tl.zeros([LANES], tl.int32)
    for row in range(rows):
        word = tl.load(words + row * stride + (place >> 5), mask, other=0)
        value = tl.load(values + row)
        total += tl.where(((word >> shift) & 1) == 1, value, -value)
    moved = _load(weights, i, mask, BF16) - total.to(tl.float32) * step
    pattern = _bits(moved)
    if BF16:
        at = position + i
        w0, w1, w2, w3 = _philox(tl.load(noise_key), at >> 3, _NOISE)
        turn = (at >> 1) & 3
        word = tl.where(turn < 2, tl.where(turn == 0, w0, w1), tl.where(turn == 2, w2, w3))
        pattern += tl.where((at & 1) == 0, word & 0xFFFF, word >> 16)
    _store(weights, i, mask, pattern, BF16)


@triton.jit(do_not_specialize=["count", "skip", "rows", "stride"])
def _accumulate_kernel(
    total: tl.tensor,
    words: tl.tensor,
    values: tl.tensor,
    count: int,
    skip: int,
    rows: int,
    stride: int,
    LANES: tl.constexpr,
) -> None:
    i = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    mask = i < count
    place = i + skip
    shift = (place & 31).to(tl.int32)
    added = tl.load(total + i, mask, other=0)
    for row in range(rows):
        word = tl.load(words + row * stride + (place >> 5), mask, other=0)
        value = tl.load(values + row)
        added += tl.where(((word >> shift) & 1) == 1, value, -value)
    tl.store(total + i, added, mask)


@triton.jit(do_not_specialize=["count", "skip", "first_block"])
def _digest_kernel(
    data: tl.tensor,
    partial: tl.tensor,
    key: tl.tensor,
    count: int,
    skip: int,
    first_block: int,
    UNSIGNED: tl.constexpr,
    LANES: tl.constexpr,
) -> None:
    """partial[program]: the sum over its blocks, two coefficients each; `data` int16 or int32."""
    lane = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    w0, w1, w2, w3 = _philox(tl.load(key), first_block + lane, _DIGEST)
    even = w0.to(tl.int64) | (w1.to(tl.int64) << 32)
    odd = w2.to(tl.int64) | (w3.to(tl.int64) << 32)
    i = lane * 2 - skip
    first = tl.load(data + i, (i >= 0) & (i < count), other=0).to(tl.int64) & UNSIGNED
    second = tl.load(data + i + 1, (i + 1 >= 0) & (i + 1 < count), other=0).to(tl.int64) & UNSIGNED
    tl.store(partial + tl.program_id(0), tl.sum(first * even + second * odd, 0))


class GpuKernels(CheckedKernels):
    name = "gpu"

    def _perturb(self, weights: Tensor, offset: int, key: int, scale: float, out: Tensor) -> None:
        source, target = _patterns(weights), _patterns(out)
        keys = _int64([key], weights.device)
        for part, position in _chunks(weights, offset, 1):
            words, skip = _directions(keys, position, part.stop - part.start)
            _launch(
                _perturb_kernel,
                part.stop - part.start,
                *(source[part], target[part], words, part.stop - part.start, skip),
                float(np.float32(scale)),
                BF16=weights.dtype == torch.bfloat16,
            )

    def _merge(
        self,
        weights: Tensor,
        offset: int,
        keys: Sequence[int],
        values: Sequence[int],
        step: float,
        noise_key: int,
    ) -> None:
        data, device = _patterns(weights), weights.device
        keys64, noise = _int64(keys, device), _int64([noise_key], device)
        values32 = _int64(values, device).int()
        for part, position in _chunks(weights, offset, len(keys)):
            words, skip = _directions(keys64, position, part.stop - part.start)
            _launch(
                _merge_kernel,
                part.stop - part.start,
                *(data[part], words, values32, noise, part.stop - part.start, skip, position),
                *(len(keys), words.shape[1], float(step)),
                BF16=weights.dtype == torch.bfloat16,
            )

    def _accumulate(
        self, total: Tensor, offset: int, keys: Sequence[int], values: Sequence[int]
    ) -> None:
        for begin in range(0, len(keys), _BATCH):
            keys64 = _int64(keys[begin : begin + _BATCH], total.device)
            values64 = _int64(values[begin : begin + _BATCH], total.device)
            for part, position in _chunks(total, offset, len(keys64)):
                words, skip = _directions(keys64, position, part.stop - part.start)
                _launch(
                    _accumulate_kernel,
                    part.stop - part.start,
                    *(total[part], words, values64, part.stop - part.start, skip),
                    *(len(keys64), words.shape[1]),
                )

    def _digest(self, words: Tensor, first: int, key: int) -> int:
        block, skip = divmod(first, philox.COEFFICIENTS_PER_BLOCK)
        blocks = _ceil(skip + words.numel(), philox.COEFFICIENTS_PER_BLOCK)
        partial = torch.empty(_ceil(blocks, _LANES), dtype=torch.int64, device=words.device)
        keys = _int64([key], words.device)
        unsigned = 0xFFFF if words.dtype == torch.int16 else 0xFFFFFFFF
        arguments = (words, partial, keys, words.numel(), skip, block)
        _launch(_digest_kernel, blocks, *arguments, UNSIGNED=unsigned)
        return int(partial.sum())


def create() -> GpuKernels:
    return GpuKernels()


def _launch(kernel: Any, lanes: int, *arguments: object, **constants: object) -> None:  # noqa: ANN401
    """One program for every 1,024 lanes, on the device of the first tensor."""
    tensor = arguments[0]
    assert isinstance(tensor, Tensor)
    if tensor.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(f"the gpu kernels cannot reach a tensor on {tensor.device}")
    with torch.cuda.device_of(tensor):  # type: ignore[no-untyped-call]
        grid = (_ceil(lanes, _LANES),)
        kernel[grid](*arguments, **constants, LANES=_LANES, enable_fp_fusion=False)


def _directions(keys: Tensor, position: int, count: int) -> tuple[Tensor, int]:
    """The words (keys, words) int32 that cover `count` elements from `position` on, and how many
    bits come before the first element's."""
    block, skip = divmod(position, philox.DIRECTIONS_PER_BLOCK)
    blocks = _ceil(skip + count, philox.DIRECTIONS_PER_BLOCK)
    words = torch.empty((len(keys), blocks * 4), dtype=torch.int32, device=keys.device)
    _launch(_words_kernel, len(keys) * blocks, words, keys, block, len(keys), blocks)
    return words, skip


def _chunks(tensor: Tensor, offset: int, rows: int) -> Iterator[tuple[slice, int]]:
    """Parts whose words for `rows` keys fit the scratch memory, and their positions."""
    size = min(_CHUNK_MAX, _SCRATCH_WORDS // rows * 32)
    for start in range(0, tensor.numel(), size):
        yield slice(start, min(start + size, tensor.numel())), offset + start


def _patterns(weights: Tensor) -> Tensor:
    return weights.view(torch.int16) if weights.dtype == torch.bfloat16 else weights


def _int64(numbers: Sequence[int], device: torch.device) -> Tensor:
    """Unsigned 64-bit numbers as the int64 of the same bits."""
    signed = [int(n) - 2**64 if int(n) >= 2**63 else int(n) for n in numbers]
    return torch.tensor(signed, dtype=torch.int64, device=device)


def _ceil(number: int, divisor: int) -> int:
    return -(-number // divisor)
