"""What stands in for a model that gossips, in a simulation: whole numbers whose sum can be counted.

A stretch is one number. Meetings move it to the mean, to the last unit exactly, so whatever is
lost, doubled or cut off on the way, the sum over all disks is what it was, but for what is in
doubt.
Everything that counts is on the disk; a process that ends loses the rest.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgpack

from node.gossip.pairings import Meeting, View, meetings, next_number
from node.methods.parts.gossip_config import Kind
from node.ports import Disk
from protocol.effects import (
    CloseExchange,
    DropDoubts,
    ForgetDecision,
    Gossip,
    Members,
    ModelFetched,
    MoveStretch,
    OfferStretch,
    OpenExchange,
    TakeModel,
    TakeStretch,
)
from protocol.events import (
    Crew,
    Decision,
    Doubt,
    Event,
    MeetAsked,
    ModelTaken,
    Moved,
    Offered,
    Offering,
    Prepared,
    Recalled,
)
from protocol.exchanging import pack, unpack
from protocol.ids import Hash, PeerId
from protocol.ledger import Write

_KEY: Final = b"simulated gossip"
_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Gossiping:
    """How peers of a world gossip."""

    kind: Kind = "matching"
    group: int = 2
    stretches: int = 3
    step_ms: float = 800.0  # between two exchanges
    wait_ms: int = 1_500
    padding: int = 0  # bytes that go with each offer


@dataclass(slots=True)
class Held:
    """What is on a disk."""

    mass: list[int]
    prepared: dict[tuple[bytes, int], tuple[int, bytes]] = field(default_factory=dict)
    decided: dict[tuple[bytes, int], tuple[int, list[bytes]]] = field(default_factory=dict)

    def encode(self) -> bytes:
        prepared = [[*key, *value] for key, value in self.prepared.items()]
        decided = [[*key, *value] for key, value in self.decided.items()]
        return bytes(msgpack.packb([self.mass, prepared, decided]))

    @staticmethod
    def decode(raw: bytes) -> "Held":
        mass, prepared, decided = msgpack.unpackb(raw)
        return Held(
            mass,
            {(session, n): (delta, decider) for session, n, delta, decider in prepared},
            {(session, n): (delta, others) for session, n, delta, others in decided},
        )


def held_on(disk: Disk) -> Held | None:
    raw = disk.get("meta", _KEY)
    return None if raw is None else Held.decode(raw)


class StubGossiper:
    """`later(delay_ms, event)` hands an event to the peer after virtual time has passed."""

    def __init__(
        self,
        me: PeerId,
        run: bytes,
        settings: Gossiping,
        disk: Disk,
        mass: Sequence[int],
        later: Callable[[float, Event], None],
        call_later: Callable[[float, Callable[[], None]], None],
        draw: Callable[[], float],
    ) -> None:
        self._me, self._run, self._settings, self._disk = me, run, settings, disk
        self._later, self._call_later, self._draw = later, call_later, draw
        self.held = held_on(disk) or Held(list(mass))
        self._members: tuple[PeerId, ...] = ()
        self._number = self._ahead = 0
        self._open: list[Crew] = []
        self._sessions: dict[Hash, tuple[Crew, dict[int, int]]] = {}
        self.whole = self.broken = 0  # meetings
        later(0.0, self._recalled())
        call_later(self._pause(), self._arrive)

    def _pause(self) -> float:
        return self._settings.step_ms * (0.8 + 0.4 * self._draw())

    def _recalled(self) -> Recalled:
        decided: dict[bytes, tuple[list[int], list[bytes]]] = {}
        for (session, number), (_, others) in self.held.decided.items():
            decided.setdefault(session, ([], others))[0].append(number)
        doubts: dict[bytes, tuple[list[int], bytes]] = {}
        for (session, number), (_, decider) in self.held.prepared.items():
            doubts.setdefault(session, ([], decider))[0].append(number)
        return Recalled(
            tuple(
                Decision(Hash(session), pack(numbers), tuple(map(PeerId, others)))
                for session, (numbers, others) in decided.items()
            ),
            tuple(
                Doubt(Hash(session), pack(numbers), PeerId(decider))
                for session, (numbers, decider) in doubts.items()
            ),
        )

    # Meetings

    def _arrive(self) -> None:
        settings = self._settings
        if self._me not in self._members or self.held.prepared:
            self._call_later(self._pause(), self._arrive)
            return
        self._number = next_number(self._number, self._ahead)
        view = View.of(self._run, self._members)
        found = meetings(settings.kind, view, self._number, settings.group)
        mine = [_crew(one) for one in found if self._me in one.peers]
        if not mine:
            self._call_later(self._pause(), self._arrive)
            return
        self._open = list(mine)
        offering = Offering(view.digest, settings.stretches, _BYTES + settings.padding)
        asked = MeetAsked(self._number, tuple(mine), offering, settings.wait_ms)
        self._later(0.0, asked)

    def do(self, wish: Gossip) -> None:
        match wish:
            case Members():
                self._members = wish.members
            case OpenExchange():
                self._sessions[wish.session] = wish.crew, {}
            case OfferStretch():
                self._offer(wish)
            case TakeStretch():
                self._take(wish)
            case MoveStretch():
                self._move(wish)
            case CloseExchange():
                self._close(wish)
            case DropDoubts():
                self._drop(wish.session, keep=frozenset())
            case ForgetDecision():
                kept = {k: v for k, v in self.held.decided.items() if k[0] != wish.session}
                self.held.decided = kept
                self._write()
            case TakeModel():
                self._later(0.0, ModelTaken(wish.to, wish.sequence, None, 0, 0, None))
            case ModelFetched():
                pass

    def _offer(self, wish: OfferStretch) -> None:
        crew, mine = self._sessions[wish.session]
        whole = self.held.mass[wish.stretch]
        mine[wish.stretch] = whole // 2 if crew.is_directed else whole
        data = (mine[wish.stretch] + (1 << 62)).to_bytes(_BYTES, "big")
        self._later(1.0, Offered(wish.session, wish.stretch, data + bytes(self._settings.padding)))

    def _take(self, wish: TakeStretch) -> None:
        crew, mine = self._sessions[wish.session]
        offers = ((peer, int.from_bytes(data[:_BYTES], "big")) for peer, data in wish.offers)
        known = {peer: value - (1 << 62) for peer, value in offers}
        if wish.stretch in mine:
            known[self._me] = mine[wish.stretch]
        delta = _delta(crew, self._me, known)
        if wish.decider == self._me:
            mine[wish.stretch] = delta
        else:
            self.held.prepared[wish.session, wish.stretch] = delta, wish.decider
            self._write()
        self._later(1.0, Prepared(wish.session, wish.stretch))

    def _move(self, wish: MoveStretch) -> None:
        key = wish.session, wish.stretch
        held = self.held
        if key in held.prepared:
            delta, _ = held.prepared.pop(key)
        else:
            delta = self._sessions[wish.session][1][wish.stretch]
            held.decided[key] = delta, list(wish.others)
        held.mass[wish.stretch] += delta
        self._write()
        self._later(1.0, Moved(wish.session, wish.stretch))

    def _close(self, wish: CloseExchange) -> None:
        self._ahead = max(self._ahead, wish.ahead)
        if wish.is_whole:
            self.whole += 1
        else:
            self.broken += 1
        if wish.session is not None:
            self._sessions.pop(wish.session)
            self._drop(wish.session, keep=frozenset(unpack(wish.doubts)))
        self._open.remove(wish.crew)
        if not self._open:
            self._call_later(self._pause(), self._arrive)

    def _drop(self, session: Hash, keep: frozenset[int]) -> None:
        gone = [k for k in self.held.prepared if k[0] == session and k[1] not in keep]
        for key in gone:
            del self.held.prepared[key]
        if gone:
            self._write()

    def _write(self) -> None:
        self._disk.commit([Write("meta", _KEY, self.held.encode())])


def _crew(meeting: Meeting) -> Crew:
    return Crew(tuple(map(PeerId, meeting.peers)), meeting.directed)


def _delta(crew: Crew, me: PeerId, known: dict[PeerId, int]) -> int:
    """By what mine moves; over all sides these come to nothing."""
    if crew.is_directed:
        sender = crew.peers[0]
        return -known[sender] if me == sender else known[sender]
    total, count = sum(known.values()), len(crew.peers)
    rest = crew.peers.index(me) < total % count
    return total // count + rest - known[me]


def mass_of(helds: Sequence[Held]) -> list[int]:
    """What all hold, with what some have counted and others have yet to move by."""
    totals = [sum(column) for column in zip(*(held.mass for held in helds), strict=True)]
    decided: dict[tuple[bytes, int], Any] = {}
    for held in helds:
        decided.update(held.decided)
    for held in helds:
        for key, (delta, _) in held.prepared.items():
            if key in decided:
                totals[key[1]] += delta
    return totals
