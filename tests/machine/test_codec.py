"""Bytes and messages: what is written is read, and all else is refused by name (P6)."""

import math
import struct

import hypothesis.strategies as st
import msgpack
import pytest
from hypothesis import given, settings

from protocol import codec
from protocol.codec import decode, decode_entry, encode, encode_entry
from protocol.entries import ENTRY_BYTES_MAX, Entry
from protocol.errors import RemoteError
from protocol.messages import (
    Accepted,
    Closed,
    EntriesRequest,
    Head,
    Health,
    Locator,
    Message,
    Nack,
    Ping,
    Promise,
    Refused,
    Rumor,
    View,
)
from tests.machine.drawing import KINDS, any_message, entries, messages
from tests.machine.making import card, contribution, entry, genesis, ids

P = ids(3)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_comes_back_as_it_was(kind: type) -> None:
    @given(messages[kind])
    @settings(max_examples=30)
    def check(message: Message) -> None:
        frame = encode(message)
        assert decode(frame) == message
        assert encode(decode(frame)) == frame

    check()


def test_every_kind_has_one_number() -> None:
    numbers = [encode_number(kind) for kind in KINDS]
    assert numbers == sorted(set(numbers))


def encode_number(kind: type) -> int:
    return codec._NUMBERS[kind]


@given(entries)
@settings(max_examples=50)
def test_an_entry_keeps_its_hash_on_disk(made: Entry) -> None:
    assert decode_entry(encode_entry(made)).hash == made.hash


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_arbitrary_bytes_are_refused_by_name(data: bytes) -> None:
    for frame in (data, b"\x01" + data, *(bytes((1, number)) + data for number in range(45))):
        decode_or_refuse(frame)


@given(any_message, st.data())
@settings(max_examples=300)
def test_altered_frames_are_read_or_refused_by_name(message: Message, data: st.DataObject) -> None:
    frame = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(frame) - 1))
        match data.draw(st.integers(0, 2)):
            case 0:
                frame[at] = data.draw(st.integers(0, 255))
            case 1:
                del frame[at:]
            case _:
                frame[at:at] = data.draw(st.binary(max_size=8))
        if not frame:
            break
    decode_or_refuse(bytes(frame))


def decode_or_refuse(frame: bytes) -> None:
    try:
        message = decode(frame)
    except RemoteError:
        return
    assert decode(encode(message)) == message


@given(any_message)
@settings(max_examples=100)
def test_a_byte_too_many_or_too_few_is_refused(message: Message) -> None:
    frame = encode(message)
    for bad in (frame + b"\x00", frame[:-1], frame[:2], frame[:1], b""):
        with pytest.raises(RemoteError):
            decode(bad)


def raw(number: int, *values: object) -> bytes:
    return bytes((1, number)) + bytes(msgpack.packb(list(values)))


HEAD = [0, 0, bytes(8)]
ID, SIGNATURE = bytes(32), bytes(64)
BODY = [0, ID, 0, 0, 0, [], [], []]
PLACE = (0, bytes(8), 0)
INFINITE = struct.pack(">f", math.inf)
NOTHING = (None, None, None, None)


def packed(value: object) -> bytes:
    return bytes(msgpack.packb(value))


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        (b"\x02\x09\x91\x01", "protocol version 2"),
        (b"\x01\x00\x91\x01", "unknown kind"),
        (b"\x01\xff\x91\x01", "unknown kind"),
        (bytes(codec.FRAME_BYTES_MAX + 1), "a frame of"),
        (raw(9, -1), "whole number"),
        (raw(9, 1 << 32), "whole number"),
        (raw(9, True), "whole number"),
        (raw(9, 1.0), "whole number"),
        (raw(9, "1"), "whole number"),
        (raw(9), "fields of Nack"),
        (raw(9, 1, 1), "fields of Nack"),
        (b"\x01\x09\x81\x01\x01", "not msgpack"),
        (b"\x01\x09\xc1", "not msgpack"),
        (b"\x01\x09" + b"\x91" * 5_000 + b"\x01", "not msgpack"),
        (b"\x01\x09\x91\xd4\x01\x01", "not msgpack"),
        (raw(3, "a" * 201), "printable"),
        (raw(3, "\x1b[31m"), "printable"),
        (raw(3, "two\nlines"), "printable"),
        (b"\x01\x03\x91\xa2\xff\xfe", "not msgpack"),
        (raw(6, 0, [1 << 48, 0, bytes(8)], []), "whole number"),
        (raw(6, 0, HEAD, [[ID, 0, 0]] * 17), "at most 16"),
        (raw(6, 0, HEAD, [[ID, 4, 0]]), "Health"),
        (raw(6, 0, HEAD, [[bytes(31), 0, 0]]), "32 to 32 bytes"),
        (raw(11, [[ID, 0, 0]] * (codec.VIEW_RUMORS_MAX + 1), [], False), "at most"),
        (raw(11, [], [[ID, 0, [], SIGNATURE]] * (codec.VIEW_CARDS_MAX + 1), False), "at most"),
        (raw(11, [], [[ID, 0, ["a"] * 9, SIGNATURE]], False), "at most 8"),
        (raw(11, [], [[ID, 0, ["a" * 257], SIGNATURE]], False), "at most 256"),
        (raw(11, [], [], 1), "true or false"),
        (raw(12, *PLACE, b"", *NOTHING, SIGNATURE), "1 to"),
        (raw(12, *PLACE, bytes((1 << 20) + 1), *NOTHING, SIGNATURE), "1 to"),
        (raw(12, *PLACE, b"p", struct.pack(">f", math.nan), *NOTHING[1:], SIGNATURE), "finite"),
        (raw(12, *PLACE, b"p", None, INFINITE, None, None, SIGNATURE), "finite"),
        (raw(12, *PLACE, b"p", 1.5, *NOTHING[1:], SIGNATURE), "4 bytes"),
        (raw(12, *PLACE, b"p", None, None, bytes(31), None, SIGNATURE), "32 to 32 bytes"),
        (raw(12, *PLACE, b"p", *NOTHING[1:], [bytes(31), 1], SIGNATURE), "32 to 32 bytes"),
        (raw(12, *PLACE, b"p", *NOTHING[1:], [ID, -1], SIGNATURE), "whole number"),
        (raw(18, [packed(BODY), SIGNATURE, [SIGNATURE]]), "0 lines with 1 signatures"),
        (raw(18, [packed(BODY) + b"\x00", SIGNATURE, []]), "not msgpack"),
        (raw(18, [packed([*BODY[:7], [[0, 3, 0, b""]]]), SIGNATURE, []]), "Cause"),
        (raw(18, [bytes(ENTRY_BYTES_MAX + 1), SIGNATURE, []]), "1 to"),
        (raw(19, [[0, ID]] * 257), "at most 256"),
        (raw(20, [[packed(BODY), SIGNATURE, []]] * 513, HEAD), "at most 512"),
        (raw(2, b"", [], HEAD), "1 to"),
        (raw(23, ID, 1, [ID] * (codec.PAGES_MAX + 1), None), "at most"),
        (raw(23, ID, 1, [], bytes(codec.MAP_BYTES_MAX + 1)), "0 to"),
        (raw(24, ID, 2, [0]), "Level"),
        (raw(24, ID, 0, [0] * (codec.PIECES_MAX + 1)), "at most"),
        (raw(25, ID, 0, 0, bytes(codec.CHUNK_BYTES + 1)), "1 to"),
        (raw(26, ID, 0, [0], 60_001), "whole number"),
        (raw(27, 0, ID, bytes(codec.CHECKS_BYTES_MAX + 1)), "8 to"),
        (raw(28, 0, ID, 1, [[0]]), "pair"),
        (raw(28, 0, ID, 1, [[0, b"a"]] * (codec.MENDED_MAX + 1)), "at most"),
        (raw(40, *PLACE[:2], ID, codec.PARTS_MAX, [ID, 1], []), "whole number"),
        (raw(40, *PLACE[:2], ID, 0, [ID, 1], [ID] * (codec.PATH_MAX + 1)), "at most"),
        (raw(41, *PLACE[:2], 0, bytes(codec.SEATS_BYTES_MAX + 1)), "1 to"),
        (raw(43, ID, [0] * (codec.PARTS_MAX + 1)), "at most"),
        (raw(44, ID, codec.PARTS_MAX, [ID, 1]), "whole number"),
        (raw(2, bytes((256 << 10) + 1), [], HEAD), "1 to"),
    ],
)
def test_what_is_out_of_bounds_is_refused(frame: bytes, why: str) -> None:
    """P6: every length, count and number has its bound."""
    with pytest.raises(RemoteError, match=why):
        decode(frame)


def test_the_largest_of_everything_fits_a_frame() -> None:
    """What our own rules let a peer send, its neighbours must accept (P4)."""
    rumor = Rumor(P[0], Health.DEAD, (1 << 32) - 1)
    wordy = card(P[0], (1 << 64) - 1, ("a" * 256,) * 8)
    view = View((rumor,) * codec.VIEW_RUMORS_MAX, (wordy,) * codec.VIEW_CARDS_MAX, wants_reply=True)
    locators = EntriesRequest((Locator((1 << 48) - 1, P[0]),) * 256)  # type: ignore[arg-type]
    for message in (view, locators, Refused("a" * 200), Nack((1 << 32) - 1)):
        assert decode(encode(message)) == message


@pytest.mark.parametrize(
    ("message", "size"),
    [
        (Nack(1), 4),
        (Ping(1_000_000, Head(1_000, 100_000, bytes(8)), ()), 28),
        (Accepted(1_000, 1, P[0]), 41),  # type: ignore[arg-type]
        (contribution(genesis(P), P[0]), 100),
        (Closed(entry(genesis(P), P[0], P)), 378),
        (Promise(1_000, bytes(8), 1, 0, None), 19),
    ],
)
def test_sizes_on_the_wire(message: Message, size: int) -> None:
    """Known, so that growth is noticed (P8)."""
    assert len(encode(message)) == size
