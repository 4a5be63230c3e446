"""Bytes <-> messages.

A frame is a version byte, a kind byte, and a msgpack list of the message's fields. Decoding is
strict: an unknown version or kind, a frame over its kind's cap, a field out of bounds, or a byte
too many is a `RemoteError`.
"""

from typing import Any, Final

import msgpack

from protocol.entries import (
    ATTACHMENT,
    BODY,
    CARD,
    ENTRY_BYTES_MAX,
    HASH,
    PEER,
    ROUND,
    SIGNATURE,
    TOKEN,
    U32,
    U64,
    Body,
    Entry,
)
from protocol.errors import RemoteError
from protocol.ids import TIP_BYTES
from protocol.messages import (
    Absence,
    Accepted,
    Ack,
    BlobOffer,
    BlobRequest,
    Closed,
    Commit,
    Contribute,
    Counted,
    DialBack,
    DialledBack,
    Echo,
    Echoed,
    Entries,
    EntriesRequest,
    Evidence,
    Head,
    Health,
    Hello,
    Introduce,
    Join,
    Leave,
    Level,
    Locator,
    Meet,
    Mend,
    MendRequest,
    Message,
    ModelHeld,
    ModelRequest,
    Nack,
    NotMeeting,
    Part,
    PartRequest,
    PartsHeld,
    Piece,
    PieceRefused,
    PieceRequest,
    Ping,
    PingRequest,
    Prepare,
    Promise,
    Propose,
    Ready,
    Refused,
    Relay,
    Rumor,
    StretchFrame,
    StretchRequest,
    Sum,
    SumRequest,
    Sync,
    Unrelayed,
    Verdict,
    View,
    Way,
    Welcome,
    Why,
)
from protocol.wire import (
    FLAG,
    SCALAR,
    Field,
    blob,
    converted,
    many,
    optional,
    pair,
    record,
    text,
    uint,
)

VERSION: Final = 1
FRAME_BYTES_MAX: Final = 4 << 20
GUEST_FRAME_BYTES_MAX: Final = 4_096
MANIFEST_BYTES_MAX: Final = 256 << 10
RUMORS_MAX: Final = 16
ENTRIES_MAX: Final = 512
VIEW_RUMORS_MAX: Final = 4_096
VIEW_CARDS_MAX: Final = 512
CHUNK_BYTES: Final = 256 << 10
PAGES_MAX: Final = 8_192
MAP_BYTES_MAX: Final = 2 << 20
PIECES_MAX: Final = 64
CHECKS_BYTES_MAX: Final = 3 << 20
MENDED_MAX: Final = 8
RELAYED_BYTES_MAX: Final = 256 << 10
FILLER_BYTES_MAX: Final = 64 << 10
PARTS_MAX: Final = 1_024
PATH_MAX: Final = 10  # hashes, for so many parts
SEATS_BYTES_MAX: Final = 8_192
STRETCHES_MAX: Final = 65_536
STRETCH_FRAMES_MAX: Final = 4_096
FRAMES_ASKED_MAX: Final = 64
VIEW_BYTES: Final = 16


def unpack(raw: bytes) -> Any:  # noqa: ANN401 - whatever msgpack finds
    """What `raw` holds: exactly one value, no maps, no extensions. Raises RemoteError."""
    try:
        return msgpack.unpackb(
            raw, raw=False, use_list=False, strict_map_key=True, max_map_len=0, max_ext_len=0
        )
    except Exception as error:  # msgpack raises many kinds; each means bad bytes
        raise RemoteError(f"not msgpack: {type(error).__name__}") from error


def encode_body(body: Body) -> bytes:
    """The bytes that an entry's hash is of."""
    return bytes(msgpack.packb(BODY.write(body)))


def decode_body(raw: bytes) -> Body:
    return BODY.read(unpack(raw))


def _read_entry(raw: Any) -> Entry:  # noqa: ANN401
    if type(raw) is not tuple or len(raw) != 3:
        raise RemoteError("expected the 3 fields of Entry")
    body_raw: bytes = _BODY_RAW.read(raw[0])
    body = decode_body(body_raw)
    signatures = _SIGNATURES.read(raw[2])
    if len(signatures) != len(body.lines):
        raise RemoteError(f"{len(body.lines)} lines with {len(signatures)} signatures")
    return Entry(body, body_raw, SIGNATURE.read(raw[1]), signatures)


_BODY_RAW: Final[Field[bytes]] = blob(1, ENTRY_BYTES_MAX)
_SIGNATURES: Final = many(SIGNATURE, 65_536)
ENTRY: Final[Field[Entry]] = Field(
    lambda entry: [entry.raw, entry.seal, list(entry.signatures)], _read_entry
)
_TIP: Final[Field[bytes]] = blob(TIP_BYTES, TIP_BYTES)
_HEALTH: Final[Field[Health]] = converted(uint(255), Health, int)
_BALLOT: Final = uint(U32)
_SEQUENCE: Final = uint(U32)
_HEAD: Final = record(Head, ROUND, uint(U64), _TIP)
_RUMOR: Final = record(Rumor, PEER, _HEALTH, uint(U32))
_RUMORS: Final = many(_RUMOR, RUMORS_MAX)
_TOKEN: Final = optional(TOKEN)
_SIZE: Final = uint(U64)
_NUMBER: Final = uint(U32)
_LEVEL: Final[Field[Level]] = converted(uint(255), Level, int)
_MENDED: Final[Field[tuple[int, bytes]]] = pair(_NUMBER, blob(1, CHUNK_BYTES))

_WAY: Final = record(Way, text(256), optional(uint(U32)))
_WHY: Final[Field[Why]] = converted(uint(255), Why, int)
_PART: Final = uint(PARTS_MAX - 1)
_VIEW: Final[Field[bytes]] = blob(VIEW_BYTES, VIEW_BYTES)
_ABSENCE: Final[Field[Absence]] = converted(uint(255), Absence, int)
_STRETCH: Final = uint(STRETCHES_MAX - 1)
_STRETCHES: Final[Field[bytes]] = blob(1, STRETCHES_MAX // 8)
_FRAME: Final = uint(STRETCH_FRAMES_MAX - 1)
_FILLER: Final[Field[bytes]] = blob(0, FILLER_BYTES_MAX)

# The table of kinds. A number, once given, keeps its meaning for as long as VERSION stays.
_KINDS: Final[dict[int, tuple[type, Field[Any]]]] = {
    1: (Hello, record(Hello, CARD, _TOKEN)),
    2: (Welcome, record(Welcome, blob(1, MANIFEST_BYTES_MAX), many(CARD, 64), _HEAD)),
    3: (Refused, record(Refused, text(200))),
    4: (Join, record(Join, CARD, _TOKEN)),
    5: (Leave, record(Leave, PEER, ROUND, SIGNATURE)),
    6: (Ping, record(Ping, _SEQUENCE, _HEAD, _RUMORS)),
    7: (Ack, record(Ack, _SEQUENCE, _HEAD, _RUMORS)),
    8: (PingRequest, record(PingRequest, _SEQUENCE, PEER, _RUMORS)),
    9: (Nack, record(Nack, _SEQUENCE)),
    10: (Sync, record(Sync, _TIP, _HEAD)),
    11: (View, record(View, many(_RUMOR, VIEW_RUMORS_MAX), many(CARD, VIEW_CARDS_MAX), FLAG)),
    12: (
        Contribute,
        record(
            Contribute,
            ROUND,
            _TIP,
            uint(U64),
            blob(1, 1 << 20),
            SCALAR,
            SCALAR,
            optional(HASH),
            optional(ATTACHMENT),
            SIGNATURE,
        ),
    ),
    13: (Prepare, record(Prepare, ROUND, _TIP, _BALLOT)),
    14: (Promise, record(Promise, ROUND, _TIP, _BALLOT, _BALLOT, optional(ENTRY))),
    15: (Propose, record(Propose, _BALLOT, ENTRY)),
    16: (Accepted, record(Accepted, ROUND, _BALLOT, HASH)),
    17: (Commit, record(Commit, ROUND, _BALLOT, HASH)),
    18: (Closed, record(Closed, ENTRY)),
    19: (EntriesRequest, record(EntriesRequest, many(record(Locator, ROUND, HASH), 256))),
    20: (Entries, record(Entries, many(ENTRY, ENTRIES_MAX), _HEAD)),
    21: (Evidence, record(Evidence, PEER, ROUND, HASH, HASH, SIGNATURE, HASH, SIGNATURE)),
    22: (BlobRequest, record(BlobRequest, HASH)),
    23: (
        BlobOffer,
        record(BlobOffer, HASH, _SIZE, many(HASH, PAGES_MAX), optional(blob(0, MAP_BYTES_MAX))),
    ),
    24: (PieceRequest, record(PieceRequest, HASH, _LEVEL, many(_NUMBER, PIECES_MAX))),
    25: (Piece, record(Piece, HASH, _LEVEL, _NUMBER, blob(1, CHUNK_BYTES))),
    26: (PieceRefused, record(PieceRefused, HASH, _LEVEL, many(_NUMBER, PIECES_MAX), uint(60_000))),
    27: (MendRequest, record(MendRequest, ROUND, HASH, blob(8, CHECKS_BYTES_MAX))),
    28: (Mend, record(Mend, ROUND, HASH, uint(U32), many(_MENDED, MENDED_MAX))),
    29: (Introduce, record(Introduce, CARD, _TOKEN)),
    34: (
        Relay,
        record(Relay, PEER, PEER, uint(U64), uint(U64), blob(3, RELAYED_BYTES_MAX), SIGNATURE),
    ),
    35: (Unrelayed, record(Unrelayed, PEER, _WHY)),
    36: (DialBack, record(DialBack, _SEQUENCE)),
    37: (DialledBack, record(DialledBack, _SEQUENCE, many(_WAY, 8))),
    38: (Echo, record(Echo, _SEQUENCE, uint(FILLER_BYTES_MAX), _FILLER)),
    39: (Echoed, record(Echoed, _SEQUENCE, uint(U64), _FILLER)),
    40: (Part, record(Part, ROUND, _TIP, PEER, _PART, ATTACHMENT, many(HASH, PATH_MAX))),
    41: (PartsHeld, record(PartsHeld, ROUND, _TIP, _PART, blob(1, SEATS_BYTES_MAX))),
    42: (PartRequest, record(PartRequest, ROUND, _TIP, _PART)),
    43: (SumRequest, record(SumRequest, HASH, many(_PART, PARTS_MAX))),
    44: (Sum, record(Sum, HASH, _PART, ATTACHMENT)),
    48: (Meet, record(Meet, HASH, ROUND, _VIEW, uint(U64), FLAG)),
    49: (NotMeeting, record(NotMeeting, HASH, ROUND, _ABSENCE)),
    50: (StretchRequest, record(StretchRequest, HASH, _STRETCH, many(_FRAME, FRAMES_ASKED_MAX))),
    51: (
        StretchFrame,
        record(
            StretchFrame,
            HASH,
            _STRETCH,
            _FRAME,
            uint(STRETCH_FRAMES_MAX),
            blob(1, CHUNK_BYTES),
        ),
    ),
    52: (Ready, record(Ready, HASH, _STRETCHES)),
    53: (Verdict, record(Verdict, HASH, blob(0, STRETCHES_MAX // 8), FLAG)),
    54: (Counted, record(Counted, HASH, _STRETCHES)),
    55: (ModelRequest, record(ModelRequest, _SEQUENCE)),
    56: (ModelHeld, record(ModelHeld, _SEQUENCE, optional(ATTACHMENT), uint(U64), ROUND, SCALAR)),
}
_NUMBERS: Final = {cls: number for number, (cls, _) in _KINDS.items()}


def encode(message: Message) -> bytes:
    """The frame of a message."""
    number = _NUMBERS[type(message)]
    return bytes((VERSION, number)) + bytes(msgpack.packb(_KINDS[number][1].write(message)))


def number_of(kind: type) -> int:
    """The byte that stands for a kind of message."""
    return _NUMBERS[kind]


def kind_of(frame: bytes) -> type:
    """What class of message `encode` made this frame from."""
    return _KINDS[frame[1]][0]


def decode(frame: bytes) -> Message:
    """The message in a frame. Raises RemoteError for anything that is not exactly one."""
    if len(frame) > FRAME_BYTES_MAX:
        raise RemoteError(f"a frame of {len(frame)} bytes")
    if len(frame) < 3:
        raise RemoteError("frame cut short")
    if frame[0] != VERSION:
        raise RemoteError(f"protocol version {frame[0]}, this peer speaks {VERSION}")
    kind = _KINDS.get(frame[1])
    if kind is None:
        raise RemoteError(f"unknown kind of message {frame[1]}")
    message: Message = kind[1].read(unpack(frame[2:]))
    return message


def encode_entry(entry: Entry) -> bytes:
    """An entry as it is kept on disk."""
    return bytes(msgpack.packb(ENTRY.write(entry)))


def decode_entry(raw: bytes) -> Entry:
    return ENTRY.read(unpack(raw))


def encode_card_list(cards: tuple[Any, ...]) -> bytes:
    return bytes(msgpack.packb(many(CARD, 65_536).write(cards)))


def decode_card_list(raw: bytes) -> tuple[Any, ...]:
    return many(CARD, 65_536).read(unpack(raw))


def encode_attachments(attached: tuple[Any, ...]) -> bytes:
    return bytes(msgpack.packb(many(ATTACHMENT, PARTS_MAX).write(attached)))


def decode_attachments(raw: bytes) -> tuple[Any, ...]:
    return many(ATTACHMENT, PARTS_MAX).read(unpack(raw))
