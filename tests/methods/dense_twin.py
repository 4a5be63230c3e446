"""The dense codec once more, in the obvious way: one operation of torch after the other."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from node.methods.parts.dense_codec import SCALE_MAX, SCALE_MIN
from node.methods.parts.dense_layout import BLOCK, Bits, DenseLayout
from node.methods.parts.sparsify import MAGNITUDE_MAX, MAGNITUDE_MIN


def encode(layout: DenseLayout, tensors: list[Tensor]) -> bytes:
    parts = [bytes([0x20 + layout.bits])]
    for tensor in tensors:
        parts += coded(tensor, layout.bits)
    return b"".join(parts)


def is_right(layout: DenseLayout, data: bytes) -> bool:
    """Whether `encode` could have written it, but for the bytes before the first tensor."""
    at, raw = 1, np.frombuffer(data, np.uint8)
    for size in layout.sizes:
        of_scales, of_values = layout.lengths(size)
        scales, values = raw[at : at + of_scales], raw[at + of_scales : at + of_scales + of_values]
        if not _is_tensor(scales, values, size, layout.bits):
            return False
        at += of_scales + of_values
    return True


def _is_tensor(scales: NDArray[np.uint8], values: NDArray[np.uint8], size: int, bits: Bits) -> bool:
    if bits == 32:
        return _fit(values.copy().view(np.float32), MAGNITUDE_MIN, MAGNITUDE_MAX)
    if bits == 16:
        return _fit(_from_bf16(values), MAGNITUDE_MIN, MAGNITUDE_MAX)
    factors = _from_bf16(scales)
    codes = values if bits == 8 else np.stack([values & 15, values >> 4], 1).reshape(-1)
    empty = np.repeat(factors == 0, BLOCK)[:size]
    return (
        _fit(factors, SCALE_MIN, SCALE_MAX)
        and not (factors < 0).any()
        and not (codes == (0x80 if bits == 8 else 8)).any()
        and not codes[:size][empty].any()
        and not codes[size:].any()
    )


def _from_bf16(data: NDArray[np.uint8]) -> NDArray[np.float32]:
    return (data.copy().view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _fit(values: NDArray[np.float32], least: float, most: float) -> bool:
    is_zero = (values == 0) & ~np.signbit(values)
    return bool((is_zero | ((np.abs(values) >= least) & (np.abs(values) <= most))).all())


def coded(values: Tensor, bits: Bits) -> list[bytes]:
    if bits >= 16:
        kept = values.clamp(-MAGNITUDE_MAX, MAGNITUDE_MAX)
        kept = kept.masked_fill(kept.abs() < MAGNITUDE_MIN, 0.0)
        if bits == 32:
            return [_bytes(kept)]
        # Rounding up from below the limit reaches it, which bf16 holds.
        return [_bytes(kept.to(torch.bfloat16))]
    blocks = _in_blocks(values)
    most = blocks.abs().amax(1)
    scales = _scales(most / 127 if bits == 8 else most)
    shares = blocks / torch.where(scales > 0, scales, 1.0)[:, None]
    shares.masked_fill_(scales[:, None] == 0, 0.0)
    codes = _int8(shares) if bits == 8 else _e3m0(shares)
    codes = codes.reshape(-1)[: values.numel()]
    packed = codes if bits == 8 else _in_pairs(codes)
    return [_bytes(scales.to(torch.bfloat16)), _bytes(packed)]


def _scales(wanted: Tensor) -> Tensor:
    """As bf16 holds them; so small that nobody would feel it: 0."""
    rounded = wanted.clamp(max=SCALE_MAX).to(torch.bfloat16).float()
    return rounded.masked_fill(rounded < SCALE_MIN, 0.0)


def _int8(shares: Tensor) -> Tensor:
    return shares.round().clamp(-127, 127).to(torch.int8)


def _e3m0(shares: Tensor) -> Tensor:
    """The nearest of 0 and 2**-6 .. 2**0, by magnitude."""
    magnitude = shares.abs()
    codes = torch.zeros_like(magnitude, dtype=torch.uint8)
    for exponent in range(1, 7 + 1):
        above = 2.0 ** (exponent - 7)
        border = above / 2 if exponent == 1 else above * 0.75  # half way from the one below
        codes += (magnitude >= border).to(torch.uint8)
    return codes + 8 * ((shares < 0) & (codes > 0)).to(torch.uint8)


def _in_pairs(codes: Tensor) -> Tensor:
    if codes.numel() % 2:
        codes = torch.cat([codes, codes.new_zeros(1)])
    return codes[0::2] | codes[1::2] << 4


def _in_blocks(values: Tensor) -> Tensor:
    count = -(-values.numel() // BLOCK)
    padded = values.new_zeros(count * BLOCK)
    padded[: values.numel()] = values
    return padded.view(count, BLOCK)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()
