"""Gossiping peers under virtual time: who works, who waits, who meets whom, and who dies meanwhile.

A peer works for its own time, offers what it has, and meets others: in rounds with those that the
pairing says, once all of them are there; asynchronously with the first of its ranking that is free.
An exchange takes what its slowest line takes, stretch by stretch; what is lost is sent again. In
rounds a peer waits for its exchange; asynchronous ones work on, and what the exchange moves comes
on top of what they have then.

Who dies in the middle of an exchange has exchanged some stretches: they count on both sides. The
others wait for it as long as the rules' patience says, and go on alone with the rest.

Between `part` and `meet_again` the halves of the swarm hold each other for dead, and meet among
themselves. Who waits at such a moment goes on alone; afterwards who is behind skips to the others.
"""

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from torch import Tensor

from node.gossip.consensus import coordinates
from node.gossip.pairings import Meeting, View, next_number, partners
from node.gossip.together import meetings_of
from node.methods import ad_psgd
from node.methods.ad_psgd_config import AdPsgdConfig
from node.methods.registry import AnyGossip
from node.sim.gossip.crowd import Crowd, Offers
from node.sim.gossip.kept import Kept
from node.sim.links import LinkKind

FRAME_BYTES: Final = 101  # of a stretch on its way, beside what it carries
_BYTES_PER_MS: Final = 125.0  # in one Mbit/s
_NEARLY_ALL: Final = 0.9
_TRIES: Final = 50  # of one stretch; links lose less than all


class Phase(Enum):
    AT_WORK = auto()
    WAITING = auto()  # has offered, for others
    GONE = auto()


@dataclass(slots=True)
class Peer:
    row: int
    id: bytes
    link: LinkKind
    slowness: float
    phase: Phase = Phase.AT_WORK
    life: int = 0  # events for an earlier peer in this row are dropped
    round: int = 0
    step: int = 0  # exchange of the round
    offers: Offers | None = None
    left: int = 0  # meetings of this exchange that are not over
    partner: int | None = None  # asynchronous: in an exchange with this row
    exchanges: int = 0
    sent_bytes: int = 0
    waited_ms: float = 0.0
    since_ms: float = 0.0


@dataclass(slots=True)
class Counts:
    exchanges: int = 0  # meetings
    broken: int = 0  # by a death
    alone: int = 0  # rounds of a peer that met nobody
    deaths: int = 0
    joins: int = 0
    lost: int = 0  # stretches that were sent again


@dataclass(slots=True)
class _Held:
    """A meeting in rounds, until all are there, and then until it is over."""

    meeting: Meeting
    here: set[bytes] = field(default_factory=set)
    has_begun: bool = False


class World:
    def __init__(
        self,
        config: AnyGossip,
        crowd: Crowd,
        links: Sequence[LinkKind],  # of each peer
        *,
        seed: int,
        step_ms: float,  # of the fastest peer
        patience_ms: float,
        death: float = 0.0,  # chance that a meeting is the last one of one of its peers
        joins: bool = False,  # after a while somebody new takes the place of each who died
        exchanges_max: int,  # of each peer, which rests then
    ) -> None:
        self.config, self.crowd = config, crowd
        self.now_ms = 0.0
        self.counts = Counts()
        self._chance = random.Random(f"gossip {seed}")
        self._seed = seed.to_bytes(32, "big", signed=True)
        self._work_ms = step_ms * config.inner.attempts_max
        self._patience_ms, self._death, self._joins = patience_ms, death, joins
        self._exchanges_max = exchanges_max
        self._heap: list[tuple[float, int, Peer | None, int, Callable[[], None]]] = []
        self._sequence = 0
        self._names = 0
        self._rows: dict[bytes, int] = {}
        self._seen: dict[int, View] = {}  # whom all of a side know; missing: look again
        self._held: dict[tuple[int, int, int], dict[int, list[_Held]]] = {}  # side, round, step
        self._is_apart = False
        self._ahead = 0  # a round that others were at when all met again
        self.told: dict[int, tuple[list[Tensor], list[Tensor]]] = {}  # by round: sketches
        self._places: dict[int, Tensor] = {}
        self.losses: list[float] = []  # of training, since somebody looked
        self.kept = Kept.of(crowd)
        self.peers = [Peer(row, self._name(row), links[row], 1.0) for row in range(len(links))]
        for peer in self.peers:
            peer.slowness = self._slowness()
            self._begin(peer)

    # For who drives it

    def run(self, exchanges: float) -> bool:
        """Until each peer has had so many, on average. False: nothing happens any more."""
        is_directed = self.config.kind in ("exponential", "random")
        size = 1 if is_directed else self.config.meeting_size  # peers that a meeting counts for
        meetings = round(exchanges * len(self.peers) / size)
        while self.counts.exchanges < meetings:
            if not self._heap:
                return False
            self.now_ms, _, peer, life, act = heapq.heappop(self._heap)
            if peer is None or life == peer.life:
                act()
        return True

    @property
    def alive(self) -> list[Peer]:
        return [peer for peer in self.peers if peer.phase is not Phase.GONE]

    def part(self) -> None:
        """From now on the two halves, by their rows, cannot reach each other."""
        self._is_apart = True
        self._look_anew()

    def meet_again(self) -> None:
        self._is_apart = False
        self._ahead = max((peer.round for peer in self.alive), default=0)
        self._look_anew()

    def half(self, row: int) -> int:
        """Of which a peer is, 0 or 1, whether they are apart or not."""
        return 2 * row // len(self.peers)

    def _look_anew(self) -> None:
        """Meetings that have not begun are none of what all see now."""
        waited_for = [
            held for by_row in self._held.values() for some in by_row.values() for held in some
        ]
        self._held.clear()
        self._seen.clear()
        for held in waited_for:
            if not held.has_begun:
                self._let_go(held)

    def _side(self, peer: Peer) -> int:
        return self.half(peer.row) if self._is_apart else 0

    def _reach(self, one: Peer, other: Peer) -> bool:
        return not (one.link.nat and other.link.nat) and self._side(one) == self._side(other)

    # Events

    def _at(self, ms: float, peer: Peer | None, act: Callable[[], None]) -> None:
        """Of a peer: only if it is still the same one then."""
        self._sequence += 1
        life = 0 if peer is None else peer.life
        heapq.heappush(self._heap, (ms, self._sequence, peer, life, act))

    def _begin(self, peer: Peer) -> None:
        done = peer.exchanges
        if self.config.kind is not None:
            done = peer.round * self.config.exchanges_a_round
        if done >= self._exchanges_max:
            return  # it rests, and meets who asks
        peer.phase, peer.step = Phase.AT_WORK, 0
        self.crowd.begin_work(peer.row, peer.round)
        work_ms = self._work_ms * peer.slowness
        if isinstance(self.config, AdPsgdConfig):
            asked_us = round(work_ms * 1000)
            work_ms = ad_psgd.wait(self.config, self._seed, peer.id, peer.round, asked_us) / 1000
        self._at(self.now_ms + work_ms, peer, lambda: self._ready(peer))

    def _ready(self, peer: Peer) -> None:
        self.kept.stepped(self.crowd.progress(peer.row))
        loss = self.crowd.end_work(peer.row)
        if loss is not None:
            self.losses.append(loss)
        if self.config.kind is None:
            self._ask(peer)
        else:
            self._arrive(peer)

    # Asynchronous

    def _ask(self, peer: Peer) -> None:
        """Find somebody free, and work on meanwhile."""
        if peer.partner is None:
            view = self._view(peer)
            for number, other_id in enumerate(partners(view, peer.id, peer.round)):
                other = self.peers[self._rows[other_id]]
                if (
                    other.partner is None
                    and other.phase is not Phase.GONE
                    and self._reach(peer, other)
                ):
                    self._exchange_with(peer, other)
                    break
                if number >= _TRIES:
                    break
            else:
                self.counts.alone += 1
        peer.round += 1
        self._begin(peer)

    def _exchange_with(self, peer: Peer, other: Peer) -> None:
        both = [peer, other]
        for one, its in ((peer, other), (other, peer)):
            one.partner = its.row
            one.offers = self.crowd.offers(one.row)
        self._hold(both, directed=False, over=self._parted)

    def _parted(self, both: Sequence[Peer]) -> None:
        for one in both:
            one.partner, one.offers = None, None

    # In rounds

    def _arrive(self, peer: Peer) -> None:
        peer.phase, peer.since_ms = Phase.WAITING, self.now_ms
        turn = peer.round * self.config.exchanges_a_round + peer.step
        peer.offers = self.crowd.offers(peer.row, turn)
        if not peer.step:
            self._tell(peer, 0)
        expected = self._expected(peer)
        peer.left = len(expected)
        if not expected:
            self.counts.alone += 1
            self.crowd.alone(peer.row)
            self._onward(peer)
            return
        place = peer.round, peer.step
        self._at(
            self.now_ms + self._patience_ms, peer, lambda: self._give_up(peer, place, expected)
        )
        for held in expected:
            held.here.add(peer.id)
            crew = [self.peers[self._rows[one]] for one in held.meeting.peers if self._waits(one)]
            if len(held.here) == len(crew) == len(held.meeting.peers):
                held.has_begun = True
                self._hold(crew, held.meeting.directed, self._met)

    def _waits(self, member: bytes) -> bool:
        """It is there, and has not died meanwhile."""
        row = self._rows.get(member)
        return row is not None and self.peers[row].phase is Phase.WAITING

    def _expected(self, peer: Peer) -> list[_Held]:
        """This peer's meetings of its round; who belongs to a round is fixed when the first one
        comes to it.
        """
        place = self._side(peer), peer.round, peer.step
        if place not in self._held:
            by_row: dict[int, list[_Held]] = {}
            view = self._view(peer)
            for meeting in meetings_of(self.config, view, peer.round, peer.step):
                crew = [self.peers[self._rows[one]] for one in meeting.peers]
                if all(self._reach(a, b) for a in crew for b in crew if a is not b):
                    held = _Held(meeting)
                    for one in crew:
                        by_row.setdefault(one.row, []).append(held)
            self._held[place] = by_row
            self._held.pop((place[0], peer.round - 8, peer.step), None)
        return [
            held
            for held in self._held[place].get(peer.row, [])
            if peer.id in held.meeting.peers and not held.has_begun
        ]

    def _give_up(self, peer: Peer, place: tuple[int, int], expected: Sequence[_Held]) -> None:
        """Patience is over for meetings that have not begun."""
        if peer.phase is not Phase.WAITING or (peer.round, peer.step) != place:
            return
        for held in expected:
            if not held.has_begun:
                self._let_go(held)

    def _let_go(self, held: _Held) -> None:
        """Nobody waits for it any more."""
        held.has_begun = True
        for member in sorted(filter(self._waits, held.here)):
            row = self._rows[member]
            self.counts.alone += 1
            if not held.meeting.directed:
                self.crowd.alone(row)
            self._met([self.peers[row]])

    def _met(self, crew: Sequence[Peer]) -> None:
        for peer in crew:
            if peer.phase is Phase.WAITING:
                peer.left -= 1
                if not peer.left:
                    self._onward(peer)

    def _onward(self, peer: Peer) -> None:
        peer.waited_ms += self.now_ms - peer.since_ms
        peer.offers = None
        peer.step += 1
        if peer.step < self.config.exchanges_a_round:
            self._arrive(peer)
            return
        self._tell(peer, 1)
        peer.round = next_number(peer.round, self._ahead)
        self._begin(peer)

    # Exchanges

    def _hold(
        self,
        crew: Sequence[Peer],
        directed: bool,
        over: Callable[[Sequence[Peer]], None],  # called with those who are still there
    ) -> None:
        """An exchange begins; all have offered."""
        offers = [peer.offers for peer in crew]
        lives = [peer.life for peer in crew]
        takes_ms = self._takes_ms(crew, directed)
        count = len(self.crowd.stretches)
        victim = self._chance.choice(crew) if self._chance.random() < self._death else None
        done = self._chance.randrange(count + 1) if victim is not None else count

        def end() -> None:
            here = [peer.life == life for peer, life in zip(crew, lives, strict=True)]
            self._commit(crew, offers, done if all(here) else 0, directed, here)
            if victim is not None and all(here):
                self._die(victim)
            over([peer for peer, life in zip(crew, lives, strict=True) if peer.life == life])

        late_ms = self._patience_ms if victim is not None else 0.0
        self._at(self.now_ms + takes_ms * done / count + late_ms, None, end)

    def _commit(
        self,
        crew: Sequence[Peer],
        offers: Sequence[Offers | None],
        done: int,
        directed: bool,
        here: Sequence[bool],
    ) -> None:
        """All move by the first `done` stretches, or nobody does."""
        crowd, kept = self.crowd, self.kept
        assert all(offer is not None for offer in offers), "all have offered"
        rows = [peer.row for peer, is_here in zip(crew, here, strict=True) if is_here]
        before = kept.sum_of(rows)
        for at, peer in enumerate(crew):
            if not here[at]:
                continue
            if directed:
                mine = offers[0] if at == 0 else None
                others = [] if at == 0 else [offers[0]]
            else:
                mine, others = offers[at], [*offers[:at], *offers[at + 1 :]]
            crowd.commit(peer.row, mine, [one for one in others if one is not None], done)
            peer.exchanges += directed is False or at == 0
            if not directed or at == 0:
                whole = sum(self._frame_bytes(number, crew) for number in range(done))
                peer.sent_bytes += (len(crew) - 1) * whole
        kept.exchanged(before, rows)
        self.counts.exchanges += 1

    def _takes_ms(self, crew: Sequence[Peer], directed: bool) -> float:
        """Until the slowest line of these has carried all stretches, those counted that are lost
        and sent again.
        """
        senders = crew[:1] if directed else crew
        others = max(1, len(senders) - 1)  # that a line carries at the same time
        return max(
            self._line_ms(sender.link, receiver.link, others, crew)
            for sender in senders
            for receiver in crew
            if receiver is not sender
        )

    def _frame_bytes(self, stretch: int, crew: Sequence[Peer]) -> int:
        """On the line, at most."""
        return self.crowd.coder.bytes_of(stretch, crew[0].round) + FRAME_BYTES

    def _line_ms(self, up: LinkKind, down: LinkKind, others: int, crew: Sequence[Peer]) -> float:
        rate = min(up.up_mbit, down.down_mbit) * _BYTES_PER_MS / others
        delay_ms = (up.delay_ms + down.delay_ms) / 2
        loss = (up.loss + down.loss) / 2
        total_ms = delay_ms
        for number in range(len(self.crowd.stretches)):
            tries = 1
            while loss and tries < _TRIES and self._chance.random() < loss:
                tries += 1
            self.counts.lost += tries - 1
            size = self._frame_bytes(number, crew)
            total_ms += tries * size / rate + (tries - 1) * 2 * delay_ms
        return total_ms

    # Telemetry

    def _tell(self, peer: Peer, when: int) -> None:
        """A sketch of its model before (0) or after (1) a round's exchanges."""
        told = self.told.setdefault(peer.round, ([], []))
        if peer.round not in self._places:
            self._places[peer.round] = coordinates(self.crowd.size, self._seed, peer.round)
        told[when].append(self.crowd.shown[peer.row][self._places[peer.round]])

    def last_sketches(self) -> tuple[list[Tensor], list[Tensor]] | None:
        """Before and after the last round that nearly all have told of; older ones are dropped."""
        whole = [
            round
            for round, (_, after) in self.told.items()
            if len(after) >= max(2, _NEARLY_ALL * len(self.alive))
        ]
        if not whole:
            return None
        last = max(whole)
        found = self.told[last]
        for round in [round for round in self.told if round <= last]:
            del self.told[round]
            self._places.pop(round, None)
        return found

    # Coming and going

    def _die(self, peer: Peer) -> None:
        self.counts.deaths += 1
        self.counts.broken += 1
        self.kept.died(peer.row)
        peer.phase = Phase.GONE
        peer.life += 1
        peer.partner, peer.offers = None, None
        del self._rows[peer.id]
        self._seen.clear()
        if self._joins:
            wait_ms = self._work_ms * (1 + 9 * self._chance.random())
            self._at(self.now_ms + wait_ms, peer, lambda: self._join(peer))

    def _join(self, peer: Peer) -> None:
        """Somebody new, in the row of who died, with the model of somebody."""
        side = [one for one in self.alive if self._side(one) == self._side(peer)]
        like = self._chance.choice(side) if side else None
        self.counts.joins += 1
        peer.life += 1
        peer.id = self._name(peer.row)
        peer.slowness = self._slowness()
        peer.round = max((one.round for one in side), default=0)
        self.crowd.newcomer(peer.row, None if like is None else like.row)
        self.kept.joined(peer.row)
        peer.phase = Phase.AT_WORK
        self._begin(peer)

    # Names

    def _name(self, row: int) -> bytes:
        self._names += 1
        name = self._names.to_bytes(32, "big")
        self._rows[name] = row
        self._seen.clear()
        return name

    def _view(self, peer: Peer) -> View:
        side = self._side(peer)
        if side not in self._seen:
            known = (n for n, row in self._rows.items() if self._side(self.peers[row]) == side)
            self._seen[side] = View(self._seed, tuple(sorted(known)))
        return self._seen[side]

    def _slowness(self) -> float:
        """A third of all peers take a fifth longer than the fastest, and few take twice as long."""
        return 1.0 + self._chance.expovariate(5.0)
