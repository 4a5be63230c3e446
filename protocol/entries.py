"""What a closed round is, and what the signatures in it cover.

An entry's *body* is hashed, and the next entry names that hash: a chain from the manifest on.
Signatures stand beside the body, so that the chain can be checked, and kept as a file, without
them.
"""

from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Final

from protocol.ids import ID_BYTES, SIGNATURE_BYTES, Hash, PeerId, RunId, digest
from protocol.wire import SCALAR, Field, blob, converted, many, optional, record, text, uint

U32: Final = (1 << 32) - 1
U64: Final = (1 << 64) - 1
ROUND: Final = uint((1 << 48) - 1)
PEER: Final[Field[PeerId]] = blob(ID_BYTES, ID_BYTES)
HASH: Final[Field[Hash]] = blob(ID_BYTES, ID_BYTES)
SIGNATURE: Final[Field[bytes]] = blob(SIGNATURE_BYTES, SIGNATURE_BYTES)
SEAT: Final = uint(65_535)
ENTRY_BYTES_MAX: Final = 2 << 20
ADDRESSES_MAX: Final = 8
ADDRESS: Final = text(256)


@dataclass(frozen=True, slots=True)
class Card:
    """Where a peer says that it can be reached; the newest sequence number wins."""

    peer: PeerId
    sequence: int
    addresses: tuple[str, ...]  # empty: cannot be dialled, dials others itself
    signature: bytes


@dataclass(frozen=True, slots=True)
class Token:
    """The right to join until a date, signed by the member that minted it."""

    minter: PeerId
    expires_s: int  # Unix time
    nonce: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Admission:
    """A peer that joins with the next round. No token: it was a member before."""

    card: Card
    token: Token | None


class Cause(IntEnum):
    """Why a member is no longer one."""

    LEFT = 0  # said so; the proof is its signature
    DEAD = 1  # the closer could not reach it, nor could others for it
    EQUIVOCATED = 2  # signed two entries for one round; the proof is both


@dataclass(frozen=True, slots=True)
class Departure:
    seat: int
    cause: Cause
    round: int  # LEFT: the first round it wants no part in; EQUIVOCATED: the round it signed twice
    proof: bytes


@dataclass(frozen=True, slots=True)
class Attachment:
    """A part of a contribution that is too large for the ledger, by name: a blob."""

    root: Hash
    size: int  # in bytes, at least 1


@dataclass(frozen=True, slots=True)
class Line:
    """One contribution within an entry."""

    seat: int  # the author's place among the round's members, sorted by id
    payload: bytes
    loss: float | None  # mean training loss, as the author measured it
    heldout: float | None  # held-out loss at the round's start, if the author measured it
    snapshot: Hash | None = None  # root of the author's last snapshot, when it is time to say so
    attached: Attachment | None = None


@dataclass(frozen=True, slots=True)
class Body:
    """The hashed part of an entry."""

    round: int
    parent: Hash  # the entry before; the run id for round 0
    closer: int  # a seat
    took_ms: int  # from the round's opening to its closing, on the closer's clock
    state: int  # the state digest that every contribution listed was computed on
    lines: tuple[Line, ...]  # by seat, ascending, at least one
    admissions: tuple[Admission, ...]
    departures: tuple[Departure, ...]

    @property
    def attachments(self) -> tuple[Attachment, ...]:
        """Those of its lines, by seat."""
        return tuple(line.attached for line in self.lines if line.attached is not None)


CARD: Final = record(Card, PEER, uint(U64), many(ADDRESS, ADDRESSES_MAX), SIGNATURE)
TOKEN: Final = record(Token, PEER, uint(U64), blob(8, 8), SIGNATURE)
_CAUSE: Final[Field[Cause]] = converted(uint(255), Cause, int)
ATTACHMENT: Final = record(Attachment, HASH, uint(U64))
_LINE: Final = record(
    Line, SEAT, blob(1, 1 << 20), SCALAR, SCALAR, optional(HASH), optional(ATTACHMENT)
)
_ADMISSION: Final = record(
    Admission,
    CARD,
    optional(TOKEN),
)
_DEPARTURE: Final = record(Departure, SEAT, _CAUSE, ROUND, blob(0, 256))
BODY: Final = record(
    Body,
    ROUND,
    HASH,
    SEAT,
    uint(U32),
    uint(U64),
    many(_LINE, 65_536),
    many(_ADMISSION, 4_096),
    many(_DEPARTURE, 65_536),
)


@dataclass(frozen=True)
class Entry:
    """A closed round, sealed by its closer.

    `body` is what `raw` says; both are kept, because the hash is of the bytes as they came.
    """

    body: Body
    raw: bytes
    seal: bytes
    signatures: tuple[bytes, ...]  # one for each line

    @cached_property
    def hash(self) -> Hash:
        return entry_hash(self.raw)

    @property
    def round(self) -> int:
        return self.body.round


def entry_hash(raw: bytes) -> Hash:
    return digest("entry", raw)


def card_bytes(run: RunId, peer: PeerId, sequence: int, addresses: tuple[str, ...]) -> bytes:
    """What a card's signature covers."""
    parts = [address.encode() for address in addresses]
    return digest("card", run, peer, sequence.to_bytes(8, "big"), *parts)


def token_bytes(run: RunId, minter: PeerId, expires_s: int, nonce: bytes) -> bytes:
    """What a token's signature covers."""
    return digest("token", run, minter, expires_s.to_bytes(8, "big"), nonce)


def seal_bytes(run: RunId, round: int, parent: Hash, entry: Hash) -> bytes:
    """What a closer's seal covers: enough to prove, without the entries, that it sealed two for one
    round.
    """
    return digest("seal", run, round.to_bytes(8, "big"), parent, entry)


def leave_bytes(run: RunId, peer: PeerId, round: int) -> bytes:
    """What a leaver's notice covers."""
    return digest("leave", run, peer, round.to_bytes(8, "big"))


def contribution_bytes(run: RunId, round: int, parent: Hash, state: int, line: Line) -> bytes:
    """What an author's signature covers: everything but its seat, which follows from who it is."""
    scalars = [SCALAR.write(value) or b"" for value in (line.loss, line.heldout)]
    numbers = round.to_bytes(8, "big"), state.to_bytes(8, "big")
    named, beside = line.snapshot or b"", b""
    if line.attached is not None:
        beside = line.attached.root + line.attached.size.to_bytes(8, "big")
    return digest("contribution", run, parent, *numbers, line.payload, *scalars, named, beside)
