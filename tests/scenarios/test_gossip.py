"""Peers that gossip: an exchange counts on all sides or on none, whatever the network and the
processes do, and nobody waits for somebody who does not come.
"""

import random

import pytest

from node.sim.checks import assert_unblamed
from node.sim.gossiping import Gossiping, Held, held_on, mass_of
from node.sim.network import Link
from node.sim.world import SimPeer, World
from protocol.rules import Rules
from tests.scenarios.test_every_write import die_at_write

KINDS = pytest.mark.parametrize(
    "gossiping",
    [
        Gossiping(),
        Gossiping("ring"),
        Gossiping("hypercube"),
        Gossiping("groups", group=4, stretches=9),
        Gossiping("exponential"),
        Gossiping("random", padding=600_000),
    ],
    ids=lambda one: one.kind,
)


def world_of(
    peers: int, seed: int, gossiping: Gossiping, link: Link | None = None, **rules: int
) -> World:
    chosen = Rules(**{"window_ms": 5_000, "deadline_ceiling_ms": 3_000, **rules})
    return World(peers, seed, chosen, link, gossiping=gossiping)


def held_by(world: World, who: SimPeer) -> Held:
    return held_on(who.disk) or Held(world.mass_at_first(who))


def mass(world: World, *, but: SimPeer | None = None) -> list[int]:
    return mass_of([held_by(world, who) for who in world.peers.values() if who is not but])


def at_first(world: World) -> list[int]:
    columns = zip(*(world.mass_at_first(who) for who in world.peers.values()), strict=True)
    return [sum(column) for column in columns]


def spread(world: World) -> float:
    """How far the first stretch is apart, as part of what it was."""
    now = [held_by(world, who).mass[0] for who in world.peers.values()]
    first = [world.mass_at_first(who)[0] for who in world.peers.values()]
    return (max(now) - min(now)) / (max(first) - min(first))


def met(world: World) -> int:
    return sum(who.gossiper.whole for who in world.up() if who.gossiper is not None)


def settled(world: World) -> bool:
    return all(who.up and not who.peer.doubts for who in world.peers.values())


@KINDS
def test_a_calm_swarm_comes_together(gossiping: Gossiping) -> None:
    """All that is exchanged adds up to what there was, and all are near the mean."""
    world = world_of(8, 3, gossiping)
    world.run_for(60_000)
    assert mass(world) == at_first(world)
    assert met(world) > 8 * 20
    if gossiping.kind not in ("exponential", "random"):  # there, mass is half of the model
        assert spread(world) < 0.01


def test_it_goes_on_while_the_ledger_stands_still() -> None:
    world = world_of(6, 4, Gossiping(), window_ms=3_600_000, deadline_ceiling_ms=3_600_000)
    world.run_for(60_000)
    assert world.rounds() == [0] * 6
    assert met(world) > 6 * 20
    assert spread(world) < 0.02


def test_who_does_not_come_is_not_waited_for() -> None:
    """1. One of six ends for good.  2. Whoever was to meet it goes on alone within its patience.
    3. The others' exchanges go on at their pace, also before the ledger lists it as gone.
    """
    world = world_of(6, 5, Gossiping(), ping_interval_ms=10_000, ping_timeout_ms=9_000)
    world.run_for(20_000)
    world.crash(world.peers["p2"])
    before = met(world)
    world.run_for(10_000)
    assert world.rounds(), "the others are up"
    assert all(world.peers["p2"].id in who.peer.ledger.head.roster for who in world.up())
    assert met(world) - before > 5 * 2


@KINDS
@pytest.mark.parametrize("seed", range(3))
def test_storms_lose_no_mass(gossiping: Gossiping, seed: int) -> None:
    """Loss, doubles, reordering, crashes between any two events, splits: at every moment the sum
    over all disks is what it was; and when it is calm again, nobody is in doubt.
    """
    link = Link(delay_ms=40.0, jitter_ms=400.0, loss=0.15, duplicate=0.1)
    # Nobody is held for dead while it is down: its mass would be gone with it.
    world = world_of(7, seed, gossiping, link, suspicion_intervals=1_000)
    chance, whole = random.Random(seed), at_first(world)
    for _ in range(120):
        world.run_for(chance.randrange(1, 1_500))
        assert mass(world) == whole
        who = chance.choice(list(world.peers.values()))
        if who.up and chance.random() < 0.5:
            world.crash(who)
        elif not who.up:
            world.start(who)
        if chance.random() < 0.05:
            world.network.split(one.id for one in world.peers.values() if chance.random() < 0.4)
        elif chance.random() < 0.2:
            world.network.heal()
    world.network.heal()
    world.network.link = Link()
    for who in world.peers.values():
        if not who.up:
            world.start(who)
    assert world.run_until(lambda: settled(world), 120_000)
    before = met(world)
    world.run_for(20_000)
    assert met(world) > before + 7
    assert mass(world) == whole
    assert_unblamed(world)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("name", ["p0", "p1"])
def test_either_side_ends_at_any_of_its_writes(name: str, *, after: bool) -> None:
    """P3, for exchanges: the pair holds together what it held, and both sides know it."""
    deaths = 0
    for number in range(1, 40):
        world = world_of(2, 11, Gossiping(stretches=6), suspicion_intervals=1_000)
        whole = at_first(world)
        world.run_for(3_000)
        die_at_write(world.peers[name], world.peers[name].disk.commits + number, after=after)
        world.run_for(6_000)
        assert mass(world) == whole
        deaths += not world.peers[name].up
        if not world.peers[name].up:
            world.start(world.peers[name])
        assert world.run_until(lambda w=world: settled(w), 60_000)  # type: ignore[misc]
        totals = zip(*(held_by(world, who).mass for who in world.peers.values()), strict=True)
        assert [sum(column) for column in totals] == whole
        met_before = met(world)
        world.run_for(10_000)
        assert met(world) > met_before, "they meet again"
        assert_unblamed(world)
    assert deaths == 39


@pytest.mark.parametrize("seed", range(8))
def test_what_the_dead_had_counted_goes_with_them(seed: int) -> None:
    """1. One ends for good, at some moment of an exchange.  2. The ledger drops it, and whoever was
    in doubt because of it is not any more.  3. The rest hold what they held without it: what it had
    counted and nobody heard of is gone with it, and all that was heard of stays.
    """
    world = world_of(4, seed, Gossiping(stretches=6), Link(delay_ms=60.0, jitter_ms=60.0))
    chance = random.Random(seed)
    world.run_for(5_000)
    who = chance.choice(list(world.peers.values()))
    die_at_write(who, who.disk.commits + chance.randrange(1, 9), after=chance.random() < 0.5)
    world.run_for(20_000)
    assert not who.up
    gone = held_by(world, who)
    heard = [one for one in gone.decided if not _is_prepared(world, one)]
    left = list(gone.mass)
    for key in gone.decided.keys() - set(heard):
        left[key[1]] -= gone.decided[key][0]

    def is_dropped() -> bool:
        return all(who.id not in other.peer.ledger.head.roster for other in world.up())

    assert world.run_until(is_dropped, 120_000)
    assert world.run_until(lambda: all(not o.peer.doubts for o in world.up()), 60_000)
    world.run_for(5_000)
    rest = mass(world, but=who)
    assert [one + other for one, other in zip(rest, left, strict=True)] == at_first(world)
    assert_unblamed(world)


def _is_prepared(world: World, key: tuple[bytes, int]) -> bool:
    return any(key in held_by(world, other).prepared for other in world.peers.values())
