"""The golden vectors: bytes that every implementation must agree on.

`python tests/machine/vectors.py --write` makes `vectors/*.json` anew, from fixed seeds and real
keys. Do that only together with a line in the change log of protocol/README.md.
"""

import argparse
import json
from dataclasses import fields, is_dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

from protocol.anchors import anchor_places
from protocol.blobs import chunk_id, page_id, pages_of, root_of
from protocol.codec import CHUNK_BYTES, encode, encode_body, number_of
from protocol.entries import (
    Admission,
    Attachment,
    Body,
    Card,
    Cause,
    Departure,
    Entry,
    Line,
    card_bytes,
    contribution_bytes,
    entry_hash,
    leave_bytes,
    seal_bytes,
    token_bytes,
)
from protocol.events import Crew
from protocol.identity import Identity
from protocol.ids import RunId, digest, run_id
from protocol.invites import Contact, Invite, encode_invite, mint_token
from protocol.meetings import session_of, topic_of
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
from protocol.parts import path_to, whole_of
from protocol.relaying import relay_bytes
from protocol.roster import Roster
from protocol.rounds import deadline_after_ms, ranking, tree, turn_ms
from protocol.rules import Rules

FOLDER: Final = Path(__file__).resolve().parent / "vectors"
MANIFEST: Final = b"golden manifest"
RUN: Final[RunId] = run_id(MANIFEST)
KEYS: Final = sorted((Identity(bytes([n]) * 32) for n in (1, 2, 3)), key=lambda keys: keys.peer)
ONE, TWO, THREE = KEYS
ROSTER: Final = Roster([keys.peer for keys in KEYS])


def card(keys: Identity, sequence: int) -> Card:
    addresses = ("tcp://192.0.2.1:5555", "tcp://[2001:db8::1]:5555")
    signature = keys.sign(card_bytes(RUN, keys.peer, sequence, addresses))
    return Card(keys.peer, sequence, addresses, signature)


NEWCOMER: Final = Identity(bytes([4]) * 32)
TOKEN: Final = mint_token(ONE, RUN, 1_800_000_000, b"nonce678")
SNAPSHOT: Final = digest("golden snapshot")
ATTACHED: Final = Attachment(digest("golden attachment"), 300_000)
PARTS: Final = tuple(Attachment(digest("golden part", bytes([n])), 100 + n) for n in range(3))
LINES: Final = (
    Line(0, b"\x00\x01\x7f", 2.5, None),
    Line(2, b"\x00\x02\x81\x05", None, 2.25, SNAPSHOT, ATTACHED),
)
ADMISSION: Final = Admission(card(NEWCOMER, 7), TOKEN)
DEPARTURE: Final = Departure(1, Cause.LEFT, 0, TWO.sign(leave_bytes(RUN, TWO.peer, 0)))
BODY: Final = Body(
    0, digest("golden parent"), 0, 5_123, 0x0123456789ABCDEF, LINES, (ADMISSION,), (DEPARTURE,)
)


def sealed(body: Body) -> Entry:
    raw = encode_body(body)
    seal = KEYS[body.closer].sign(seal_bytes(RUN, body.round, body.parent, entry_hash(raw)))
    signatures = tuple(
        KEYS[line.seat].sign(contribution_bytes(RUN, body.round, body.parent, body.state, line))
        for line in body.lines
    )
    return Entry(body, raw, seal, signatures)


ENTRY: Final = sealed(BODY)
OTHER: Final = sealed(Body(0, BODY.parent, 0, 5_124, BODY.state, LINES, (), ()))
HEAD: Final = Head(12, 345, ENTRY.hash[:8])
RUMORS: Final = (Rumor(TWO.peer, Health.SUSPECT, 3), Rumor(THREE.peer, Health.LEFT, 0))

GATHERED: Final = digest("golden view of a meeting")[:16]
MEETING: Final = Crew((ONE.peer, TWO.peer))
TOPIC: Final = topic_of(RUN, 77, GATHERED, MEETING)
SESSION: Final = session_of(TOPIC, (7, 1))
INSIDE: Final = encode(Nack(8))
ENVELOPE: Final = Relay(
    ONE.peer,
    TWO.peer,
    7,
    1,
    INSIDE,
    ONE.sign(relay_bytes(RUN, ONE.peer, TWO.peer, 7, 1, INSIDE)),
)


def messages() -> list[Message]:
    tip = ENTRY.hash[:8]
    line = LINES[1]
    rest = line.loss, line.heldout, line.snapshot, line.attached
    signed = contribution_bytes(RUN, 0, BODY.parent, BODY.state, line)
    return [
        Hello(card(NEWCOMER, 7), TOKEN),
        Welcome(MANIFEST, (card(ONE, 1), card(TWO, 2)), HEAD),
        Refused("the invite has expired"),
        Join(card(TWO, 3), None),
        Leave(TWO.peer, 9, TWO.sign(leave_bytes(RUN, TWO.peer, 9))),
        Ping(4_000_000_000, HEAD, RUMORS),
        Ack(7, HEAD, ()),
        PingRequest(8, THREE.peer, RUMORS[:1]),
        Nack(8),
        Sync(digest("golden view")[:8], HEAD),
        View(RUMORS, (card(THREE, 300),), wants_reply=True),
        Contribute(0, BODY.parent[:8], BODY.state, line.payload, *rest, THREE.sign(signed)),
        Prepare(12, tip, 5),
        Promise(12, tip, 5, 2, ENTRY),
        Propose(5, ENTRY),
        Accepted(12, 5, ENTRY.hash),
        Commit(12, 5, ENTRY.hash),
        Closed(ENTRY),
        EntriesRequest((Locator(12, ENTRY.hash), Locator(0, digest("golden start")))),
        Entries((ENTRY, OTHER), HEAD),
        Evidence(ONE.peer, 0, BODY.parent, ENTRY.hash, ENTRY.seal, OTHER.hash, OTHER.seal),
        BlobRequest(SNAPSHOT),
        BlobOffer(SNAPSHOT, 300_000, (digest("golden page"),), b"\x01"),
        PieceRequest(SNAPSHOT, Level.CHUNK, (0, 1)),
        Piece(SNAPSHOT, Level.PAGE, 0, b"names"),
        PieceRefused(SNAPSHOT, Level.CHUNK, (1,), 250),
        MendRequest(12, ENTRY.hash, b"8 bytes!"),
        Mend(12, ENTRY.hash, 1, ((0, b"a chunk"),)),
        Introduce(card(NEWCOMER, 7), TOKEN),
        ENVELOPE,
        Unrelayed(TWO.peer, Why.OVER_CAP),
        DialBack(9),
        DialledBack(9, (Way("tcp://192.0.2.1:5555", 41), Way("tcp://[2001:db8::1]:5555", None))),
        Echo(10, 3, b"\x00\x00"),
        Echoed(10, 1_800_000_000_123, b"\x00\x00\x00"),
        Part(12, tip, THREE.peer, 1, PARTS[1], path_to(PARTS, 1)),
        PartsHeld(12, tip, 1, b"\x05"),
        PartRequest(12, tip, 1),
        SumRequest(ENTRY.hash, (0, 2)),
        Sum(ENTRY.hash, 2, Attachment(digest("golden sum"), 100_000)),
        Meet(TOPIC, 77, GATHERED, 7, wants_reply=True),
        NotMeeting(TOPIC, 78, Absence.PAST),
        StretchRequest(SESSION, 3, (0, 1)),
        StretchFrame(SESSION, 3, 1, 2, b"of an offer"),
        Ready(SESSION, b"\x0f"),
        Verdict(SESSION, b"\x05", is_final=True),
        Counted(SESSION, b"\x04"),
        ModelRequest(11),
        ModelHeld(11, ATTACHED, 614_400, 77, 1.25),
    ]


def plain(value: object) -> object:
    """As JSON shows it: bytes in hexadecimal."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, IntEnum):
        return value.name
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return value


def vectors() -> dict[str, object]:
    """File name -> what it holds."""
    made: dict[str, object] = {}
    for message in messages():
        name, number = type(message).__name__, number_of(type(message))
        made[f"{number:02}-{name}"] = {
            "kind": name,
            "number": number,
            "frame": encode(message).hex(),
            "fields": plain(message),
        }
    made["hashes"] = hashes()
    made["rounds"] = rounds()
    made["invite"] = invite()
    return made


def hashes() -> object:
    line = LINES[0]
    signed = card(NEWCOMER, 7)
    roster = ROSTER.after(BODY)
    return {
        "digest": {
            "purpose": "golden",
            "parts": ["", "00", "0102"],
            "hash": digest("golden", b"", b"\x00", b"\x01\x02").hex(),
        },
        "seeds": {str(n): Identity(bytes([n]) * 32).peer.hex() for n in (1, 2, 3, 4)},
        "run": {"manifest": MANIFEST.hex(), "id": RUN.hex()},
        "entry": {"raw": ENTRY.raw.hex(), "hash": ENTRY.hash.hex()},
        "roster": {
            "members": plain(ROSTER.members),
            "hash": ROSTER.hash.hex(),
            "after_entry": {
                "members": plain(roster.members),
                "alumni": plain(roster.alumni),
                "banned": plain(roster.banned),
                "newcomers": plain(roster.newcomers),
                "hash": roster.hash.hex(),
            },
        },
        "blob": blob(),
        "parts": {
            "parts": plain(PARTS),
            "whole": plain(whole_of(PARTS)),
            "paths": [plain(path_to(PARTS, number)) for number in range(3)],
        },
        "signed": {
            "card": card_bytes(RUN, signed.peer, signed.sequence, signed.addresses).hex(),
            "token": token_bytes(RUN, TOKEN.minter, TOKEN.expires_s, TOKEN.nonce).hex(),
            "seal": seal_bytes(RUN, 0, BODY.parent, ENTRY.hash).hex(),
            "leave": leave_bytes(RUN, TWO.peer, 9).hex(),
            "contribution": contribution_bytes(RUN, 0, BODY.parent, BODY.state, line).hex(),
            "meeting": TOPIC.hex(),
            "session": SESSION.hex(),
            "relay": relay_bytes(RUN, ONE.peer, TWO.peer, 7, 1, INSIDE).hex(),
        },
    }


def blob() -> object:
    """Two chunks, the second of 5 bytes."""
    data = bytes(n % 251 for n in range(CHUNK_BYTES + 5))
    names = chunk_id(data[:CHUNK_BYTES]), chunk_id(data[CHUNK_BYTES:])
    (page,) = pages_of(b"".join(names))
    return {
        "bytes": "byte n is n % 251",
        "size": len(data),
        "chunks": plain(names),
        "page": page_id(page).hex(),
        "root": root_of(len(data), page).hex(),
    }


def rounds() -> object:
    rules = Rules()
    arrivals = [5_100, 5_200, 5_050, 5_900, 5_150, 5_175, 9_000, 5_120]
    ranked = ranking(RUN, 12, ROSTER)
    return {
        "anchor_places": {
            keys.peer.hex(): plain(anchor_places(RUN, keys.peer)) for keys in (*KEYS, NEWCOMER)
        },
        "ranking": {str(n): plain(ranking(RUN, n, ROSTER)) for n in range(4)},
        "tree": {
            "round": 12,
            "root": TWO.peer.hex(),
            "order": plain(tuple(tree(ranked, TWO.peer))),
        },
        "deadline_ms": {"arrivals": arrivals, "after": deadline_after_ms(arrivals, rules)},
        "turns_ms": {"deadline": 5_500, "turns": [turn_ms(b, 5_500, rules) for b in range(20)]},
    }


def invite() -> object:
    contacts = (
        Contact(ONE.peer, ("tcp://192.0.2.1:5555",)),
        Contact(TWO.peer, ("tcp://[2001:db8::1]:5555", "tcp://peer.example.org:5555")),
    )
    made = Invite(RUN, bytes(range(32)), contacts, TOKEN)
    return {"text": encode_invite(made), "fields": plain(made)}


def render(value: object) -> str:
    return json.dumps(value, indent=1) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="make the files anew")
    if not parser.parse_args().write:
        parser.print_help()
        return 2
    FOLDER.mkdir(exist_ok=True)
    for name, value in vectors().items():
        (FOLDER / f"{name}.json").write_text(render(value))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
