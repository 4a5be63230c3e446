"""The header of first-order payloads: one encoding, and nothing else is accepted."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.methods.parts.header import TOKENS_MAX, Header, decode_header
from node.training.inner import InnerReport
from node.training.inner_config import BATCHES_MAX, InnerConfig

ANY = InnerConfig(steps_max=BATCHES_MAX)


@st.composite
def headers(draw: st.DrawFn) -> Header:
    batches = draw(st.integers(1, BATCHES_MAX))
    steps = draw(st.integers(0, batches))
    return Header(steps, batches, draw(st.integers(steps, TOKENS_MAX)) if steps else 0)


@pytest.mark.parametrize(
    ("header", "golden"),
    [
        (Header(0, 1, 0), "01000100"),
        (Header(1, 1, 1), "01010101"),
        (Header(30, 120, 245760), "011e7880800f"),
        (Header(500, 16000, 2**31), "01f403807d8080808008"),
        (Header(BATCHES_MAX, BATCHES_MAX, TOKENS_MAX), "01808004808004ffffffffff7f"),
    ],
)
def test_headers_are_these_bytes(header: Header, golden: str) -> None:
    """If they change, peers of two versions no longer understand each other."""
    assert header.encode().hex() == golden
    assert decode_header(bytes.fromhex(golden), ANY) == (header, b"")


@given(headers(), st.binary(max_size=20))
def test_headers_survive_the_wire_and_leave_the_rest(header: Header, rest: bytes) -> None:
    assert decode_header(header.encode() + rest, ANY) == (header, rest)


@settings(max_examples=500)
@given(st.binary(max_size=16) | st.binary(max_size=12).map(lambda data: b"\1" + data))
def test_any_bytes_decode_to_what_encodes_back_or_raise_value_error(data: bytes) -> None:
    try:
        header, rest = decode_header(data, ANY)
    except ValueError:
        return
    assert header.encode() + rest == data


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\1",
        b"\1\1\1",  # cut short
        b"\2\1\1\1",  # another version
        b"\0\1\1\1",
        b"\1\0\0\0",  # nothing consumed
        b"\1\2\1\2",  # more steps than micro-batches
        b"\1\2\2\1",  # fewer tokens than micro-batches
        b"\1\0\1\1",  # tokens without a step
        b"\1\1\x81\0\1",  # not minimal
        b"\1\1\1\xff\xff\xff\xff\xff\xff\1",  # tokens without end
        b"\1\1\x81\x80\4\1",  # BATCHES_MAX + 1
        b"\1\1\xff\xff\xff\1\1",
    ],
)
def test_what_nobody_would_write_is_refused(payload: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        decode_header(payload, ANY)


def test_a_run_bounds_what_is_claimed() -> None:
    inner = InnerConfig(steps=10, accumulation=4)
    assert decode_header(Header(10, 40, 40).encode(), inner)[0].batches == 40
    assert decode_header(Header(9, 37, 36).encode(), inner)[0].steps == 9  # one was skipped
    for header in (Header(10, 41, 41), Header(10, 39, 40), Header(10, 40, 39)):
        with pytest.raises(ValueError, match=r"\w"):
            decode_header(header.encode(), inner)


def test_a_report_becomes_a_header() -> None:
    assert Header.of(InnerReport(3, 8, 60, 2.5, 1)) == Header(3, 8, 60)
    assert Header.of(InnerReport(1, 1, 1 << 60, None, 0)).tokens == TOKENS_MAX
