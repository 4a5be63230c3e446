"""Coefficients as bytes: pinned, small, and strict about everything that a stranger sends."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from node.errors import DivergedError
from node.methods.parts.coefficient_codec import Coefficients, decode, encode, quantised
from node.methods.parts.sparsify import MAGNITUDE_MAX, MAGNITUDE_MIN
from node.methods.parts.tiles import CoefficientLayout, Strides, Tiles, Values

CHECKS = settings(derandomize=True, deadline=None, max_examples=60)
SHAPES = [(70, 9), (), (130,), (0, 3), (5, 3, 7), (1,)]

layouts = st.one_of(
    st.builds(
        lambda side, share, values: CoefficientLayout.tiled(
            SHAPES, side, max(1, side * side * share // 100), values
        ),
        st.sampled_from([1, 5, 64]),
        st.sampled_from([0, 1, 5, 50, 100]),
        st.sampled_from(["sign", "int8"]),
    ),
    st.builds(
        lambda one_in, values: CoefficientLayout.strided(SHAPES, one_in, values),
        st.sampled_from([1, 3, 16]),
        st.sampled_from(["sign", "int8"]),
    ),
)


def drawn(
    layout: CoefficientLayout,
    seed: int,
    share: float,  # of values that are not 0
) -> list[Coefficients]:
    """What the layout allows: fewer than k of a numbered tile, zeros elsewhere."""
    generator = np.random.default_rng(seed)
    found = []
    for of in layout.tensors:
        if not of.elements:
            nowhere = np.empty(0, np.int64) if isinstance(of, Tiles) else None
            found.append(Coefficients(0.0, np.empty(0, np.int8), nowhere))
            continue
        count = of.slots if isinstance(of, Strides) else of.count * of.k
        most = 1 if layout.values == "sign" else 127
        symbols = generator.integers(1, most + 1, count) * generator.choice([-1, 1], count)
        symbols[generator.random(count) >= share] = 0
        positions = None
        if isinstance(of, Tiles):
            rows = [np.sort(generator.choice(of.length, of.k, False)) for _ in range(of.count)]
            positions = np.concatenate([r + i * of.length for i, r in enumerate(rows)])
            if of.rank_bits is not None:
                positions, symbols = positions[symbols != 0], symbols[symbols != 0]
        scale = 1.5 if symbols.any() else 0.0
        found.append(Coefficients(scale, symbols.astype(np.int8), positions))
    return found


@CHECKS
@given(layouts, st.integers(0, 1000), st.sampled_from([0.0, 0.5, 0.9, 1.0]))
def test_coefficients_survive_the_wire(layout: CoefficientLayout, seed: int, share: float) -> None:
    sent = drawn(layout, seed, share)
    data = encode(layout, sent)
    assert len(data) <= layout.bytes_max
    for of, wanted, found in zip(layout.tensors, sent, decode(layout, data), strict=True):
        assert found.scale == wanted.scale
        if isinstance(of, Strides):
            assert found.positions is None
            assert found.symbols.tolist() == wanted.symbols.tolist()
        else:
            there = wanted.symbols != 0
            assert found.positions is not None
            assert wanted.positions is not None
            assert found.symbols.tolist() == wanted.symbols[there].tolist()
            assert found.positions.tolist() == wanted.positions[there].tolist()
    full = drawn(layout, seed, 1.0)
    assert all(of.elements == 0 or one.scale for of, one in zip(layout.tensors, full, strict=True))


@CHECKS
@given(layouts, st.integers(0, 10), st.data())
def test_bytes_are_refused_or_bounded(
    layout: CoefficientLayout, seed: int, data: st.DataObject
) -> None:
    """P6: whatever is flipped, cut off or added: ValueError, or coefficients that are coded as
    these very bytes.
    """
    raw = bytearray(encode(layout, drawn(layout, seed, 0.8)))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.sampled_from([0, 0, 0, 1]))
    bad = bytes(raw[: len(raw) - cut]) + data.draw(st.sampled_from([b"", b"", b"\0"]))
    try:
        found = decode(layout, bad)
    except ValueError:
        return
    for of, one in zip(layout.tensors, found, strict=True):
        assert one.scale == 0 or MAGNITUDE_MIN <= one.scale <= MAGNITUDE_MAX
        assert (one.symbols != -128).all()
        if isinstance(of, Strides):
            assert len(one.symbols) == of.slots
        else:
            assert one.positions is not None
            assert len(one.positions) == len(one.symbols) <= of.count * max(of.k, 1)
            assert (np.diff(one.positions) > 0).all()
            assert ((one.positions >= 0) & (one.positions < of.size)).all()
    if all(isinstance(of, Strides) or of.rank_bits is not None for of in layout.tensors):
        assert encode(layout, found) == bad, "there is one encoding"


# One tile of 2 x 3 with at most 2 kept, one of 4 x 1 with 1; then the same by masks.
NUMBERED = CoefficientLayout.tiled([(2, 3), (4,)], 4, 5, "sign")
INT8 = CoefficientLayout.tiled([(2, 3)], 4, 5, "int8")
MASKED = CoefficientLayout.strided([(9,)], 3, "sign")
GAPS = CoefficientLayout.tiled([(64, 64)], 64, 9, "int8")


def sent(scale: float, symbols: list[int], positions: list[int] | None = None) -> Coefficients:
    places = None if positions is None else np.array(positions, np.int64)
    return Coefficients(scale, np.array(symbols, np.int8), places)


def test_the_bytes_are_pinned() -> None:
    """Peers of other builds read these: a change is a new version."""
    assert [of.rank_bits for of in NUMBERED.tensors if isinstance(of, Tiles)] == [5, 3]
    # {1, 4} is the number 1 + 6 + (1 + 6) = 14; {3} of four places is 1 + 3.
    data = encode(NUMBERED, [sent(0.5, [1, -1], [1, 4]), sent(0.25, [-1], [3])])
    assert data.hex(" ") == "51 00 3f 0e 02 80 3e 04 01"
    data = encode(NUMBERED, [sent(0.0, [], []), sent(0.25, [1], [0])])
    assert data.hex(" ") == "51 00 00 00 80 3e 01 00"
    assert encode(INT8, [sent(0.5, [-127, 3], [1, 4])]).hex(" ") == "58 00 3f 0e 81 03"
    assert encode(MASKED, [sent(1.0, [1, -1, 1])]).hex(" ") == "51 80 3f 00 02"
    assert encode(MASKED, [sent(1.0, [0, -1, 1])]).hex(" ") == "51 80 3f 01 06 01"
    gaps = encode(GAPS, [sent(1.0, [5, 0, -9, 1, 1, 1, 1, 1, 1], [*range(8), 4095])])
    positions = "00 00 00 00 00 00 00 00 ff ff 1d 00"  # eight gaps of 0, and 17 * 240 + 7
    assert gaps.hex(" ") == f"58 80 3f f0 00 0c 00 00 00 {positions} 05 00 f7 01 01 01 01 01 01"
    read = decode(GAPS, gaps)[0]
    assert read.positions is not None
    assert read.positions.tolist() == [0, *range(2, 8), 4095]
    assert read.symbols.tolist() == [5, -9, 1, 1, 1, 1, 1, 1]


def case(layout: CoefficientLayout, text: str, message: str) -> tuple[CoefficientLayout, str, str]:
    return layout, text, message


@pytest.mark.parametrize(
    ("layout", "text", "message"),
    [
        case(NUMBERED, "", "end in"),
        case(NUMBERED, "58 00 3f 0e 02 80 3e 04 01", "version 0x58"),
        case(NUMBERED, "51 00 3f 0e 02 80 3e 04 01 00", "1 bytes behind"),
        case(NUMBERED, "51 00 3f 0e 02 80 3e 04", "end in"),
        case(NUMBERED, "51 00 3f 16 02 80 3e 04 01", "stands for no subset"),  # 22 of 22
        case(NUMBERED, "51 00 3f 0e 02 80 3e 05 01", "stands for no subset"),
        case(NUMBERED, "51 00 3f 2e 02 80 3e 04 01", "padding behind the positions"),
        case(NUMBERED, "51 00 3f 0e 06 80 3e 04 01", "padding behind the bits"),
        case(NUMBERED, "51 00 00 0e 02 80 3e 04 01", "scale 0"),
        case(NUMBERED, "51 c0 7f 0e 02 80 3e 04 01", "a magnitude of nan"),
        case(NUMBERED, "51 80 7f 0e 02 80 3e 04 01", "a magnitude of inf"),
        case(NUMBERED, "51 00 bf 0e 02 80 3e 04 01", "a magnitude of -0.5"),
        case(NUMBERED, "51 00 80 00 80 3e 04 01", "a magnitude of -0"),
        case(NUMBERED, "51 81 46 0e 02 80 3e 04 01", "a magnitude of"),
        case(NUMBERED, "51 01 00 0e 02 80 3e 04 01", "a magnitude of"),
        case(INT8, "58 00 3f 0e 80 03", "stands for nothing"),
        case(INT8, "58 00 3f 0e 00 03", "that is sent is 0"),
        case(MASKED, "51 80 3f 02 02", "kind 2"),
        case(MASKED, "51 80 3f 00 0a", "padding"),
        case(MASKED, "51 80 3f 01 07 02", "no value is 0"),
        case(MASKED, "51 80 3f 01 0e 01", "padding"),
        case(MASKED, "51 80 3f 01 06 05", "padding"),
        case(MASKED, "51 00 00 01 06 01", "scale 0"),
        case(GAPS, "58 80 3f 00 00 01 00 00 00", "a divisor of 0"),
        case(GAPS, "58 80 3f 01 10 01 00 00 00", "a divisor of 4097"),
        case(GAPS, "58 80 3f 01 00 ff ff ff ff", "end in"),
        case(GAPS, "58 80 3f 01 00 01 00 00 00 00", "positions end early"),
    ],
)
def test_what_no_honest_peer_sends_is_refused(
    layout: CoefficientLayout, text: str, message: str
) -> None:
    """P6"""
    with pytest.raises(ValueError, match=message):
        decode(layout, bytes.fromhex(text))


def test_what_is_sent_is_nearly_as_small_as_it_can_be() -> None:
    """4 of 4096 as signs, all headers counted, on more than ten million numbers."""
    shapes = [(2560, 4096), (50_257, 8), (2048,), (1,)]
    layout = CoefficientLayout.tiled(shapes, 64, 4, "sign")
    found = drawn(layout, 1, 1.0)
    kept = sum(len(one.symbols) for one in found)
    bits = 8 * len(encode(layout, found)) / kept
    assert math.log2(math.comb(4096, 4)) / 4 + 1 < bits <= 12.2


@pytest.mark.parametrize("values", ["sign", "int8"])
def test_quantising(values: Values) -> None:
    chosen = torch.tensor([3.0, -1.0, 0.0, 0.001])
    scale, symbols = quantised("t", chosen, values)
    if values == "sign":
        assert symbols.tolist() == [1, -1, 0, 1]
        assert scale == pytest.approx(4.001 / 3, rel=2.0**-8)
    else:
        assert symbols.tolist() == [127, -42, 0, 0]
        assert scale == pytest.approx(3 / 127, rel=2.0**-8)
    for small in (torch.zeros(3), torch.full((2,), MAGNITUDE_MIN / 4), torch.zeros(0)):
        assert quantised("t", small, values)[0] == 0
        assert not quantised("t", small, values)[1].any()
    scale, symbols = quantised("t", torch.tensor([-1e30]), values)
    assert scale == MAGNITUDE_MAX
    assert symbols[0] < 0


@pytest.mark.parametrize("values", ["sign", "int8"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_run_that_diverged_sends_nothing(values: Values, bad: float) -> None:
    with pytest.raises(DivergedError, match="here"):
        quantised("here", torch.tensor([1.0, bad]), values)
