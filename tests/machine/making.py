"""Keys, cards, tokens, entries and peers, made by hand for tests of the machine."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from node.sim.world import StubKeys
from protocol.codec import decode, encode, encode_body
from protocol.effects import Effect, Note, Save, Send
from protocol.entries import (
    Admission,
    Attachment,
    Body,
    Card,
    Departure,
    Entry,
    Line,
    Token,
    card_bytes,
    contribution_bytes,
    entry_hash,
    leave_bytes,
    seal_bytes,
)
from protocol.events import Event, Received, Started, WorkDone
from protocol.ids import Hash, Millis, PeerId, RunId, digest
from protocol.invites import mint_token
from protocol.ledger import Judge, Mark
from protocol.messages import Contribute, Leave, Message
from protocol.peer import Peer, Saved
from protocol.relaying import RelayLimits
from protocol.roster import Roster
from protocol.rules import Quorum, Rules

E = TypeVar("E")
M = TypeVar("M")

RUN = RunId(digest("run", b"tests"))
RULES = Rules(window_ms=1_000, deadline_ceiling_ms=3_000, deadline_floor_ms=200)
MAJORITY = Rules(
    window_ms=1_000, deadline_ceiling_ms=3_000, deadline_floor_ms=200, quorum=Quorum.MAJORITY
)


def weigh(payload: bytes) -> int:
    """A unit of work is 8 bytes."""
    if not payload or len(payload) % 8:
        raise ValueError("not a list of units")
    return len(payload) // 8


def ids(count: int) -> list[PeerId]:
    return sorted(PeerId(digest("test peer", bytes([number]))) for number in range(count))


def card(peer: PeerId, sequence: int = 1, addresses: tuple[str, ...] = ("tcp://a:1",)) -> Card:
    signed = card_bytes(RUN, peer, sequence, addresses)
    return Card(peer, sequence, addresses, StubKeys(peer).sign(signed))


def token(minter: PeerId, expires_s: int = 1_000, nonce: bytes = bytes(8)) -> Token:
    return mint_token(StubKeys(minter), RUN, expires_s, nonce)


def judge(rules: Rules = RULES) -> Judge:
    return Judge(RUN, rules, StubKeys(ids(1)[0]), weigh)


def genesis(members: Iterable[PeerId]) -> Mark:
    return Mark(0, Hash(RUN), 0, Roster(members))


def line(
    mark: Mark, author: PeerId, payload: bytes = b"8 bytes!", state: int = 7
) -> tuple[Line, bytes]:
    """A contribution to the round that is open at `mark`, and its signature."""
    seat = mark.roster.seat(author)
    made = Line(seat or 0, payload, 1.5, None)
    signed = contribution_bytes(RUN, mark.round, mark.hash, state, made)
    return made, StubKeys(author).sign(signed)


def entry(
    mark: Mark,
    closer: PeerId,
    authors: Sequence[PeerId] | None = None,
    payload: bytes = b"8 bytes!",
    admissions: tuple[Admission, ...] = (),
    departures: tuple[Departure, ...] = (),
    state: int = 7,
    took_ms: int = 1_200,
) -> Entry:
    """An entry after `mark`, sealed by `closer`."""
    lines = [line(mark, author, payload, state) for author in sorted(authors or [closer])]
    seat = mark.roster.seat(closer)
    assert seat is not None
    body = Body(
        mark.round,
        mark.hash,
        seat,
        took_ms,
        state,
        tuple(made for made, _ in lines),
        admissions,
        departures,
    )
    return sealed(body, closer, tuple(signature for _, signature in lines))


def sealed(body: Body, closer: PeerId, signatures: tuple[bytes, ...]) -> Entry:
    raw = encode_body(body)
    seal = StubKeys(closer).sign(seal_bytes(RUN, body.round, body.parent, entry_hash(raw)))
    return Entry(body, raw, seal, signatures)


def chain(mark: Mark, closer: PeerId, length: int, payload: bytes = b"8 bytes!") -> list[Entry]:
    rules = judge()
    entries = []
    for _ in range(length):
        entries.append(entry(mark, closer, payload=payload))
        mark = rules.follow(mark, entries[-1])
    return entries


def contribution(
    mark: Mark, author: PeerId, payload: bytes = b"8 bytes!", state: int = 7
) -> Contribute:
    _, signature = line(mark, author, payload, state)
    return Contribute(mark.round, mark.hash[:8], state, payload, 1.5, None, None, None, signature)


def bring(mark: Mark, author: PeerId, attached: Attachment | None) -> Contribute:
    """A contribution with an attachment."""
    plain, _ = line(mark, author)
    made = replace(plain, attached=attached)
    signed = contribution_bytes(RUN, mark.round, mark.hash, 7, made)
    scalars = made.loss, made.heldout, made.snapshot, made.attached
    signature = StubKeys(author).sign(signed)
    return Contribute(mark.round, mark.hash[:8], 7, made.payload, *scalars, signature)


def closed(mark: Mark, closer: PeerId, author: PeerId, attached: Attachment | None) -> Entry:
    """An entry with one contribution, and what that brings."""
    message = bring(mark, author, attached)
    seats = [mark.roster.seat(author), mark.roster.seat(closer)]
    assert None not in seats
    lines = (message.line(seats[0] or 0),)
    body = Body(mark.round, mark.hash, seats[1] or 0, 1_200, 7, lines, (), ())
    return sealed(body, closer, (message.signature,))


def leave(peer: PeerId, round: int) -> Leave:
    return Leave(peer, round, StubKeys(peer).sign(leave_bytes(RUN, peer, round)))


class Door:
    """A started peer, its effects, and short ways to feed it."""

    def __init__(
        self,
        me: PeerId,
        members: Iterable[PeerId],
        rules: Rules = RULES,
        saved: Saved | None = None,
        known: Iterable[PeerId] = (),
        limits: RelayLimits | None = None,
        addresses: tuple[str, ...] = ("tcp://a:1",),
    ) -> None:
        self.me, self.now = me, 0
        members = list(members)
        keys = StubKeys(me)
        self.peer = Peer(
            RUN,
            rules,
            keys,
            members,
            b"manifest",
            judge(rules),
            b"seed",
            Millis(0),
            saved,
            relay_limits=limits,
        )
        cards = tuple(card(peer) for peer in [*members, *known])
        started = Started(card(me, addresses=addresses), cards, None)
        self.effects: list[Effect] = self.peer.handle(started, Millis(0))

    @property
    def mark(self) -> Mark:
        return self.peer.ledger.head

    def hear(self, source: bytes, message: Message, wall_s: int = 0) -> list[Effect]:
        """As it would arrive: through the codec."""
        event = Received(source, encode(message), wall_s)
        assert decode(event.data) is not None
        self.effects = self.peer.handle(event, Millis(self.now))
        return self.effects

    def on(self, event: Event) -> list[Effect]:
        self.effects = self.peer.handle(event, Millis(self.now))
        return self.effects

    def work(self, payload: bytes = b"mine----", loss: float | None = 1.0) -> list[Effect]:
        done = WorkDone(self.mark.round, self.mark.hash, 7, payload, loss, None)
        self.effects = self.peer.handle(done, Millis(self.now))
        return self.effects

    def sent(self, kind: type[M]) -> list[tuple[tuple[bytes, ...], M]]:
        return [
            (effect.to, effect.message)
            for effect in self.effects
            if isinstance(effect, Send) and isinstance(effect.message, kind)
        ]

    def faults(self) -> list[str]:
        return [
            str(effect.fields["error"])
            for effect in self.effects
            if isinstance(effect, Note) and effect.event == "fault"
        ]

    def written(self, table: str) -> set[bytes]:
        """Keys of the records that were put on disk."""
        saved = [effect for effect in self.effects if isinstance(effect, Save)]
        writes = [write for effect in saved for write in effect.writes]
        return {w.key for w in writes if w.table == table and w.value is not None}

    def of(self, kind: type[E]) -> list[E]:
        return [effect for effect in self.effects if isinstance(effect, kind)]
