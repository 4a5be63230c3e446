"""The payload: one encoding of each list of probes, and nothing else is accepted."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.methods.parts.probes import AGE_MAX, INDEX_MAX, PROBES_MAX, Probe, decode, encode

values = st.integers(-127, 127)
places = st.tuples(st.integers(0, AGE_MAX), st.integers(0, 40))


@st.composite
def probe_lists(draw: st.DrawFn, pool: int | None = None) -> list[Probe]:
    chosen = draw(st.dictionaries(places, values, min_size=1, max_size=60))
    choices = st.integers(0, pool - 1) if pool else st.none()
    return [
        Probe(age, index, value, draw(choices) if age else None)
        for (age, index), value in chosen.items()
    ]


@given(probe_lists())
def test_probes_survive_the_wire(probes: list[Probe]) -> None:
    assert decode(encode(probes)) == sorted(probes)


@given(probe_lists(pool=300))
def test_late_probes_of_a_pool_name_their_direction(probes: list[Probe]) -> None:
    assert decode(encode(probes, pooled=True), pool=300) == sorted(probes)


@settings(max_examples=500)
@given(st.binary(max_size=60), st.sampled_from([None, 1, 300]))
def test_any_bytes_decode_to_what_encodes_back_or_raise_value_error(
    data: bytes, pool: int | None
) -> None:
    try:
        probes = decode(data, pool)
    except ValueError:
        return
    assert encode(probes, pooled=pool is not None) == data


@settings(max_examples=500)
@given(probe_lists(), st.data())
def test_a_damaged_payload_never_raises_anything_else(
    probes: list[Probe], data: st.DataObject
) -> None:
    payload = bytearray(encode(probes))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(payload) - 1))
        payload[at] = data.draw(st.integers(0, 255))
    cut = bytes(payload[: data.draw(st.integers(0, len(payload)))])
    try:
        assert encode(decode(cut)) == cut
    except ValueError:
        return


@pytest.mark.parametrize("count", [1, 127, 128, PROBES_MAX])
def test_fresh_work_costs_three_bytes_more_than_its_probes(count: int) -> None:
    payload = encode([Probe(0, i, i % 255 - 127) for i in range(count)])
    assert len(payload) <= count + 3


def test_every_byte_survives_decoding_and_encoding() -> None:
    """All 255 values; the 256th pattern, -128, is refused."""
    for byte in range(256):
        payload = bytes([0, 1, byte])
        if byte == 0x80:
            with pytest.raises(ValueError, match="-128"):
                decode(payload)
        else:
            assert encode(decode(payload)) == payload


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\0\0",  # no probes in the segment
        b"\0\x02\x05",  # a probe short
        b"\0\x01\x05\x05",  # something behind
        b"\0\x81\x00\x05",  # a count in two bytes that fits one
        b"\1\0\1\5",  # a first index of 0
        b"\0\1\5\1\1\1\5",  # two segments that touch
        b"\2\1\5\0\1\5",  # ages out of order
        bytes([2 * (AGE_MAX + 1) & 0x7F | 0x80, 1, 1, 5]),  # too old
        b"\1\xff\x7f\2\5\5",  # an index past the end
        b"\0\xff\xff\xff\xff\1",  # a count without end
    ],
)
def test_what_is_not_canonical_is_refused(payload: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        decode(payload)


def test_too_many_probes_are_refused() -> None:
    some = encode([Probe(0, i, 1) for i in range(PROBES_MAX)])
    more = some + b"\2\1\5"
    with pytest.raises(ValueError, match="too many"):
        decode(more)
    assert INDEX_MAX > PROBES_MAX
