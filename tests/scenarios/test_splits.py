"""P5: splits heal. P2: a round is one set, on whichever side it was closed."""

import pytest

from node.sim.checks import Safety
from node.sim.network import Link
from node.sim.world import World
from protocol.rules import Quorum, Rules
from tests.scenarios.telling import assert_all_well, head, notes_called, units_on_chain

BOTH = pytest.mark.parametrize("quorum", list(Quorum))


def swarm(peers: int, seed: int, quorum: Quorum, link: Link | None = None) -> World:
    rules = Rules(quorum=quorum, window_ms=1_000, deadline_ceiling_ms=3_000)
    world = World(peers, seed, rules, link)
    world.on_event = Safety(world).after_event
    return world


def rounds_of(world: World, names: list[str]) -> list[int]:
    return [world.peers[name].peer.ledger.head.round for name in names]


@pytest.mark.parametrize("seconds", [20, 200])
def test_a_minority_waits_when_the_run_votes(seconds: int) -> None:
    """P5, `quorum = "majority"`: the smaller side stands still, and catches up when it is back.

    1. Two of five are cut off, for less or more time than it takes to be held for dead.
    2. Three go on. Two close nothing.
    3. Healed: one ledger, which is the three's; the two's work is on it in the end.
    """
    world = swarm(5, 1, Quorum.MAJORITY)
    world.run_for(5_000)
    few, most = ["p1", "p4"], ["p0", "p2", "p3"]
    world.network.split(world.peers[name].id for name in few)
    world.run_for(5_000)  # what was under way when the cut came
    before = rounds_of(world, few)
    world.run_for(seconds * 1_000)
    assert rounds_of(world, few) == before
    assert min(rounds_of(world, most)) >= max(before) + seconds // 4
    world.network.heal()
    assert_all_well(world)


def test_halves_fork_and_heal() -> None:
    """P3, P5, `quorum = "any"`: both sides go on; then the heavier ledger is everybody's.

    1. Two of five are cut off. Both sides close rounds, long enough to drop each other.
    2. Healed: the two switch to the three's ledger, and say so.
    3. What the two did while they were apart is committed late; nothing counts twice.
    """
    world = swarm(5, 2, Quorum.ANY)
    world.run_for(5_000)
    few, most = ["p1", "p4"], ["p0", "p2", "p3"]
    world.network.split(world.peers[name].id for name in few)
    before = head(world)
    world.run_for(120_000)
    assert min(rounds_of(world, few)) > before + 10
    assert min(rounds_of(world, most)) > before + 10
    apart = units_on_chain(world, "p1") - units_on_chain(world, "p0")
    assert len(apart) > 20
    heavier = world.peers["p0"].peer.ledger.head
    world.network.heal()
    assert_all_well(world)
    assert notes_called(world, "switched", "p1") + notes_called(world, "switched", "p4") >= 2
    assert notes_called(world, "switched", "p0") == 0
    assert world.peers["p1"].peer.ledger.head.weight > heavier.weight
    world.run_for(10_000)  # members again only after the first rounds: their work comes after that
    assert apart <= units_on_chain(world, "p1")


def test_halves_that_part_before_the_first_round() -> None:
    """P3, P5: work of round 0 is not lost either, whichever ledger is the heavier in the end."""
    world = swarm(5, 6, Quorum.ANY)
    world.network.split(world.peers[name].id for name in ("p1", "p4"))
    world.run_for(20_000)
    apart = units_on_chain(world, "p1")
    assert len(apart) > 5
    world.network.heal()
    assert_all_well(world)
    world.run_for(10_000)
    assert apart <= units_on_chain(world, "p0")


@BOTH
def test_a_split_into_pieces(quorum: Quorum) -> None:
    """P5: four pieces, of which none has most; then two pieces; then one."""
    world = swarm(8, 3, quorum)
    world.run_for(5_000)
    names = list(world.peers)
    for at in range(2, 8, 2):
        world.network.split(world.peers[name].id for name in names[at : at + 2])
    world.run_for(40_000)
    world.network.heal()
    world.network.split(world.peers[name].id for name in names[:3])
    world.run_for(40_000)
    world.network.heal()
    assert_all_well(world)


@BOTH
def test_messages_come_twice_and_in_any_order(quorum: Quorum) -> None:
    """P1, P2, P3: half of all messages are doubled, and later ones overtake earlier ones."""
    world = swarm(6, 4, quorum, Link(delay_ms=5, jitter_ms=700, duplicate=0.5))
    world.run_for(90_000)
    assert min(world.rounds()) >= 20
    world.network.link = Link()
    assert_all_well(world)


@BOTH
def test_every_fifth_message_is_lost(quorum: Quorum) -> None:
    """P1, P3, P4: the transport promises nothing; the protocol repeats what matters."""
    world = swarm(6, 5, quorum, Link(loss=0.2))
    world.run_for(90_000)
    assert min(world.rounds()) >= 15
    world.network.link = Link()
    assert_all_well(world)
