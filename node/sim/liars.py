"""Members that lie: well-formed messages whose content is false, or out of turn.

A liar runs the honest machine too, so it is up, works and votes; beside that it sends lies. All of
them are what the protocol says a single member can do no lasting harm with. What members are
trusted with is not here: see "What is trusted" in the specification.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from node.sim.world import SimPeer, World
from protocol.codec import encode, encode_body
from protocol.entries import (
    Body,
    Card,
    Cause,
    Departure,
    Entry,
    Line,
    contribution_bytes,
    entry_hash,
    seal_bytes,
)
from protocol.ids import Hash, PeerId
from protocol.ledger import Mark
from protocol.messages import (
    Accepted,
    Ack,
    Closed,
    Contribute,
    Entries,
    EntriesRequest,
    Evidence,
    Head,
    Health,
    Join,
    Leave,
    Locator,
    Message,
    Nack,
    Ping,
    PingRequest,
    Prepare,
    Promise,
    Propose,
    Rumor,
    Sync,
    View,
)
from protocol.restore import entry_at
from protocol.rounds import owner, ranking
from protocol.rules import Quorum

_LAST_INCARNATION: Final = (1 << 32) - 1
_MOST: Final = (1 << 64) - 1


class Liar:
    """One liar. `lie` tells one tale of `tales()`."""

    def __init__(self, world: World, who: SimPeer, chance: random.Random) -> None:
        self._world, self._who, self._chance = world, who, chance

    @classmethod
    def tales(cls) -> list[str]:
        return list(cls._TALES)

    def lie(self, tale: str) -> None:
        """To everybody who is a member, as far as it knows."""
        if not self._who.up or not self._who.peer.is_member:
            return
        for message in self._TALES[tale](self):
            frame = encode(message)
            for peer in self._others():
                self._world.post(self._who.id, peer, frame)

    def lie_at_random(self) -> None:
        self.lie(self._chance.choice(self.tales()))

    @property
    def _head(self) -> Mark:
        return self._who.peer.ledger.head

    def _noise(self, count: int) -> bytes:
        return self._chance.randbytes(count)

    def _newest(self) -> Entry | None:
        return entry_at(self._who.disk, self._head.round - 1) if self._head.round else None

    def _others(self) -> list[PeerId]:
        return [peer for peer in self._head.roster.members if peer != self._who.id]

    # The tales

    def _false_head(self) -> Iterator[Message]:
        head = Head(self._head.round + 1_000, _MOST, self._noise(8))
        yield Ping(7, head, ())
        yield Ack(7, head, ())
        yield Sync(self._noise(8), head)

    def _forged_seal(self) -> Iterator[Message]:
        newest = self._newest()
        if newest is not None:
            yield Closed(replace(newest, seal=self._noise(64)))
            body = replace(newest.body, parent=self._head.hash, round=self._head.round)
            raw = encode_body(body)
            forged = Entry(body, raw, self._noise(64), newest.signatures)
            yield Closed(forged)
            yield Promise(self._head.round, self._head.hash[:8], 1, 1, forged)
            if self._world.rules.quorum is Quorum.MAJORITY:
                yield Propose(1, forged)

    def _forged_lines(self) -> Iterator[Message]:
        """Sealed by itself, as it may, with work that nobody did."""
        newest = self._newest()
        if newest is None:
            return
        seat = self._head.roster.seat(self._who.id)
        assert seat is not None
        line = Line(0 if seat else len(self._others()), self._work(), None, None)
        body = replace(
            newest.body,
            round=self._head.round,
            parent=self._head.hash,
            closer=seat,
            lines=(line,),
            admissions=(),
            departures=(),
        )
        yield self._sealed(body, (self._noise(64),))

    def _forged_proof(self) -> Iterator[Message]:
        newest = self._newest()
        seat = self._head.roster.seat(self._who.id)
        if newest is None or seat is None:
            return
        cause, length = self._chance.choice([(Cause.LEFT, 64), (Cause.EQUIVOCATED, 224)])
        other = (seat + 1) % len(self._head.roster)
        gone = Departure(other, cause, self._head.round, self._noise(length))
        body = replace(
            newest.body,
            round=self._head.round,
            parent=self._head.hash,
            closer=seat,
            departures=(gone,),
        )
        yield self._sealed(body, newest.signatures)

    def _sealed(self, body: Body, signatures: tuple[bytes, ...]) -> Message:
        raw = encode_body(body)
        sealed = seal_bytes(self._world.run, body.round, body.parent, entry_hash(raw))
        return Closed(Entry(body, raw, self._who.keys.sign(sealed), signatures))

    def _stale(self) -> Iterator[Message]:
        old = [entry_at(self._who.disk, round) for round in range(max(0, self._head.round - 5))]
        found = tuple(entry for entry in old[-8:] if entry is not None)
        if found:
            yield Closed(found[0])
            yield Entries(found, self._who.peer.ledger.summary())
            yield Entries(found[::-1], Head(self._head.round + 5, _MOST, self._noise(8)))

    def _work(self) -> bytes:
        return self._world.payloads.join([self._noise(8)])

    def _contribution(self, payload: bytes, round: int) -> Contribute:
        line = Line(0, payload, None, None)
        signed = contribution_bytes(self._world.run, round, self._head.hash, 0, line)
        signature = self._who.keys.sign(signed)
        return Contribute(round, self._head.hash[:8], 0, payload, None, None, None, None, signature)

    def _bad_payload(self) -> Iterator[Message]:
        for payload in (self._noise(3), self._noise(8) * 8_193, b"\0"):
            for ahead in (0, 1, 9):
                yield self._contribution(payload, self._head.round + ahead)

    def _forged_contribution(self) -> Iterator[Message]:
        good = self._contribution(self._work(), self._head.round)
        yield replace(good, signature=self._noise(64))
        yield replace(good, tip=self._noise(8))
        yield replace(good, round=self._head.round + 1)

    def _false_deaths(self) -> Iterator[Message]:
        """At every incarnation that can be told, the last one included."""
        for incarnation in (0, self._chance.randrange(1 << 32), _LAST_INCARNATION):
            health = self._chance.choice([Health.SUSPECT, Health.DEAD, Health.LEFT])
            rumors = tuple(Rumor(peer, health, incarnation) for peer in self._others())
            yield Ping(8, self._who.peer.ledger.summary(), rumors[:16])
            yield View(rumors, (), wants_reply=False)

    def _false_notices(self) -> Iterator[Message]:
        for peer in self._others():
            yield Leave(peer, self._head.round, self._noise(64))

    def _false_evidence(self) -> Iterator[Message]:
        parent, one, two = (Hash(self._noise(32)) for _ in range(3))
        for peer in self._others():
            seals = self._noise(64), self._noise(64)
            yield Evidence(peer, self._head.round, parent, one, seals[0], two, seals[1])

    def _ballots(self) -> Iterator[Message]:
        """Others' turns; and its own long before their time, where any seal counts. (Where there is
        a vote, a member can hold it up like that, and is trusted not to.)
        """
        head, ranked = self._head, ranking(self._world.run, self._head.round, self._head.roster)
        mine = ranked.index(self._who.id)
        first = range(3 * len(ranked))
        ballots = [ballot for ballot in first if owner(ranked, ballot) != self._who.id]
        if self._world.rules.quorum is Quorum.ANY:
            ballots += [mine + turn * len(ranked) for turn in (1, 3, 1_000_000)]
        for ballot in ballots:
            yield Prepare(head.round, head.hash[:8], ballot)
            yield Prepare(head.round + 1, self._noise(8), ballot)

    def _votes(self) -> Iterator[Message]:
        head, newest = self._head, self._newest()
        for ballot in range(4):
            yield Accepted(head.round, ballot, Hash(self._noise(32)))
            yield Promise(head.round, head.hash[:8], ballot, ballot, newest)
            yield Promise(head.round, head.hash[:8], ballot, ballot + 1, None)

    def _questions(self) -> Iterator[Message]:
        ask = EntriesRequest((Locator(0, Hash(self._world.run)),))
        for _ in range(4):
            yield ask
            yield View((), (), wants_reply=True)
        for peer in self._others():
            yield PingRequest(9, peer, ())

    def _answers(self) -> Iterator[Message]:
        yield Nack(1)
        yield Entries((), self._who.peer.ledger.summary())
        yield Entries((), Head(self._head.round + 1, _MOST, self._noise(8)))
        card = Card(self._who.id, _MOST, (), self._noise(64))
        yield View((), (card,), wants_reply=False)
        yield Join(replace(card, peer=PeerId(self._noise(32))), None)

    _TALES: Final[dict[str, Callable[["Liar"], Iterator[Message]]]] = {
        "a head that is ahead of all": _false_head,
        "an entry with a forged seal": _forged_seal,
        "an entry with made-up contributions": _forged_lines,
        "an entry that drops somebody with a false proof": _forged_proof,
        "entries of old": _stale,
        "payloads that are none": _bad_payload,
        "contributions in another's name": _forged_contribution,
        "others are dead": _false_deaths,
        "others have left": _false_notices,
        "others lied": _false_evidence,
        "ballots out of turn": _ballots,
        "promises and votes that nobody asked for": _votes,
        "the same questions again and again": _questions,
        "answers to nothing": _answers,
    }
