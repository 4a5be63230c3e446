"""Throws bytes and events at peers in the middle of their lives, and fails on any exception (P6).

    python tests/machine/fuzz.py --cases 1000000 --seed 1

A small simulated swarm is at work. Between its own messages its peers hear frames that are random,
altered, replayed from anybody, or well made by a member with bad intentions (its signatures are
real: it has a key). Everything that a peer answers is performed, so what comes of an attack stays
in the world for the attacks that follow. After each case the peer must be alive, must not want to
be woken at once, must not have asked for a flood of effects, and what it promises must be on disk
before it says so. A failure prints the seed, the case and the frame.
"""

import argparse
import random
import struct
import sys
import time
from collections import Counter, deque
from dataclasses import dataclass, field, fields, is_dataclass, replace
from enum import IntEnum
from typing import Any, Final

from node.sim.gossiping import Gossiping
from node.sim.network import Link
from node.sim.stub import Payloads
from node.sim.world import SimPeer, StubKeys, World
from protocol.codec import PARTS_MAX, decode, encode, encode_body
from protocol.core import STRANGERS_MAX
from protocol.effects import Effect, Save, Send
from protocol.entries import (
    Admission,
    Attachment,
    Body,
    Card,
    Cause,
    Departure,
    Entry,
    Line,
    Token,
    card_bytes,
    contribution_bytes,
    entry_hash,
    leave_bytes,
    seal_bytes,
    token_bytes,
)
from protocol.errors import RemoteError
from protocol.events import Applied, Event, MoveAsked, Received, Tick, WorkDone
from protocol.ids import Hash, Millis, PeerId
from protocol.ledger import Mark, round_key
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
from protocol.relaying import relay_bytes
from protocol.rounds import owner, ranking
from protocol.rules import Quorum, Rules

CASES_A_WORLD: Final = 2_000
POOL: Final = 300
EFFECTS_MAX: Final = 200
ATTACHED: Final = 300_000
_UNWRITABLE: Final = (OverflowError, TypeError, AttributeError, ValueError, struct.error)
EDGES: Final = (0, 1, 2, 127, 128, 255, 256, 65_535, 65_536, 2**31, 2**32 - 1, 2**32)
EDGES_WIDE: Final = (*EDGES, 2**48 - 1, 2**48, 2**63, 2**64 - 1)


class BrokenError(AssertionError):
    """A peer did what it must never do."""


@dataclass(slots=True)
class Report:
    cases: int = 0
    faults: int = 0  # messages that were refused and counted against their sender
    worlds: int = 0
    rounds: int = 0  # that the attacked swarms closed all the same
    kinds: Counter[str] = field(default_factory=Counter)


class _World(World):
    """Remembers what honest peers said lately."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        self.heard: deque[tuple[PeerId, bytes]] = deque(maxlen=POOL)
        super().__init__(*args, **kwargs)

    def post(self, sender: PeerId, to: PeerId, data: bytes) -> None:
        if len(to) == 32:
            self.heard.append((sender, data))
            super().post(sender, to, data)


class Attack:
    """One world under attack. `draw` makes the next event for a peer."""

    def __init__(self, seed: int) -> None:
        self.chance = chance = random.Random(seed)
        quorum = chance.choice(list(Quorum))
        rules = Rules(
            quorum=quorum,
            window_ms=400,
            deadline_ceiling_ms=1_200,
            deadline_floor_ms=100,
            members_max=12,
            attachment_bytes_max=chance.choice([0, ATTACHED]),
        )
        if rules.attachment_bytes_max:
            rules = replace(rules, parts_max=chance.choice([0, 1, 3]))
        payloads = Payloads(attached_bytes=rules.attachment_bytes_max)
        count = chance.randint(1, 5)
        nat = [chance.random() < 0.4 for _ in range(count)]
        link = Link(delay_ms=5.0, jitter_ms=5.0, loss=chance.choice([0.0, 0.0, 0.2]))
        founders = chance.choice([1, count])
        own_links = [replace(link, nat=hidden) for hidden in nat]
        gossiping = Gossiping(chance.choice(["matching", "groups", "random"]), step_ms=150.0)
        self.world = _World(
            count,
            seed,
            rules,
            link,
            founders,
            payloads=payloads,
            own_links=own_links,
            gossiping=chance.choice([None, gossiping]),
        )
        self.world.keep_notes = False
        self.run = self.world.run
        self.bad = StubKeys(self.world.join("bad").id)
        self.honest = [who for who in self.world.peers.values() if who.id != self.bad.peer]
        self.strangers = [StubKeys(PeerId(chance.randbytes(32))) for _ in range(6)]
        self.world.run_for(chance.choice([0, 500, 3_000, 8_000]))

    # Numbers and bytes

    def number(self, usual: int = 0) -> int:
        chance = self.chance
        match chance.randrange(4):
            case 0:
                return max(0, usual + chance.randint(-2, 2))
            case 1:
                return chance.choice(EDGES)
            case 2:
                return chance.choice(EDGES_WIDE)
            case _:
                return chance.getrandbits(chance.randint(1, 48))

    def round(self) -> int:
        head = self.head.round
        return max(0, head + self.chance.choice([-70, -2, -1, 0, 0, 0, 1, 1, 2, 100, 2**47]))

    def ballot(self) -> int:
        return self.chance.choice([0, 0, 1, 2, 3, 4, 5, 7, 100, 2**31, 2**32 - 1])

    def peer(self) -> PeerId:
        world = [who.id for who in self.world.peers.values()]
        return self.chance.choice([*world, *(keys.peer for keys in self.strangers)])

    def hash(self) -> Hash:
        marks = list(self.who.peer.ledger._marks.values())[-4:]
        known = [mark.hash for mark in marks]
        return self.chance.choice([*known, *known, Hash(self.chance.randbytes(32))])

    def scalar(self) -> float | None:
        return self.chance.choice([None, 0.0, 1.5, -3.4e38, 1e-45])

    def many(self, make: Any, most: int = 4) -> tuple[Any, ...]:  # noqa: ANN401
        return tuple(make() for _ in range(self.chance.randint(0, most)))

    # Parts of messages

    def keys(self) -> StubKeys:
        return self.chance.choice([self.bad, self.bad, *self.strangers])

    def card(self) -> Card:
        keys, sequence = self.keys(), self.number(1)
        addresses = self.many(lambda: "tcp://" + "a" * self.chance.choice([1, 250]), 8)
        sequence = min(sequence, 2**64 - 1)
        signed = card_bytes(self.run, keys.peer, sequence, addresses)
        return Card(keys.peer, sequence, addresses, keys.sign(signed))

    def token(self) -> Token | None:
        keys, nonce = self.keys(), self.chance.randbytes(8)
        expires = self.number(1_000)
        signed = token_bytes(self.run, keys.peer, expires, nonce)
        return self.chance.choice([None, Token(keys.peer, expires, nonce, keys.sign(signed))])

    def head_told(self) -> Head:
        ours = self.who.peer.ledger.summary()
        choices = [ours, Head(self.round(), self.number(ours.weight), self.chance.randbytes(8))]
        return self.chance.choice(choices)

    def rumor(self) -> Rumor:
        return Rumor(self.peer(), self.chance.choice(list(Health)), min(self.number(), 2**32 - 1))

    def locator(self) -> Locator:
        return Locator(min(self.round(), 2**48 - 1), self.hash())

    def mark(self) -> Mark:
        marks = list(self.who.peer.ledger._marks.values())
        return self.chance.choice([self.head, self.head, self.head, marks[-1], *marks[-3:]])

    def payload(self) -> bytes:
        return self.chance.randbytes(self.chance.choice([8, 8, 8, 16, 24, 1, 7]))

    def departures(self, mark: Mark) -> tuple[Departure, ...]:
        found = []
        for seat in sorted(self.chance.sample(range(len(mark.roster)), 1)):
            cause = self.chance.choice(list(Cause))
            proof = self.chance.choice([b"", self.chance.randbytes(64), self.chance.randbytes(224)])
            if mark.roster.members[seat] == self.bad.peer and cause is Cause.LEFT:
                proof = self.bad.sign(leave_bytes(self.run, self.bad.peer, mark.round))
            found.append(Departure(seat, cause, mark.round, proof))
        return tuple(found)

    def entry(self) -> Entry:
        """Sealed by the bad member, if it is one; with a fault of some kind more often than not."""
        mark, chance = self.mark(), self.chance
        seat = mark.roster.seat(self.bad.peer)
        state = chance.choice([0, 7, 2**64 - 1])
        seats = [seat if seat is not None else 0] * chance.choice([1, 1, 1, 1, 0, 2])
        lines = tuple(map(self.line, seats))
        admissions = [Admission(self.card(), self.token()) for _ in range(chance.choice([0, 0, 2]))]
        admissions.sort(key=lambda admission: admission.card.peer)
        body = Body(
            mark.round,
            mark.hash,
            chance.choice([seat or 0, seat or 0, seat or 0, 65_535]),
            chance.choice([0, 1_000, 2**32 - 1]),
            state,
            lines,
            tuple(admissions),
            chance.choice([(), (), self.departures(mark)]),
        )
        raw = encode_body(body)
        seal = self.bad.sign(seal_bytes(self.run, body.round, body.parent, entry_hash(raw)))
        signatures = tuple(
            self.bad.sign(contribution_bytes(self.run, body.round, body.parent, state, line))
            for line in lines
        )
        return Entry(body, raw, chance.choice([seal, seal, seal, bytes(64)]), signatures)

    def contribute(self) -> Contribute:
        mark, line = self.mark(), self.line(0)
        signed = contribution_bytes(self.run, mark.round, mark.hash, 7, line)
        round = mark.round + self.chance.choice([0, 0, 0, 1])
        signature = self.chance.choice([self.bad.sign(signed), bytes(64)])
        scalars = line.loss, line.heldout
        return Contribute(
            round, mark.hash[:8], 7, line.payload, *scalars, None, line.attached, signature
        )

    def line(self, seat: int) -> Line:
        attached = None
        if self.chance.random() < 0.2:
            size = self.chance.choice([0, 1, ATTACHED, ATTACHED, 1 << 40, 2**64 - 1])
            attached = Attachment(self.chance.choice([self.hash(), *self.who.blobs]), size)
        return Line(seat, self.payload(), self.scalar(), self.scalar(), None, attached)

    def evidence(self) -> Evidence:
        first, second = self.hash(), Hash(self.chance.randbytes(32))
        parent, round = self.hash(), min(self.round(), 2**48 - 1)
        keys = self.keys()
        seals = [keys.sign(seal_bytes(self.run, round, parent, one)) for one in (first, second)]
        closer = self.chance.choice([keys.peer, keys.peer, self.peer()])
        return Evidence(closer, round, parent, first, seals[0], second, seals[1])

    def leave(self) -> Leave:
        keys, round = self.keys(), min(self.round(), 2**48 - 1)
        signature = keys.sign(leave_bytes(self.run, keys.peer, round))
        return Leave(self.chance.choice([keys.peer, self.peer()]), round, signature)

    def envelope(self, depth: int = 0) -> Relay:
        """With any message inside; signed by the bad member, or by nobody."""
        chance, keys = self.chance, self.keys()
        try:
            inside = encode(
                self.envelope(1) if depth == 0 and chance.random() < 0.1 else self.made()
            )
        except OverflowError:
            inside = b"\x01\x09\x91\x01"
        inside = chance.choice([inside, inside, self.garbled(inside)])[: 256 << 10] + b"\x00" * 3
        inside = inside[:-3] if len(inside) >= 6 else inside
        target = chance.choice([self.who.id, self.who.id, self.peer()])
        epoch, count = self.number(1) % 2**64, self.number(1) % 2**64
        signed = relay_bytes(self.run, keys.peer, target, epoch, count, inside)
        signature = chance.choice([keys.sign(signed), keys.sign(signed), bytes(64)])
        return Relay(keys.peer, target, epoch, count, inside, signature)

    def question(self) -> Message:
        """Of a check-up, or an answer to one that nobody asked."""
        chance, sequence = self.chance, min(self.number(), 2**32 - 1)
        filler = chance.randbytes(chance.choice([0, 3, 60_000]))
        ways = self.many(lambda: Way("tcp://a:1", self.chance.choice([None, 7])), 8)
        return chance.choice(
            [
                Unrelayed(self.peer(), chance.choice(list(Why))),
                DialBack(sequence),
                DialledBack(sequence, ways),
                Echo(sequence, chance.choice([0, 65_536]), filler),
                Echoed(sequence, self.number() % 2**64, filler),
            ]
        )

    def made(self) -> Message:
        """A message that a member with bad intentions would send."""
        chance = self.chance
        round, sequence = min(self.round(), 2**48 - 1), min(self.number(), 2**32 - 1)
        tip, ballot = self.hash()[:8], self.ballot()
        match chance.randrange(33):
            case 0:
                return Hello(self.card(), self.token())
            case 1:
                return Welcome(b"m", self.many(self.card), self.head_told())
            case 2:
                return Refused("no")
            case 3:
                return Join(self.card(), self.token())
            case 4:
                return self.leave()
            case 5:
                return Ping(sequence, self.head_told(), self.many(self.rumor, 16))
            case 6:
                return Ack(sequence, self.head_told(), self.many(self.rumor, 16))
            case 7:
                return PingRequest(sequence, self.peer(), self.many(self.rumor))
            case 8:
                return Nack(sequence)
            case 9:
                return Sync(chance.randbytes(8), self.head_told())
            case 10:
                rumors, cards = self.many(self.rumor, 30), self.many(self.card)
                return View(rumors, cards, chance.random() < 0.5)
            case 11:
                return self.contribute()
            case 12:
                return Prepare(self.head.round, tip, ballot)
            case 13:
                held = chance.choice([None, self.entry()])
                return Promise(self.head.round, tip, ballot, self.ballot(), held)
            case 14:
                return Propose(ballot, self.entry())
            case 15:
                return Accepted(round, ballot, self.hash())
            case 16:
                return Commit(round, ballot, self.hash())
            case 17:
                return Closed(self.entry())
            case 18:
                return EntriesRequest(self.many(self.locator, 10))
            case 19:
                return Entries(self.many(self.entry, 3), self.head_told())
            case 20:
                return self.evidence()
            case 21:
                return self.question()
            case 22 | 23 | 24 | 25 | 26:
                return self.about_blobs()
            case 27 | 28 | 29 | 30:
                return self.about_meetings()
            case _:
                return self.envelope()

    def about_blobs(self) -> Message:
        """Chunks, repairs and introductions, of roots and places that may well be real."""
        chance = self.chance
        root = chance.choice([*self.who.blobs, self.hash(), self.hash()])
        number = min(self.number(), 2**32 - 1)
        numbers = tuple(min(self.number(), 2**32 - 1) for _ in range(chance.randint(0, 5)))
        level, data = chance.choice(list(Level)), chance.randbytes(chance.choice([1, 8, 300]))
        part = min(self.number(2), PARTS_MAX - 1)
        one = Attachment(root, min(self.number(64), 2**64 - 1))
        place = self.head.round, self.head.hash[:8]
        match chance.randrange(13):
            case 8:
                return Part(*place, self.peer(), part, one, self.many(self.hash))
            case 9:
                return PartsHeld(*place, part, chance.choice([b"\x01", b"\x1f", b"\xff" * 2]))
            case 10:
                return PartRequest(*place, part)
            case 11:
                return SumRequest(self.hash(), (part, part))
            case 12:
                return Sum(self.hash(), part, one)
            case 0:
                return BlobRequest(root)
            case 1:
                have = chance.choice([None, b"", b"\x01", b"\xff"])
                return BlobOffer(root, min(self.number(64), 2**64 - 1), self.many(self.hash), have)
            case 2:
                return PieceRequest(root, level, numbers)
            case 3:
                return Piece(root, level, number, data)
            case 4:
                return PieceRefused(root, level, numbers, chance.choice([0, 1, 60_000]))
            case 5:
                return MendRequest(self.head.round, self.head.hash, chance.randbytes(8))
            case 6:
                chunks = tuple((n, data) for n in numbers)
                return Mend(self.head.round, self.head.hash, number, chunks)
            case _:
                return Introduce(self.card(), self.token())

    def about_meetings(self) -> Message:
        """Of topics and sessions that may well be under way."""
        chance, meetings = self.chance, self.who.peer._meetings
        topics = [*meetings._waiting, *meetings._held, self.hash()]
        settled = meetings._verdicts
        sessions = [*meetings._sessions, *settled._doubts, *settled._decisions, self.hash()]
        topic, session = chance.choice(topics), chance.choice(sessions)
        number = min(self.number(meetings._number), 2**48 - 1)
        stretch, some = min(self.number(1), 65_535), chance.choice([b"\x07", b"\x01", b"\xff" * 9])
        frame, data = min(self.number(), 4_095), chance.randbytes(chance.choice([1, 8, 300]))
        match chance.randrange(9):
            case 0:
                view = chance.randbytes(16)
                return Meet(topic, number, view, chance.choice([0, 1, 2, 2**64 - 1]), self.flag())
            case 1:
                return NotMeeting(topic, number, chance.choice(list(Absence)))
            case 2:
                frames = tuple(chance.choice([0, 1, frame]) for _ in range(chance.randint(0, 5)))
                return StretchRequest(session, stretch, frames)
            case 3:
                return StretchFrame(session, stretch, frame, chance.choice([0, 1, 4_096]), data)
            case 4:
                return Ready(session, some)
            case 5:
                return Verdict(session, chance.choice([b"", some]), self.flag())
            case 6:
                return Counted(session, some)
            case 7:
                return ModelRequest(min(self.number(), 2**32 - 1))
            case _:
                model = chance.choice([None, Attachment(self.hash(), min(self.number(64), 2**40))])
                return ModelHeld(min(self.number(), 2**32 - 1), model, 0, number, self.scalar())

    def flag(self) -> bool:
        return self.chance.random() < 0.5

    def altered(self, value: Any) -> Any:  # noqa: ANN401
        """The same message, with one field at any depth replaced."""
        chance = self.chance
        if isinstance(value, Entry) and chance.random() < 0.7:
            body = self.altered(value.body)
            raw = encode_body(body)
            seal = self.bad.sign(seal_bytes(self.run, body.round, body.parent, entry_hash(raw)))
            return Entry(body, raw, seal, value.signatures)
        if is_dataclass(value) and not isinstance(value, type):
            names = [part.name for part in fields(value) if part.init]
            name = chance.choice(names)
            return replace(value, **{name: self.altered(getattr(value, name))})
        if isinstance(value, tuple):
            if not value or chance.random() < 0.2:
                return value * 2
            at = chance.randrange(len(value))
            return (*value[:at], self.altered(value[at]), *value[at + 1 :])
        if isinstance(value, bool):
            return not value
        if isinstance(value, IntEnum):
            return chance.choice(list(type(value)))
        if isinstance(value, int):
            return self.number(value)
        if isinstance(value, bytes):
            return self.garbled(value) if chance.random() < 0.5 else chance.randbytes(len(value))
        return chance.choice([None, 0.5, float("inf"), float("nan"), "\x00", "text", -1, b""])

    def garbled(self, data: bytes) -> bytes:
        chance, frame = self.chance, bytearray(data)
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(frame) + 1)
            match chance.randrange(4):
                case 0 | 1 if at < len(frame):
                    frame[at] = chance.randrange(256)
                case 2:
                    frame[at:at] = chance.randbytes(chance.randint(1, 5))
                case _:
                    del frame[at:]
        return bytes(frame)

    # The next case

    def frame(self) -> tuple[str, bytes, bytes | None]:
        """What kind of attack, the bytes, and who said them first, if anybody."""
        chance, heard = self.chance, self.world.heard
        way = chance.randrange(10)
        if way == 0 or not heard:
            kind = bytes((1, chance.randint(0, 40)))
            return (
                "random",
                chance.choice([b"", kind]) + chance.randbytes(chance.randint(0, 60)),
                None,
            )
        sender, data = chance.choice(heard)
        if way == 1:
            return "replayed", data, sender
        if way == 2:
            return "garbled", self.garbled(data), sender
        if way <= 4:
            try:
                return "altered", encode(self.altered(decode(data))), sender
            except (
                RemoteError,
                OverflowError,
                TypeError,
                AttributeError,
                ValueError,
                struct.error,
            ):
                return "garbled", self.garbled(data), sender
        message = self.made()
        try:
            return f"made {type(message).__name__}", encode(message), self.bad.peer
        except OverflowError:
            return "garbled", self.garbled(data), sender

    def source(self, first: bytes | None) -> bytes:
        chance = self.chance
        if first is not None and chance.random() < 0.7:
            return first
        return chance.choice([self.peer(), self.bad.peer, b"guest", b"", self.who.id])

    def event(self) -> tuple[str, Event]:
        chance = self.chance
        if chance.random() < 0.95:
            way, data, first = self.frame()
            return way, Received(self.source(first), data, chance.choice([0, 500, 2_000_000_000]))
        mark = self.mark()
        match chance.randrange(4):
            case 0:
                return "tick", Tick()
            case 1:
                payload = chance.randbytes(8 * chance.randint(1, 3))
                loss = chance.choice([None, 1.0, 1e300, float("inf"), float("nan")])
                return "work", WorkDone(mark.round, mark.hash, 7, payload, loss, loss)
            case 2:
                return "applied", Applied(mark.round, mark.hash, chance.getrandbits(64))
            case _:
                keys = self.who.keys
                signed = card_bytes(self.run, keys.peer, 9, ())
                return "moved", MoveAsked(Card(keys.peer, 9, (), keys.sign(signed)))

    def case(self, report: Report) -> None:
        """One event for one peer, and everything that must hold after it."""
        world, chance = self.world, self.chance
        victims = [who for who in self.honest if who.up]
        if chance.random() < 0.03 or not victims:
            world.run_for(chance.choice([1, 20, 200, 700]))
            for who in world.peers.values():
                if not who.up:
                    world.start(who)
            return
        self.who = chance.choice(victims)
        self.head = self.who.peer.ledger.head
        way, event = self.event()
        report.kinds[way] += 1
        shell = self.who.shell
        assert shell is not None
        handle = shell.peer.handle
        effects: list[Effect] = []

        try:
            effects = handle(event, Millis(int(world.now_ms)))
            self.check(effects)
        except Exception as error:
            data = event.data.hex() if isinstance(event, Received) else ""
            raise BrokenError(f"{way}: {event!r}\n{data}\n{error!r}") from error
        self.perform(effects)

    def perform(self, effects: list[Effect]) -> None:
        """As the world does after an event of its own."""
        from node.perform import perform

        assert self.who.shell is not None
        perform(effects, self.who.shell)
        if self.who.halted is not None:
            self.world.crash(self.who)
        self.world._schedule(self.who)

    def check(self, effects: list[Effect]) -> None:
        peer, now = self.who.peer, int(self.world.now_ms)
        if len(effects) > EFFECTS_MAX:
            raise BrokenError(f"{len(effects)} effects at once")
        wake = peer.wake_ms
        if wake is not None and wake <= now:
            raise BrokenError(f"wants to be woken at {wake}, and it is {now}")
        check_saved_before_said(effects, self.who, self.head)

    def check_bounds(self) -> None:
        for who in self.world.up():
            peer = who.peer
            members = len(peer.ledger.head.roster)
            sizes = {
                "cards": (len(peer.cards()), members + STRANGERS_MAX + 1),
                "joins": (len(peer._admissions._joins), 256),
                "leaves": (len(peer._admissions._leaves), members),
                "early": (len(peer._closing._early), members),
                "held": (len(peer._closing._round.held), members),
                "seals": (len(peer._catchup._seals), 64),
                "guilty": (len(peer._catchup.guilty), 64),
                "barren": (len(peer._catchup._barren), 256),
                "view": (len(peer.membership._view), members),
                "heard": (len(peer.membership._heard_ms), members),
                "relays": (len(peer.membership._relays), 256),
                "attachments": (len(peer._attachments._coming), 3 * members),
                "waits": (len(peer._attachments._waits), 6 * members),
                "direct": (len(peer._relaying._direct_ms), members + STRANGERS_MAX),
                "detours": (len(peer._relaying._detours), members + 1),
                "avoided": (len(peer._relaying._avoided), 1_024),
                "windows": (len(peer._relaying._windows), members + STRANGERS_MAX),
                "former": (len(peer.membership._former), 64),
                "states": (len(peer._mending._states), 64),
                "meetings": (len(peer._meetings._waiting), 64),
                "sessions": (len(peer._meetings._sessions), 64),
                "requests": (len(peer._meetings._early_requests), members),
                "askers": (len(peer._meetings._asked_by), members),
                "doubts": (peer.doubts, 64),
                "void": (len(peer._meetings._verdicts._void), 4_096),
            }
            over = {name: size for name, (size, most) in sizes.items() if size > most}
            if over:
                raise BrokenError(f"{who.name} grew: {over}")


def check_saved_before_said(effects: list[Effect], who: SimPeer, head: Mark) -> None:
    """What binds this peer is on disk, or about to be, before anybody hears of it (P3, P5)."""
    saved: dict[tuple[str, bytes], bytes | None] = {}
    for effect in effects:
        if isinstance(effect, Save):
            saved.update({(write.table, write.key): write.value for write in effect.writes})
        if isinstance(effect, Send):
            needed = _record_behind(effect.message, who, head)
            if needed is None:
                continue
            table, key, value = needed
            found = saved.get((table, key), who.disk.get(table, key))
            if found is None or value not in found:
                raise BrokenError(f"says {type(effect.message).__name__} before {table} is written")


def _record_behind(message: Message, who: SimPeer, head: Mark) -> tuple[str, bytes, bytes] | None:
    ranked = ranking(who.peer._core.run, head.round, head.roster)
    match message:
        case Contribute():
            return "outbox", round_key(message.round), encode(message)
        case Accepted():
            return "votes", round_key(message.round) + b"a", message.ballot.to_bytes(4, "big")
        case Prepare():
            return "votes", round_key(message.round) + b"p", message.ballot.to_bytes(4, "big")
        case Closed():
            return "entries", message.entry.hash, message.entry.seal
        case Propose() if owner(ranked, message.ballot) == who.id:
            if who.peer._core.rules.parts_max:
                # It accepts only once all is added up; its ballot is taken, and its own is sealed.
                ballot = message.ballot if message.ballot else who.peer._closing._round.promised
                return "votes", round_key(message.entry.round) + b"p", ballot.to_bytes(4, "big")
            return "votes", round_key(message.entry.round) + b"a", message.entry.seal
        case _:
            return None


def fuzz(cases: int, seed: int, report: Report | None = None) -> Report:
    """Raises BrokenError with the seed of the world that failed."""
    report = report or Report()
    while report.cases < cases:
        world_seed = seed * 1_000_003 + report.worlds
        attack = Attack(world_seed)
        report.worlds += 1
        last = min(cases, report.cases + CASES_A_WORLD)
        try:
            while report.cases < last:
                attack.case(report)
                report.cases += 1
            attack.check_bounds()
        except Exception as error:
            error.add_note(f"world seed {world_seed}, {last - report.cases} cases before its end")
            raise
        for who in attack.world.up():
            report.faults += sum(who.peer.faults.values())
        report.rounds += max(attack.world.rounds(), default=0)
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    start = time.process_time()
    report = fuzz(options.cases, options.seed)
    seconds = time.process_time() - start
    sys.stderr.write(f"{dict(sorted(report.kinds.items()))}\n")
    sys.stdout.write(
        f"{report.cases} cases in {seconds:.0f} s of CPU ({report.cases / seconds:.0f}/s), seed"
        f" {options.seed}: {report.worlds} worlds, {report.faults} refused,"
        f" {report.rounds} rounds closed, nothing broken\n"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
