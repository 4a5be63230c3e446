"""What a swarm would do, before anyone joins: simulate it, and say what was seen.

All figures are counted in the simulation (P7). Its peers run the real protocol over links that are
drawn for each; only the training is a stand-in: a payload of the right size after the right time.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from statistics import median, quantiles
from typing import Final

from pydantic import BaseModel, ConfigDict

from node.sim.costs import Costs
from node.sim.faults import Storm, Weather
from node.sim.links import LinkKind, deal
from node.sim.stub import NAME_BYTES, Payloads
from node.sim.world import SimPeer, World
from protocol.codec import decode
from protocol.ids import PeerId
from protocol.messages import Contribute
from protocol.rules import Rules

_STUCK_ROUNDS: Final = 20  # a round that takes so many windows and ceilings is given up
_BITS_PER_BYTE_MS: Final = 8e-3  # Mbit/s in one byte per millisecond


class _Figures(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Traffic(_Figures):
    """Bytes per peer and round, headers included."""

    mean: float
    max: float
    max_peer: str
    max_peer_link: str


class Work(_Figures):
    """In units: what one peer offers for one round is one unit."""

    made: int
    committed: int
    in_hand: int  # made, and on its way into a later round
    lost: int  # made, and ended with a process that was killed before it was on disk
    late_share: float  # of contributions: missed their own round


class Report(_Figures):
    """What `peer simulate` prints."""

    peers: int
    rounds: int
    rounds_asked: int
    seed: int
    faults: bool
    quorum: str
    links: dict[str, int]  # kind -> peers
    payload_bytes: int
    window_s: float
    virtual_s: float
    round_s_median: float | None
    round_s_p90: float | None
    spread_s_median: float | None  # from a round's closing until the last peer has its entry
    sent_per_round: Traffic
    received_per_round: Traffic
    control_bytes_per_s: float  # sent per peer, besides contributions and each entry once
    sent_bytes_per_s: dict[str, float]  # per peer, by kind of message
    late_share_by_link: dict[str, float]  # of the rounds of peers with such a link
    rounds_undone: float  # per peer: closed, then given up for a heavier ledger
    work: Work
    members: int
    up: int
    digests_equal: bool
    digest: str | None  # of the newest state
    bottleneck: str
    wall_s: float
    events: int
    events_per_s: float


@dataclass(frozen=True, slots=True)
class Progress:
    rounds: int
    rounds_asked: int
    events_per_s: float
    left_s: float | None  # of wall time, at the pace so far; None before the first round


@dataclass(slots=True)
class _Rounds:
    """When rounds close: at the first peer that has the entry, and at the last."""

    world: World
    opened_ms: list[float] = field(default_factory=lambda: [0.0])
    last_ms: list[float] = field(default_factory=lambda: [0.0])
    _seen: dict[str, int] = field(default_factory=dict)

    def after_event(self, who: SimPeer) -> None:
        if not who.up:
            return
        round = who.peer.ledger.head.round
        if self._seen.get(who.name, 0) >= round:
            return
        self._seen[who.name] = round
        while len(self.opened_ms) <= round:
            self.opened_ms.append(self.world.now_ms)
            self.last_ms.append(self.world.now_ms)
        self.last_ms[round] = max(self.last_ms[round], self.world.now_ms)

    @property
    def closed(self) -> int:
        return len(self.opened_ms) - 1

    def took_s(self) -> list[float]:
        pairs = zip(self.opened_ms, self.opened_ms[1:], strict=False)
        return [(end - start) / 1000 for start, end in pairs]

    def spread_s(self) -> list[float]:
        """The newest round is left out: it may still be on its way."""
        pairs = zip(self.opened_ms[1:-1], self.last_ms[1:-1], strict=True)
        return [(last - first) / 1000 for first, last in pairs]


def churn(peers: int) -> Weather:
    """Machines that people use: each peer's process dies every half hour or so and comes back
    within half a minute, pauses as often, and every five minutes half of the network is cut off for
    some seconds.
    """
    return Weather(
        peers=peers,
        link=LinkKind(name="unused", down_mbit=1, up_mbit=1, delay_ms=0).link(),
        crash=min(1.0, peers / 1_800),
        crash_at_write=0.0,
        restart_after_ms=30_000.0,
        pause=min(1.0, peers / 1_800),
        split=1 / 300,
        heal_after_ms=15_000.0,
    )


def simulate(
    *,
    peers: int,
    rounds: int,
    rules: Rules,
    links: Sequence[LinkKind],
    seed: int = 0,
    payload_bytes: int = 67,
    spread: float = 0.1,  # work takes the window, give or take this share of it
    faults: bool = False,
    tell: Callable[[Progress], None] = lambda progress: None,
) -> Report:
    """Run a swarm for `rounds` rounds. `tell` is called about twice a second."""
    started = time.perf_counter()
    kinds = deal(links, peers, seed)
    costs = Costs()
    world = _world(peers, rules, kinds, seed, payload_bytes, spread, costs.on_frame)
    seen = _Rounds(world)
    world.on_event, world.on_note = seen.after_event, costs.on_note
    storm = Storm(world, churn(peers), Random(f"faults {seed}")) if faults else None
    told = started
    patience_ms = _STUCK_ROUNDS * (rules.window_ms + rules.deadline_ceiling_ms)
    while seen.closed < rounds and world.now_ms - seen.opened_ms[-1] < patience_ms:
        world.run_for(1_000)
        if storm is not None:
            storm.second()
        now = time.perf_counter()
        if now - told >= 0.5:
            told = now
            tell(_progress(world, seen.closed, rounds, now - started))
    world.run_for(rules.window_ms / 2)  # the last entry reaches everybody
    facts = _Facts(world, seen, costs, dict(zip(world.peers, kinds, strict=True)))
    virtual_s = world.now_ms / 1000
    wall_s = time.perf_counter() - started
    return Report(
        peers=peers,
        rounds=seen.closed,
        rounds_asked=rounds,
        seed=seed,
        faults=faults,
        quorum=rules.quorum.value,
        links={kind.name: sum(one == kind for one in kinds) for kind in links},
        payload_bytes=payload_bytes,
        window_s=rules.window_ms / 1000,
        virtual_s=virtual_s,
        round_s_median=median(seen.took_s()) if seen.closed else None,
        round_s_p90=_p90(seen.took_s()),
        spread_s_median=median(seen.spread_s()) if seen.closed > 1 else None,
        sent_per_round=facts.traffic(world.network.sent_bytes),
        received_per_round=facts.traffic(world.network.received_bytes),
        control_bytes_per_s=facts.control_bytes() / peers / virtual_s,
        sent_bytes_per_s={
            kind: sent / peers / virtual_s for kind, sent in costs.bytes_by_kind.most_common()
        },
        late_share_by_link=facts.late_share_by_link(),
        rounds_undone=costs.undone.total() / peers,
        work=facts.work(),
        members=len(facts.ahead.peer.ledger.head.roster) if facts.ahead else 0,
        up=len(world.up()),
        digests_equal=facts.digests_equal(),
        digest=f"{facts.ahead.state:016x}" if facts.ahead else None,
        bottleneck=facts.bottleneck(),
        wall_s=wall_s,
        events=world.events,
        events_per_s=world.events / wall_s,
    )


def _world(
    peers: int,
    rules: Rules,
    kinds: Sequence[LinkKind],
    seed: int,
    payload_bytes: int,
    spread: float,
    on_frame: Callable[[bytes], None],
) -> World:
    def work_ms(chance: Random, window_ms: float) -> float:
        return window_ms * (1 - spread + 2 * spread * chance.random())

    payloads = Payloads(unit_bytes=max(NAME_BYTES, payload_bytes))
    links = {kind: kind.link() for kind in kinds}  # one object a kind: ways between are found once
    world = World(
        peers,
        seed,
        rules,
        work_ms=work_ms,
        payloads=payloads,
        own_links=[links[kind] for kind in kinds],
        on_frame=on_frame,
    )
    world.keep_notes = False
    return world


def _progress(world: World, closed: int, rounds: int, wall_s: float) -> Progress:
    left = wall_s / closed * (rounds - closed) if closed else None
    return Progress(closed, rounds, world.events / wall_s, left)


def _payload_of(record: bytes) -> bytes:
    message = decode(record)
    assert isinstance(message, Contribute)
    return message.payload


def _p90(values: list[float]) -> float | None:
    return quantiles(values, n=10)[-1] if len(values) > 1 else None


@dataclass(slots=True)
class _Facts:
    """What the world looks like in the end."""

    world: World
    seen: _Rounds
    costs: Costs
    kinds: dict[str, LinkKind]

    @property
    def ahead(self) -> SimPeer | None:
        """Somebody with the newest state."""
        return max(self.world.up(), key=lambda who: who.peer.ledger.head.round, default=None)

    def traffic(self, counted: dict[PeerId, int]) -> Traffic:
        rounds = max(1, self.seen.closed)
        bytes_of = {who.name: counted.get(who.id, 0) / rounds for who in self.world.peers.values()}
        most = max(bytes_of, key=lambda name: bytes_of[name])
        mean = sum(bytes_of.values()) / len(bytes_of)
        return Traffic(
            mean=mean, max=bytes_of[most], max_peer=most, max_peer_link=self.kinds[most].name
        )

    def control_bytes(self) -> int:
        return self.costs.control_bytes(self.world, self.ahead) if self.ahead else 0

    def late_share_by_link(self) -> dict[str, float]:
        late, having = Counter[str](), Counter[str]()
        for name, kind in self.kinds.items():
            late[kind.name] += self.costs.late[name]
            having[kind.name] += 1
        rounds = max(1, self.seen.closed)
        return {kind: late[kind] / rounds / having[kind] for kind in sorted(having)}

    def work(self) -> Work:
        world = self.world
        made = {unit for who in world.peers.values() for unit in who.made}
        in_hand: set[bytes] = set()
        for who in world.up():
            assert who.worker is not None
            made.update(who.worker.made)
            in_hand.update(who.worker.in_hand())
        for who in world.peers.values():
            for _, raw in who.disk.scan("outbox"):
                in_hand.update(world.payloads.units(_payload_of(raw)))
        chain = self.ahead.worker.merged if self.ahead and self.ahead.worker else set()
        committed = {unit for unit in made if world.commits.committed(unit, chain)}
        in_hand -= committed
        return Work(
            made=len(made),
            committed=len(committed),
            in_hand=len(in_hand),
            lost=len(made) - len(committed) - len(in_hand),
            late_share=world.counts["late"] / max(1, len(made)),
        )

    def digests_equal(self) -> bool:
        """P1: one state for each round that somebody stands at."""
        states: dict[int, set[int]] = {}
        for who in self.world.up():
            states.setdefault(who.peer.ledger.head.round, set()).add(who.state)
        return all(len(held) == 1 for held in states.values())

    def bottleneck(self) -> str:
        if not self.seen.closed:
            return "no round closed"
        window_s = self.world.rules.window_ms / 1000
        took_s = median(self.seen.took_s())
        extra = took_s - window_s
        busy = self._busiest()
        if busy is not None and busy[0] > 0.5:
            share, who, way, mbit = busy
            return (
                f"the {way}link of {who} ({self.kinds[who].name}, {mbit:.0f} Mbit/s) "
                f"is busy {share:.0%} of the time"
            )
        if extra < 0.15 * window_s:
            return f"the work itself: {min(1.0, window_s / took_s):.0%} of a round is the window"
        spread_s = median(self.seen.spread_s()) if self.seen.closed > 1 else 0.0
        if spread_s > extra / 2:
            return f"passing the entry on: {spread_s:.1f} s until the last peer has it"
        return f"waiting for stragglers: {extra:.1f} s past the window of {window_s:.1f} s"

    def _busiest(self) -> tuple[float, str, str, float] | None:
        """Share of the time, peer, direction and rate of the link that is used most."""
        network, best = self.world.network, None
        for who in self.world.peers.values():
            link = network.link_of(who.id)
            ways = (
                ("up", network.sent_bytes, link.up_bytes_per_ms),
                ("down", network.received_bytes, link.down_bytes_per_ms),
            )
            for way, counted, rate in ways:
                if rate and self.world.now_ms:
                    share = counted.get(who.id, 0) / rate / self.world.now_ms
                    if best is None or share > best[0]:
                        best = (share, who.name, way, rate * _BITS_PER_BYTE_MS)
        return best
