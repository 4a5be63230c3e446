"""Dense updates as bytes: laid out as published, decoded to what was coded, strictly."""

import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from node.errors import DivergedError
from node.kernels.threads import Threads
from node.methods.parts import dense_codec, dense_layout
from node.methods.parts.dense_codec import SCALE_MAX, SCALE_MIN, VERSION, decode, encode
from node.methods.parts.dense_layout import BLOCK, SPAN, Bits, DenseLayout
from node.methods.parts.sparsify import MAGNITUDE_MAX, MAGNITUDE_MIN
from tests.methods import dense_twin as twin

BITS: tuple[Bits, ...] = (32, 16, 8, 4)
CHECKS = settings(derandomize=True, deadline=None)
CPU = torch.device("cpu")
# How far from the largest of its block a decoded value may be from its own, as a share of it.
ERROR: dict[Bits, float] = {32: 0.0, 16: 2.0**-8, 8: 0.5 / 127 + 2.0**-8, 4: 0.25 + 2.0**-8}


def coded(bits: Bits, *tensors: torch.Tensor) -> tuple[DenseLayout, bytes]:
    layout = DenseLayout(tuple(tensor.numel() for tensor in tensors), bits)
    return layout, encode(layout, tensors)


def read(layout: DenseLayout, data: bytes) -> list[torch.Tensor]:
    return list(decode(layout, data).values(CPU))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("sizes", [(1,), (5, 0, 7), (BLOCK,), (BLOCK + 1, 3), (50_257,)])
def test_what_is_decoded_is_what_was_coded_to_rounding(bits: Bits, sizes: tuple[int, ...]) -> None:
    drawn = torch.Generator().manual_seed(7)
    tensors = [torch.randn(size, generator=drawn) for size in sizes]
    layout, data = coded(bits, *tensors)
    assert len(data) == layout.bytes
    for tensor, found in zip(tensors, read(layout, data), strict=True):
        most = max(tensor.abs().max().item() if len(tensor) else 0.0, 1e-9)
        assert found.shape == tensor.shape
        assert ((found - tensor).abs() <= ERROR[bits] * most).all()
    again = encode(layout, read(layout, data))
    if bits != 8:  # whose largest value may have been rounded down a little
        assert again == data, "what was decoded is coded as the same bytes"


def test_the_layout_is_as_published() -> None:
    values = torch.tensor([1.0, -0.5, 0.25, 0.0, 0.01])
    assert coded(32, values)[1] == bytes([0x40]) + values.numpy().tobytes()
    assert coded(16, values[:2])[1] == bytes([0x30]) + struct.pack("<HH", 0x3F80, 0xBF00)
    scale = struct.pack("<H", 0x3F80)
    # 1, -2**-1, 2**-2, 0, and 0.01 lies nearer to 2**-6 than to 0
    assert coded(4, values)[1] == bytes([0x24]) + scale + bytes([0xE7, 0x05, 0x01])
    one = torch.tensor([127.0, -127.0, 1.0])
    assert coded(8, one)[1] == bytes([0x28]) + scale + struct.pack("<bbb", 127, -127, 1)


@pytest.mark.parametrize("bits", BITS)
def test_too_large_and_too_small(bits: Bits) -> None:
    layout, data = coded(bits, torch.tensor([1e9, -1e9]))
    high, low = read(layout, data)[0].tolist()
    assert 64 <= high <= MAGNITUDE_MAX
    assert low == -high
    layout, data = coded(bits, torch.tensor([MAGNITUDE_MIN / 4, -0.0]))
    assert read(layout, data)[0].tolist() == [0.0, 0.0]
    assert not read(layout, data)[0].signbit().any()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_run_that_diverged_sends_nothing(bits: Bits, bad: float) -> None:
    with pytest.raises(DivergedError, match="tensor 0"):
        coded(bits, torch.tensor([0.0, bad]))


def _with(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


_FLOAT = struct.Struct("<f")
NEARLY = (
    np.nextafter(np.float32(MAGNITUDE_MAX), np.float32(np.inf)),
    -np.nextafter(np.float32(MAGNITUDE_MIN), np.float32(0)),
)


@pytest.mark.parametrize(
    ("bits", "at", "new"),
    [
        *((bits, 0, bytes([VERSION])) for bits in BITS),
        *(
            (32, 1, _FLOAT.pack(value))
            for value in (float("nan"), float("inf"), 2 * MAGNITUDE_MAX, MAGNITUDE_MIN / 2, -0.0)
        ),
        *((32, 1, np.float32(nearly).tobytes()) for nearly in NEARLY),
        (16, 1, struct.pack("<H", 0x4681)),  # next to the largest, and to the smallest
        (16, 1, struct.pack("<H", 0x267F)),
        (16, 1, struct.pack("<H", 0x7F80)),
        (16, 1, struct.pack("<H", 0x8000)),
        (8, 1, struct.pack("<H", 0x4301)),
        (8, 1, struct.pack("<H", 0x29FF)),
        (8, 1, struct.pack("<H", 0xBF80)),
        (8, 1, struct.pack("<H", 0x7FC0)),
        (8, 1, struct.pack("<H", 0x4400)),
        (8, 1, struct.pack("<H", 0x0001)),
        (8, 1, struct.pack("<H", 0)),
        (8, 3, b"\x80"),
        (4, 1, struct.pack("<H", 0x4400)),
        (4, 1, struct.pack("<H", 0)),
        (4, 3, b"\x87"),
        (4, 3, b"\x78"),
        (4, 5, b"\x11"),
    ],
)
def test_what_no_honest_peer_sends_is_refused(bits: Bits, at: int, new: bytes) -> None:
    """P6"""
    layout, data = coded(bits, torch.tensor([1.0, -0.5, 0.25, 0.5, 1.0]))
    assert _with(data, at, new) != data
    with pytest.raises(ValueError, match=r"."):
        decode(layout, _with(data, at, new))


@pytest.mark.parametrize("bits", [8, 4])
def test_an_empty_block_holds_nothing_wherever_it_is(bits: Bits) -> None:
    """P6"""
    layout, data = coded(bits, torch.tensor([1.0]).repeat(3 * BLOCK))
    held = coded(bits, torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(BLOCK))[1]
    decode(layout, held)
    for block in range(3):
        with pytest.raises(ValueError, match="scale 0"):
            decode(layout, _with(data, 1 + 2 * block, b"\0\0"))


@pytest.mark.parametrize("bits", BITS)
def test_any_other_length_is_refused(bits: Bits) -> None:
    layout, data = coded(bits, torch.ones(5), torch.ones(9))
    for other in (b"", data[:-1], data + b"\0"):
        with pytest.raises(ValueError, match="bytes"):
            decode(layout, other)


@given(st.sampled_from(BITS), st.binary(min_size=19, max_size=19))
def test_bytes_are_refused_or_bounded(bits: Bits, noise: bytes) -> None:
    layout = DenseLayout((4, 3), bits)
    data = bytes([VERSION + bits]) + (noise * 2)[: layout.bytes - 1]
    try:
        found = torch.cat(read(layout, data))
    except ValueError:
        return
    magnitudes = found.abs().numpy()
    assert np.isfinite(magnitudes).all()
    assert (magnitudes <= MAGNITUDE_MAX).all()
    assert (magnitudes[magnitudes > 0] >= min(MAGNITUDE_MIN, SCALE_MIN * 2.0**-6)).all()
    assert not found[found == 0].signbit().any()


SIZES = st.lists(st.sampled_from([0, 1, 2, 7, 31, 256, 257, BLOCK - 1, BLOCK + 1]), max_size=3)


def awkward(size: int, seed: int) -> torch.Tensor:
    """Blocks of every magnitude, and in each of them zeros, limits, borders and what lies next."""
    drawn = np.random.default_rng(seed)
    largest = 2.0 ** drawn.integers(-60, 18)
    values = largest * drawn.standard_normal(size)
    borders = np.array([0.75 * 2.0**-e for e in range(7)] + [2.0**-7, 1.0, 1.5, 0.0, -0.0])
    halves = (drawn.integers(-127, 128, size) + 0.5) / 127
    odd = np.choose(
        drawn.integers(0, 6, size),
        [
            drawn.choice(borders * largest, size),
            drawn.choice([MAGNITUDE_MIN, MAGNITUDE_MAX, SCALE_MIN, 127 * SCALE_MAX], size),
            2.0 ** drawn.integers(-149, 128, size).astype(np.float64),
            halves * largest,
            np.zeros(size),
            values,
        ],
    )
    chosen = np.where(drawn.random(size) < 0.5, odd, values) * drawn.choice([-1, 1], size)
    patterns = chosen.astype(np.float32).view(np.int32)
    nearby = patterns + drawn.integers(-1, 2, size).astype(np.int32)
    finite = np.isfinite(nearby.view(np.float32))
    return torch.from_numpy(np.where(finite, nearby, patterns).astype(np.int32)).view(torch.float32)


@CHECKS
@given(st.sampled_from(BITS), SIZES, st.integers(0, 2**32))
def test_the_loops_write_what_the_twin_writes(bits: Bits, sizes: list[int], seed: int) -> None:
    tensors = [awkward(size, seed + number) for number, size in enumerate(sizes)]
    assert all(tensor.isfinite().all() for tensor in tensors)
    layout, data = coded(bits, *tensors)
    assert data == twin.encode(layout, tensors)
    decode(layout, data)


@pytest.mark.parametrize("bits", BITS)
def test_what_lies_half_way_goes_where_the_twin_puts_it(bits: Bits) -> None:
    """And what lies next to it: halves of integers, and the borders between powers of two."""
    halves = torch.arange(-127, 127) + 0.5
    powers = 127 * 0.75 * 2.0 ** -torch.arange(9.0)
    exact = torch.cat([torch.tensor([127.0]), halves, powers, -powers, 2 * powers[6:]])
    up = torch.nextafter(exact, torch.full_like(exact, torch.inf)).clamp(max=127)
    down = torch.nextafter(exact, torch.full_like(exact, -torch.inf))
    tensor = torch.cat([exact, up, down, exact / 1.5])
    layout, data = coded(bits, tensor, tensor / 127)
    assert data == twin.encode(layout, [tensor, tensor / 127])


@CHECKS
@given(
    st.sampled_from(BITS),
    st.integers(1, 80),
    st.integers(0, 2**32),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=3),
)
def test_the_loops_refuse_what_the_twin_refuses(
    bits: Bits, size: int, seed: int, changes: list[tuple[int, int]]
) -> None:
    """P6"""
    layout, data = coded(bits, awkward(size, seed), torch.zeros(3))
    changed = bytearray(data)
    for at, byte in changes:
        changed[1 + at % (len(data) - 1)] = byte
    if twin.is_right(layout, bytes(changed)):
        decode(layout, bytes(changed))
    else:
        with pytest.raises(ValueError, match=r"."):
            decode(layout, bytes(changed))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("threads", [1, 3])
def test_spans_and_threads_change_nothing(
    bits: Bits, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = [awkward(5 * BLOCK + 3, 1), awkward(0, 2), awkward(2 * BLOCK, 3)]
    layout, whole = coded(bits, *tensors)
    monkeypatch.setattr(dense_layout, "SPAN", BLOCK)
    monkeypatch.setattr(dense_codec, "THREADS", Threads(threads))
    assert encode(layout, tensors) == whole
    assert decode(layout, whole).data.tobytes() == whole
    wrong = {32: b"\xff\xff\xff\xff", 16: b"\xff\xff", 8: b"\x80", 4: b"\x88"}[bits]
    with pytest.raises(ValueError, match=r"."):
        decode(layout, _with(whole, layout.bytes - len(wrong), wrong))
    tensors[2][BLOCK + 1] = torch.nan
    with pytest.raises(DivergedError, match="tensor 2"):
        encode(layout, tensors)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("sizes", [(), (0,), (3 * SPAN + 5, 0, 1, SPAN), (SPAN - BLOCK, 7)])
def test_spans_cover_the_update(bits: Bits, sizes: tuple[int, ...]) -> None:
    layout = DenseLayout(sizes, bits)
    element, ends = 0, []
    for span in layout.spans():
        assert span.first == element
        assert 1 <= span.size <= SPAN
        element += span.size
        of_scales, of_values = layout.lengths(span.size)
        ends += [(span.scales, span.scales + of_scales), (span.values, span.values + of_values)]
    assert element == sum(sizes)
    pieces = sorted(end for end in ends if end[0] < end[1])
    at = 1
    for start, end in pieces:
        assert start == at
        at = end
    assert at == layout.bytes
