"""Sparse updates as bytes: pinned, small, and strict about everything that a stranger sends."""

import math
import os
import struct
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from node.methods.parts import chunks
from node.methods.parts.chunks import Layout
from node.methods.parts.sparse_codec import (
    SparseUpdate,
    decode,
    encode,
    positions_of,
    symbols_of,
)
from node.methods.parts.sparsify import Selection, select
from tests.methods import sparse_twin as twin

CHECKS = settings(derandomize=True, deadline=None)

sizes = st.lists(st.integers(0, 120), max_size=4)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    chunk = draw(st.sampled_from([1, 2, 7, 16, 40]))
    return Layout.of(draw(sizes), chunk, draw(st.integers(1, chunk)), draw(st.sampled_from([1, 2])))


def selections_of(layout: Layout, seed: int) -> list[Selection]:
    generator = torch.Generator().manual_seed(seed)
    return [
        twin.random_selection(tensor, generator, layout.symbol_bits) for tensor in layout.tensors
    ]


def values_of(update: SparseUpdate) -> list[twin.Values]:
    tensors = []
    for number, part in enumerate(update.tensors):
        table = [part.low, -part.low, part.high, -part.high]
        values = [table[symbol] for symbol in symbols_of(update, number).tolist()]
        positions = positions_of(update, number).tolist()
        tensors.append(list(zip(positions, values, strict=True)))
    return tensors


@CHECKS
@given(layouts(), st.integers(0, 2**32), st.sampled_from([1, 30, 2**20]))
def test_updates_survive_the_wire(layout: Layout, seed: int, span: int) -> None:
    selections = selections_of(layout, seed)
    with pytest.MonkeyPatch.context() as patch:
        for module in (chunks, twin):
            patch.setattr(module, "SPAN_ELEMENTS", span)
        data = encode(layout, selections)
        assert data == twin.encode(layout, selections)
        expected = [twin.values_of(selection) for selection in selections]
        assert values_of(decode(layout, data)) == expected == twin.decode(layout, data)


@CHECKS
@given(layouts(), st.integers(0, 2**32), st.floats(2.0**-20, 2.0**10))
def test_what_was_selected_arrives(layout: Layout, seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    selections = [
        select("t", torch.randn(t.size, generator=generator) * scale, t, layout.symbol_bits)
        for t in layout.tensors
    ]
    update = decode(layout, encode(layout, selections))
    assert values_of(update) == [twin.values_of(selection) for selection in selections]


def test_chunks_of_the_largest_size() -> None:
    """65,536 elements, one kept, in the last place: a divisor that 16 bits write as 0."""
    layout = Layout.of([2**17], chunk=2**16, k=1)
    places = torch.tensor([2**16 - 1, 2**17 - 1])
    selection = Selection(places, torch.tensor([0, 3], dtype=torch.uint8), 0.5, 2.0)
    data = encode(layout, [selection])
    assert positions_of(decode(layout, data), 0).tolist() == places.tolist()
    for divisor in (1, 2**15 + 1, 2**16):
        other = bytearray(data[:1]) + struct.pack("<H", divisor % 2**16) + data[3:7]
        bits = twin.code(2**16 - 1, divisor) * 2
        stream = twin.packed(bits)
        whole = bytes(other) + struct.pack("<I", len(stream)) + data[11:12] + stream
        assert positions_of(decode(layout, whole), 0).tolist() == places.tolist()


# A tensor of two chunks of 10, 3 kept of each; an empty one; one of a single chunk of 4.
GOLDEN_LAYOUT = Layout.of([20, 0, 4], chunk=10, k=3)
GOLDEN_SELECTIONS = [
    Selection(
        torch.tensor([0, 4, 9, 12, 13, 19]),
        torch.tensor([0, 1, 2, 3, 3, 0], dtype=torch.uint8),
        0.5,
        1.5,
    ),
    Selection(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.uint8), 0.0, 0.0),
    Selection(torch.tensor([2]), torch.tensor([3], dtype=torch.uint8), 0.25, 0.25),
]
GOLDEN = bytes.fromhex(
    "12"  # version 1, two bits a symbol
    "0200 003f c03f 03000000 e403 74c202"  # divisor, 0.5, 1.5, 3 bytes; symbols; positions
    "0100 803e 803e 01000000 03 03"
)


def test_the_bytes_are_pinned() -> None:
    """Peers of other builds read these: a change is a new version."""
    data = encode(GOLDEN_LAYOUT, GOLDEN_SELECTIONS)
    assert data.hex(" ") == GOLDEN.hex(" ")
    values = values_of(decode(GOLDEN_LAYOUT, GOLDEN))
    assert values == [twin.values_of(selection) for selection in GOLDEN_SELECTIONS]


def patched(at: int, *replacement: int) -> bytes:
    return GOLDEN[:at] + bytes(replacement) + GOLDEN[at + len(replacement) :]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "end in the version"),
        (patched(0, 0x11), "version 0x11"),
        (patched(0, 0x22), "version 0x22"),
        (GOLDEN + b"\0", "1 bytes behind the last tensor"),
        (GOLDEN[:-1], "end in tensor 2"),
        (patched(1, 11), "tensor 0: a divisor of 11"),
        (patched(1, 0), "tensor 0: a divisor of 65536"),
        (patched(16, 5), "tensor 2: a divisor of 5"),
        (patched(3, 0xC1, 0x3F), "out of order"),
        (patched(5, 0xC0, 0x7F), "magnitude of nan"),
        (patched(5, 0x80, 0x7F), "magnitude of inf"),
        (patched(5, 0x01, 0x7F), "magnitude of"),
        (patched(5, 0x80, 0xFF), "magnitude of -inf"),
        (patched(5, 0x00, 0xBF), "magnitude of -0.5"),
        (patched(18, 0x00, 0x80, 0x00, 0x80), "magnitude of -0"),
        (patched(5, 0x81, 0x46), "magnitude of 16512"),
        (patched(3, 0x7F, 0x26), "magnitude of"),
        (patched(3, 0x01, 0x00), "magnitude of"),
        (patched(12, 0x13), "padding behind its symbols"),
        (patched(15, 0x06), "padding behind the positions"),
        (patched(15, 0x82), "padding behind the positions"),
        (patched(15, 0x05), "outside its chunk"),
        (patched(13, 0xFF, 0xFF, 0xFF), "outside its chunk|end early"),
        (patched(27, 0x0F), "outside its chunk"),
        (patched(27, 0xFF), "end early|outside its chunk"),
        (GOLDEN[:7] + b"\2" + GOLDEN[8:15] + GOLDEN[16:], "end early"),
        (GOLDEN[:7] + b"\0" + GOLDEN[8:13] + GOLDEN[16:], "end early"),
        (GOLDEN[:7] + b"\4" + GOLDEN[8:16] + b"\0" + GOLDEN[16:], "bytes behind the positions"),
        (patched(7, 0xFF, 0xFF, 0xFF, 0xFF), "end in tensor 0"),
    ],
)
def test_wrong_bytes_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode(GOLDEN_LAYOUT, data)


def test_no_beginning_of_an_update_is_one() -> None:
    for end in range(len(GOLDEN)):
        with pytest.raises(ValueError, match=r"\w"):
            decode(GOLDEN_LAYOUT, GOLDEN[:end])


def test_one_magnitude_is_said_twice() -> None:
    layout = Layout.of([1], symbol_bits=1)
    data = bytes.fromhex("11 0100 003f 003f 01000000 01 00")
    assert values_of(decode(layout, data)) == [[(0, -0.5)]]
    with pytest.raises(ValueError, match="out of order"):
        decode(layout, data[:3] + b"\0\0" + data[5:])


def test_a_model_of_nothing_is_a_version() -> None:
    layout = Layout.of([0, 0])
    selections = [select("t", torch.empty(0), tensor) for tensor in layout.tensors]
    assert encode(layout, selections) == b"\x12"
    assert values_of(decode(layout, b"\x12")) == [[], []]


def test_damaged_and_random_bytes_are_refused_or_read_as_the_twin_reads_them() -> None:
    random, accepted = Random(1), 0
    for seed in range(1500):
        layout = random.choice(
            [Layout.of([33, 0, 7], 16, 5), Layout.of([40], 40, 3, 1), Layout.of([9, 9], 1, 1)]
        )
        data = damaged(encode(layout, selections_of(layout, seed)), random)
        try:
            update = decode(layout, data)
        except ValueError:
            continue
        accepted += 1
        assert values_of(update) == twin.decode(layout, data)
    assert 100 < accepted < 1400


def damaged(data: bytes, random: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(random.randrange(3)):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    if random.random() < 0.2:
        at = random.randrange(len(changed))
        changed[at:] = random.randbytes(random.randrange(2 * len(changed)))
    return bytes(changed)


def test_ten_million_gaussian_values_cost_little_more_than_they_must() -> None:
    """All headers counted. The least is 9.36: the logarithm of the number of choices, and two
    bits."""
    layout = Layout.of([3200 * 3200])
    generator = torch.Generator().manual_seed(1)
    selection = select("t", torch.randn(layout.size, generator=generator), layout.tensors[0])
    bits = 8 * len(encode(layout, [selection])) / layout.kept
    least = (math.lgamma(4097) - math.lgamma(65) - math.lgamma(4033)) / math.log(2) / 64 + 2
    assert least < bits <= 9.5


BOUNDS = """
import ctypes
import mmap
from random import Random

import numpy as np

from node.kernels import sparse

PAGE = mmap.PAGESIZE
pages = mmap.mmap(-1, 2 * PAGE)
memory = np.frombuffer(pages, np.uint8)
address = memory.ctypes.data + PAGE
NOBODY = 0  # may read or write it
assert not ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), PAGE, NOBODY)

random = Random(2)
faults = {0: 0, **dict.fromkeys(sparse.FAULTS, 0)}
for turn in range(20_000):
    chunk, k, size = random.choice([(40, 7, 100), (300, 1, 600), (8, 8, 8)])
    kept = sum(max(1, (2 * k * n + chunk) // (2 * chunk))
               for n in (min(chunk, size - s) for s in range(0, size, chunk)))
    length = random.randrange(24)
    noise = np.frombuffer(random.randbytes(length), np.uint8)
    if turn % 2:
        noise = noise & np.frombuffer(random.randbytes(length), np.uint8)
    divisor = random.randrange(1, chunk + 1)
    results = []
    for guard in (0, 255):
        memory[:PAGE] = guard
        memory[PAGE - length : PAGE] = noise
        positions = np.full(kept + 32, -7)
        stream, out = memory[PAGE - length : PAGE], positions[16 : 16 + kept]
        fault = sparse.read_span(stream, divisor, chunk, k, size, out)
        assert set(positions[:16]) | set(positions[16 + kept :]) == {-7}
        results.append((fault, out.tolist()))
    assert results[0] == results[1], "bytes outside the stream have made a difference"
    fault, out = results[0]
    faults[fault] += 1
    if not fault:
        assert all(0 <= p < size for p in out) and sorted(set(out)) == out
print(faults)
assert all(count > 20 for count in faults.values()), faults
"""


def test_no_bytes_lead_out_of_bounds(tmp_path: Path) -> None:
    """Streams end where a page begins that nobody may touch. The bytes before them make no
    difference, and Numba's own checks, compiled in, find no other index outside."""
    root = Path(__file__).parents[2]
    environment = {
        **os.environ,
        "NUMBA_BOUNDSCHECK": "1",
        "NUMBA_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": str(root),
    }
    done = subprocess.run(
        [sys.executable, "-c", BOUNDS], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
