"""Bad links: peers that nobody can dial, ears without a mouth, delays with a heavy tail."""

import random
from statistics import median

import pytest

from node.sim.checks import Safety
from node.sim.network import FRAME_OVERHEAD_BYTES, SMALL_BYTES, TAIL_MAX, Link, Network
from node.sim.world import World
from protocol.ids import PeerId
from protocol.rules import Quorum, Rules
from tests.scenarios.telling import (
    assert_all_well,
    everyone_is_member,
    head,
    roster_of,
    units_on_chain,
)

BOTH = pytest.mark.parametrize("quorum", list(Quorum))
A, B, C = (PeerId(bytes([letter]) * 32) for letter in b"abc")


def swarm(peers: int, seed: int, quorum: Quorum, hidden: int = 0, **options: int) -> World:
    """The last `hidden` of them are behind a NAT."""
    links = [Link(nat=number >= peers - hidden) for number in range(peers)]
    rules = Rules(quorum=quorum, window_ms=1_000, deadline_ceiling_ms=3_000)
    world = World(peers, seed, rules, own_links=links, **options)
    world.on_event = Safety(world).after_event
    return world


def test_who_is_hidden_is_reached_over_its_own_connection() -> None:
    """A NAT, as the network sees it: nobody gets in before it has called out, nor after a restart;
    two hidden peers never meet.
    """
    network = Network(Link(), random.Random(1))
    network.own_links = {B: Link(nat=True), C: Link(nat=True)}

    def gets_through(sender: PeerId, to: PeerId) -> bool:
        return bool(network.arrivals(sender, to, 100, 0.0))

    assert not gets_through(A, B)
    assert gets_through(B, A)
    assert gets_through(A, B)
    assert not gets_through(A, C)
    assert not gets_through(B, C)
    assert not gets_through(C, B)
    for restarted in (A, B):
        network.reach.restarted(restarted)
        assert not gets_through(A, B)
        assert gets_through(B, A)
        assert gets_through(A, B)
    network.cut([A], [B])  # no handshake without an answer
    network.reach.restarted(B)
    assert gets_through(B, A)
    network.heal()
    assert not gets_through(A, B)
    assert network.joined(A, B)
    assert not network.joined(B, C)


def test_a_heavy_tail_is_mostly_short() -> None:
    """Half of the delays are below the figure, one in a hundred is above ten times as much."""
    chance = random.Random(2)
    link = Link(jitter_ms=20.0, heavy_tail=True)
    late = sorted(link.late_ms(chance) for _ in range(20_000))
    assert median(late) == pytest.approx(20.0, rel=0.05)
    assert late[int(0.99 * len(late))] == pytest.approx(200.0, rel=0.15)
    assert late[-1] <= TAIL_MAX * 20.0


def test_a_slow_sender_does_not_hold_up_the_others() -> None:
    """Its message takes ten seconds to come in; until then the receiver's line is free. Two that
    come in at once share it.
    """
    size = 10_000 - FRAME_OVERHEAD_BYTES
    network = Network(Link(delay_ms=0, jitter_ms=0), random.Random(3))
    network.own_links = {
        A: Link(delay_ms=0, jitter_ms=0),
        B: Link(delay_ms=0, jitter_ms=0, up_bytes_per_ms=1.0),
        C: Link(delay_ms=0, jitter_ms=0, down_bytes_per_ms=10.0),
    }
    times = [network.arrivals(sender, C, size, 0.0) for sender in (B, A, A)]
    assert times == [[11_000.0], [1_000.0], [2_000.0]]
    assert network.arrivals(A, C, size, 9_500.0) == [11_500.0]  # what B sent comes in between


def test_a_line_carries_no_more_than_its_rate() -> None:
    """Whoever sends, and in whatever order it comes in."""
    chance = random.Random(4)
    network = Network(Link(), chance)
    network.own_links = {
        A: Link(delay_ms=50, jitter_ms=500, up_bytes_per_ms=7.0),
        B: Link(delay_ms=5, jitter_ms=50, up_bytes_per_ms=300.0),
        C: Link(down_bytes_per_ms=20.0),
    }
    carried: list[tuple[float, int]] = []
    for number in range(300):
        size = chance.randrange(SMALL_BYTES, 60_000)
        (through,) = network.arrivals(chance.choice([A, B]), C, size, 100.0 * number)
        carried.append((through, size + FRAME_OVERHEAD_BYTES))
    total, first = 0, min(through for through, _ in carried)
    for through, size in sorted(carried)[1:]:
        total += size
        assert total <= 20.0 * (through - first) + 60_000 * 2


@BOTH
def test_a_member_that_nobody_can_dial(quorum: Quorum) -> None:
    """P1, P3, P4: it joins, works, closes rounds like any other, and comes back after a crash."""
    world = swarm(5, 1, quorum, hidden=1, founders=1)
    hidden = world.peers["p4"]
    assert world.run_until(everyone_is_member(world), 60_000)
    world.run_for(30_000)
    closed_by_it = [who for _, who, note in world.notes if note.event == "closing"].count("p4")
    assert closed_by_it > 0
    assert world.counts["departed"] == 0
    assert hidden.worker is not None
    assert len(units_on_chain(world, "p0") & set(hidden.worker.made)) > 15
    world.crash(hidden)
    world.run_for(3_000)
    world.start(hidden)
    assert_all_well(world)


@BOTH
def test_one_that_hears_but_is_not_heard(quorum: Quorum) -> None:
    """P3, P4: p2 hears everybody and nobody hears it.

    1. The rest close rounds without it, and drop it from the list in time.
    2. Healed, it is a member again, and its work is not lost.
    """
    world = swarm(5, 2, quorum)
    world.run_for(5_000)
    mute = world.peers["p2"]
    world.network.cut([mute.id], [who.id for who in world.up() if who is not mute])
    rest, before = ("p0", "p1", "p3", "p4"), head(world)

    def dropped_it() -> bool:
        return all("p2" not in roster_of(world, name) for name in rest)

    assert world.run_until(dropped_it, 240_000)
    assert min(world.peers[name].peer.ledger.head.round for name in rest) >= before + 10
    world.network.heal()
    assert_all_well(world)
    assert "p2" in roster_of(world, "p0")


@BOTH
def test_one_that_is_heard_but_hears_nothing(quorum: Quorum) -> None:
    """P3, P4, P5: the other way round; the others' rounds go on, and nothing forks for good."""
    world = swarm(5, 3, quorum)
    world.run_for(5_000)
    deaf = world.peers["p3"]
    before = head(world)
    world.network.cut([who.id for who in world.up() if who is not deaf], [deaf.id])
    world.run_for(60_000)
    others = [who for who in world.up() if who is not deaf]
    assert min(who.peer.ledger.head.round for who in others) >= before + 20
    world.network.heal()
    assert_all_well(world)


@BOTH
def test_delays_with_a_heavy_tail(quorum: Quorum) -> None:
    """P1, P3, P4: now and then a message takes seconds; rounds do not wait for it."""
    rules = Rules(quorum=quorum, window_ms=1_000, deadline_ceiling_ms=3_000)
    world = World(8, 4, rules, Link(delay_ms=10, jitter_ms=40, heavy_tail=True))
    world.on_event = Safety(world).after_event
    world.run_for(90_000)
    assert min(world.rounds()) >= 45
    world.network.link = Link()
    assert_all_well(world)
