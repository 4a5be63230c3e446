"""Dense updates as bytes: every element of theta, in one of four widths.

    version  1 byte   0x20 + bits of an element (32, 16, 8 or 4)
    then for each tensor of the layout that has elements, in the model's order:
    scales   bf16     of each block of 4096 elements, the last one shorter; only for 8 and 4 bits:
                      0, or within SCALE_MIN..SCALE_MAX
    values            32: float32. 16: bf16. 8: int8, which counts the block's scale, -127..127.
                      4: bit 3 for a minus, bits 0..2 an exponent e: scale * 2**(e - 7), 0 for
                      e = 0 (E3M0); two to a byte, the low half first, padded with zero bits

Numbers are little-endian. Every value that is decoded is +0 or has a magnitude within MAGNITUDE_MIN
and MAGNITUDE_MAX; there is one code for 0, and a block of scale 0 holds nothing else. Decoding is
exact: an int8 times a bf16, and a power of two times one, are float32 numbers.

The scale is the block's largest magnitude, for 8 bits a 127th of it; codes are those of the nearest
values. What is rounded away waits on its sender.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from node.errors import DivergedError
from node.kernels import dense
from node.kernels.cpu import array_of
from node.kernels.threads import Threads
from node.methods.parts.dense_layout import BLOCK, Bits, DenseLayout, Span
from node.methods.parts.sparsify import MAGNITUDE_MAX, MAGNITUDE_MIN

Bytes = NDArray[np.uint8]

VERSION: Final = 0x20
SCALE_MAX: Final = 2.0**7  # 127 of it stay below MAGNITUDE_MAX
SCALE_MIN: Final = 2.0**-43  # 2**-6 of it, in four bits, stays above MAGNITUDE_MIN
_E3M0: Final = 7  # the largest exponent
_MAGNITUDES: Final = (MAGNITUDE_MIN, MAGNITUDE_MAX)
_SCALES: Final = (SCALE_MIN, SCALE_MAX)

THREADS: Final = Threads()


@dataclass(frozen=True, slots=True)
class DenseUpdate:
    """Bytes that were read once, and hold what they should."""

    layout: DenseLayout
    data: Bytes

    def values(self, device: torch.device) -> Iterator[Tensor]:
        """(size,) float32 of each tensor, as everybody decodes it."""
        for scales, values, size in _parts(self.layout, self.data):
            yield _decoded(scales, values, size, self.layout.bits).to(device)


def encode(layout: DenseLayout, tensors: Sequence[Tensor]) -> bytes:
    """`tensors`: float32, flat. What is too large to send is sent as the largest that may be.

    Raises DivergedError when one holds a NaN or an infinity.
    """
    assert tuple(tensor.numel() for tensor in tensors) == layout.sizes
    values = [array_of(tensor.detach().cpu().contiguous()) for tensor in tensors]
    starts = [0, *accumulate(layout.sizes)]
    out = np.empty(layout.bytes, np.uint8)
    out[0] = VERSION + layout.bits
    at = out.ctypes.data

    def code(span: Span) -> int:
        start = span.first - starts[span.tensor]
        part = values[span.tensor][start : start + span.size]
        places = at + span.scales, at + span.values
        return int(dense.code_span(part, *places, layout.bits, BLOCK, *_MAGNITUDES, *_SCALES))

    spans = list(layout.spans())
    for span, fault in zip(spans, THREADS.map(code, spans), strict=True):
        if fault:
            raise DivergedError(f"the update of trainable tensor {span.tensor}")
    return out.tobytes()


def rounded(
    values: Tensor,  # (rows, size) float32, finite: one tensor of as many peers
    bits: Bits,
) -> Tensor:
    """What everybody decodes of each row's encoding, all rows at once."""
    if bits >= 16:
        return _float_codes(values, bits).float()
    rows, size = values.shape
    block = min(size, BLOCK)
    padded = values.new_zeros(rows, -(-size // block) * block)
    padded[:, :size] = values
    scales, codes = _scaled_codes(padded.view(-1, block), bits)
    if bits == 4:
        codes = torch.from_numpy(_E3M0_VALUES).to(values.device)[codes.long()]
    return (codes.float() * scales[:, None]).view(rows, -1)[:, :size]


def decode(layout: DenseLayout, data: bytes) -> DenseUpdate:
    """Raises ValueError for what `encode` would not have written."""
    if len(data) != layout.bytes:
        raise ValueError(f"an update has {layout.bytes} bytes, not {len(data)}")
    if data[0] != VERSION + layout.bits:
        raise ValueError(f"an update of version {data[0]} is unknown here")
    raw = np.frombuffer(data, np.uint8)
    if layout.bits < 16:
        for scales, values, size in _parts(layout, raw):
            _check_scales(scales)
            if layout.bits == 4 and size % 2 and values[-1] >> 4:
                raise ValueError("bits behind the last value")
    at = raw.ctypes.data

    def check(span: Span) -> int:
        places = at + span.scales, at + span.values
        return int(dense.check_span(*places, span.size, layout.bits, BLOCK, *_MAGNITUDES))

    fault = min(THREADS.map(check, layout.spans()), default=0)
    if fault:
        raise ValueError(dense.FAULTS[fault])
    return DenseUpdate(layout, raw)


def _parts(layout: DenseLayout, data: Bytes) -> Iterator[tuple[Bytes, Bytes, int]]:
    at = 1
    for size in layout.sizes:
        of_scales, of_values = layout.lengths(size)
        end = at + of_scales + of_values
        yield data[at : at + of_scales], data[at + of_scales : end], size
        at = end


def _check_scales(scales: Bytes) -> None:
    """Each 0 or within its bounds: so are the patterns of what is not negative."""
    patterns = scales.view(np.uint16)
    least, most = (np.float32(scale).view(np.uint32) >> 16 for scale in _SCALES)
    if bool(((patterns != 0) & ((patterns < least) | (patterns > most))).any()):
        raise ValueError(f"a scale is neither 0 nor within {SCALE_MIN:g}..{SCALE_MAX:g}")


# What encoding makes of many peers at once


def _float_codes(values: Tensor, bits: Bits) -> Tensor:
    kept = values.clamp(-MAGNITUDE_MAX, MAGNITUDE_MAX)
    kept = kept.masked_fill(kept.abs() < MAGNITUDE_MIN, 0.0)
    # Rounding up from below the limit reaches it, which bf16 holds.
    return kept if bits == 32 else kept.to(torch.bfloat16)


def _scaled_codes(
    blocks: Tensor,  # (count, BLOCK), or narrower ones
    bits: Bits,
) -> tuple[Tensor, Tensor]:  # (count,) scales, as bf16 holds them; (count, BLOCK) codes
    most = blocks.abs().amax(1)
    scales = _scales(most / 127 if bits == 8 else most)
    shares = blocks / torch.where(scales > 0, scales, 1.0)[:, None]
    shares.masked_fill_(scales[:, None] == 0, 0.0)
    return scales, _int8(shares) if bits == 8 else _e3m0(shares)


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
    for exponent in range(1, _E3M0 + 1):
        above = 2.0 ** (exponent - _E3M0)
        border = above / 2 if exponent == 1 else above * 0.75  # half way from the one below
        codes += (magnitude >= border).to(torch.uint8)
    return codes + 8 * ((shares < 0) & (codes > 0)).to(torch.uint8)


# Decoding one tensor


def _in_blocks(values: Tensor) -> Tensor:
    count = -(-values.numel() // BLOCK)
    padded = values.new_zeros(count * BLOCK)
    padded[: values.numel()] = values
    return padded.view(count, BLOCK)


def _decoded(scales: Bytes, values: Bytes, size: int, bits: Bits) -> Tensor:
    if bits == 32:
        return torch.from_numpy(values.copy().view(np.float32))
    if bits == 16:
        return _from_bf16(values)
    factors = _from_bf16(scales)
    shares = torch.from_numpy(values.view(np.int8).astype(np.float32))
    if bits == 4:
        shares = torch.from_numpy(_E3M0_VALUES[_nibbles(values, size)])
    return (_in_blocks(shares) * factors[:, None]).reshape(-1)[:size]


def _from_bf16(data: Bytes) -> Tensor:
    return torch.from_numpy(data.copy().view(np.int16)).view(torch.bfloat16).float()


_E3M0_VALUES: Final = np.array(
    [sign * (2.0 ** (e - _E3M0) if e else 0.0) for sign in (1, -1) for e in range(8)], np.float32
)


def _nibbles(values: Bytes, size: int) -> Bytes:
    return np.stack([values & 15, values >> 4], 1).reshape(-1)[:size]
