"""The obvious version, in plain torch, for any device: what the fast back ends must equal.

Unsigned 32-bit arithmetic is done in int64: a product of two 32-bit numbers may wrap into the sign
bit, but its 64 bits are right, and masking after the shift takes the sign out again.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from node.kernels import philox
from node.kernels.base import CheckedKernels

_CHUNK = 1 << 20  # elements at a time: bounds the memory that the int64 temporaries take
_MASK = 0xFFFFFFFF
_NAN32 = 0x7FC00000


class ReferenceKernels(CheckedKernels):
    name = "reference"

    def _perturb(self, weights: Tensor, offset: int, key: int, scale: float, out: Tensor) -> None:
        scale32 = float(np.float32(scale))
        for part in _chunks(weights):
            s = _directions(key, offset + part.start, weights[part]).float()
            moved = weights[part].float() + s * scale32
            out[part] = _nearest(moved) if out.dtype == torch.bfloat16 else _one_nan(moved)

    def _merge(
        self,
        weights: Tensor,
        offset: int,
        keys: Sequence[int],
        values: Sequence[int],
        step: float,
        noise_key: int,
    ) -> None:
        for part in _chunks(weights):
            total = torch.zeros_like(weights[part], dtype=torch.int64)
            self._accumulate(total, offset + part.start, keys, values)
            subtract(weights[part], offset + part.start, total.float() * step, noise_key)

    def _accumulate(
        self, total: Tensor, offset: int, keys: Sequence[int], values: Sequence[int]
    ) -> None:
        for part in _chunks(total):
            for key, value in zip(keys, values, strict=True):
                total[part] += _directions(key, offset + part.start, total[part]) * int(value)

    def _digest(self, words: Tensor, first: int, key: int) -> int:
        unsigned = 0xFFFF if words.dtype == torch.int16 else _MASK
        total = 0
        for part in _chunks(words):
            coefficients = _coefficients(key, first + part.start, words[part])
            total += int(((words[part].long() & unsigned) * coefficients).sum())
        return total


def subtract(weights: Tensor, offset: int, change: Tensor, noise_key: int) -> None:
    """In place: weights -= change (fp32), each of them flat; bf16 is rounded stochastically."""
    for part in _chunks(weights):
        moved = _one_nan(weights[part].float() - change[part])
        if weights.dtype == torch.bfloat16:
            noise = _noise(noise_key, offset + part.start, moved)
            moved = _top_half((moved.view(torch.int32).long() & _MASK) + noise)
        weights[part] = moved


def _chunks(tensor: Tensor) -> list[slice]:
    count = tensor.numel()
    return [slice(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]


def _words(key: int, blocks: Tensor, stream: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four words, 0..2^32-1 in int64, of every block number in `blocks` (int64)."""
    c0, c1 = blocks & _MASK, blocks >> 32
    c2, c3 = torch.full_like(blocks, stream), torch.zeros_like(blocks)
    k0, k1 = key & _MASK, key >> 32
    for _ in range(philox.ROUNDS):
        p0, p1 = c0 * philox.MULTIPLIERS[0], c2 * philox.MULTIPLIERS[1]
        c0, c1 = ((p1 >> 32) & _MASK) ^ c1 ^ k0, p1 & _MASK
        c2, c3 = ((p0 >> 32) & _MASK) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + philox.WEYL[0]) & _MASK, (k1 + philox.WEYL[1]) & _MASK
    return c0, c1, c2, c3


def _window(
    key: int, first: int, like: Tensor, stream: int, per_block: int
) -> tuple[Tensor, slice]:
    """The words (blocks, 4) that cover positions from `first` on, one for each element of `like`,
    and where those positions lie when every block is spread out into `per_block` numbers."""
    first_block, skip = divmod(first, per_block)
    blocks = (skip + like.numel() + per_block - 1) // per_block
    numbers = torch.arange(first_block, first_block + blocks, device=like.device)
    words = torch.stack(_words(key, numbers, stream), dim=1)
    return words, slice(skip, skip + like.numel())


def _directions(key: int, first: int, like: Tensor) -> Tensor:
    """+1 or -1, int64, for each element of `like`, whose first has the position `first`."""
    words, part = _window(key, first, like, philox.DIRECTIONS, philox.DIRECTIONS_PER_BLOCK)
    bits = (words[:, :, None] >> torch.arange(32, device=like.device)) & 1
    return bits.reshape(-1)[part] * 2 - 1


def _noise(key: int, first: int, like: Tensor) -> Tensor:
    """16 random bits, int64, for each element of `like`."""
    words, part = _window(key, first, like, philox.NOISE, philox.NOISE_PER_BLOCK)
    halves = torch.stack((words & 0xFFFF, words >> 16), dim=2)
    return halves.reshape(-1)[part]


def _coefficients(key: int, first: int, like: Tensor) -> Tensor:
    """64 random bits, as int64, for each element of `like`."""
    words, part = _window(key, first, like, philox.DIGEST, philox.COEFFICIENTS_PER_BLOCK)
    pairs = words[:, 0::2] | (words[:, 1::2] << 32)
    return pairs.reshape(-1)[part]


def _one_nan(values: Tensor) -> Tensor:
    """fp32 with every NaN replaced by the one pattern."""
    nan = torch.full((), _NAN32, dtype=torch.int32, device=values.device).view(torch.float32)
    return torch.where(values.isnan(), nan, values)


def _nearest(values: Tensor) -> Tensor:
    """fp32 to bf16, to nearest, ties to even."""
    bits = _one_nan(values).view(torch.int32).long() & _MASK
    return _top_half(bits + 0x7FFF + ((bits >> 16) & 1))


def _top_half(bits: Tensor) -> Tensor:
    """The upper 16 of 32 bits (int64) as bf16."""
    half = bits >> 16
    return torch.where(half >= 2**15, half - 2**16, half).to(torch.int16).view(torch.bfloat16)
