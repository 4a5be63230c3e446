"""Contributions in parts, and members to bring and to sum them, for tests of the machine."""

from dataclasses import replace

from protocol.blobs import Bits
from protocol.entries import Attachment, Entry
from protocol.events import BlobKept, WorkDone
from protocol.ids import PeerId, digest
from protocol.messages import (
    Part,
)
from protocol.parts import path_to, whole_of
from protocol.rounds import ranking
from protocol.rules import Quorum, Rules
from tests.machine.making import RUN, Door, bring, card, closed, genesis, ids

P = ids(4)
START = genesis(P)
RANKED = ranking(RUN, 0, START.roster)
FIRST, SECOND, THIRD, LAST = RANKED
RULES = Rules(attachment_bytes_max=1_000, parts_max=2)
MAJORITY = replace(RULES, quorum=Quorum.MAJORITY)
PLACE = 0, START.hash[:8]


def part(author: PeerId, number: int) -> Attachment:
    return Attachment(digest("part of a test", author, bytes([number])), 10 + number)


def parts(author: PeerId) -> tuple[Attachment, ...]:
    return part(author, 0), part(author, 1)


def named(author: PeerId, number: int) -> Part:
    return Part(*PLACE, author, number, part(author, number), path_to(parts(author), number))


def seats(*authors: PeerId) -> bytes:
    bits = Bits(4)
    for author in authors:
        seat = START.roster.seat(author)
        assert seat is not None
        bits.add(seat)
    return bits.encode()


def work(door: Door) -> WorkDone:
    whole = whole_of(parts(door.me))
    return WorkDone(0, START.hash, 7, b"8 bytes!", 1.5, None, None, whole, parts(door.me))


def contribute(door: Door, author: PeerId) -> None:
    door.hear(author, bring(START, author, whole_of(parts(author))))


def take(door: Door, author: PeerId, number: int) -> None:
    """`author` hands over a part, and the disk keeps it."""
    door.hear(author, named(author, number))
    door.peer._transfers._orders.pop(part(author, number).root)
    door.on(BlobKept(part(author, number).root, is_here=True))


def held(door: Door) -> set[PeerId]:
    return set(door.peer._closing._round.held)


def hide(door: Door, *peers: PeerId) -> None:
    """Nobody can dial these."""
    for peer in peers:
        door.peer._core.cards[peer] = card(peer, 2, ())


def entry_of(author: PeerId) -> Entry:
    return closed(START, THIRD, author, whole_of(parts(author)))
