"""P4: clocks that leap, machines that sleep, disks that take their time."""

import pytest

from node.sim.checks import Safety
from node.sim.world import World
from protocol.rules import Quorum, Rules
from tests.scenarios.telling import (
    assert_all_well,
    assert_moves_on,
    closer_of_open_round,
    deadline_ms,
    head,
    units_on_chain,
)

BOTH = pytest.mark.parametrize("quorum", list(Quorum))
MINUTE = 60_000


def swarm(peers: int, seed: int, quorum: Quorum) -> World:
    rules = Rules(quorum=quorum, window_ms=1_000, deadline_ceiling_ms=3_000)
    world = World(peers, seed, rules)
    world.on_event = Safety(world).after_event
    return world


@BOTH
@pytest.mark.parametrize("leap_ms", [1_000, 30_000, 10 * MINUTE])
def test_clocks_leap_ahead(leap_ms: int, quorum: Quorum) -> None:
    """P1, P3, P4: one clock after the other leaps; rounds go on, nobody is lost for good.

    1. The closer's clock leaps, then, ten seconds apart, two others'.
    2. Rounds close all the while.
    """
    world = swarm(5, 1, quorum)
    world.run_for(5_000)
    for who in (closer_of_open_round(world), world.peers["p1"], world.peers["p3"]):
        world.jump(who, leap_ms)
        assert_moves_on(world, 3 * deadline_ms(world))
        world.run_for(10_000)
    assert_all_well(world)


@BOTH
def test_a_clock_stands_still(quorum: Quorum) -> None:
    """P3, P4: a clock that is set back stands still until it is where it was; others do not."""
    world = swarm(5, 2, quorum)
    world.run_for(5_000)
    world.jump(closer_of_open_round(world), -30_000)
    assert_moves_on(world, 2 * deadline_ms(world), rounds=3)
    assert_all_well(world)


@BOTH
def test_a_machine_sleeps_for_ten_minutes(quorum: Quorum) -> None:
    """P3, P4: by its own clock no time has passed, and everything it knows is old.

    1. p2's lid is closed in the middle of a round. The others drop it in time, and go on.
    2. It wakes up: it catches up, comes back, and its work counts.
    """
    world = swarm(4, 3, quorum)
    world.run_for(5_400)
    sleeper, before = world.peers["p2"], head(world)
    world.suspend(sleeper, 10 * MINUTE)
    world.run_for(10 * MINUTE)
    assert head(world) > before + 300
    world.run_for(30_000)
    assert_all_well(world)
    assert sleeper.worker is not None
    assert set(sleeper.worker.made[:-1]) <= units_on_chain(world, "p0") | sleeper.worker.in_hand()


def test_ten_minutes_without_a_majority_then_all_start_again() -> None:
    """P4, `quorum = "majority"`: what was promised late in a long outage binds all after it.

    1. Five peers, no three of which reach each other; ballot after ballot fails.
    2. The power fails. All start again, and the network is whole.
    3. The round closes soon, though its next ballots were due ten minutes after it opened.
    """
    world = swarm(5, 5, Quorum.MAJORITY)
    world.run_for(5_000)
    for pair in (["p0", "p1"], ["p2", "p3"]):
        world.network.split(world.peers[name].id for name in pair)
    world.run_for(5_000)
    stuck = head(world)
    world.run_for(10 * MINUTE)
    assert head(world) == stuck
    for who in world.up():
        world.crash(who)
    world.network.heal()
    for who in world.peers.values():
        world.start(who)
    assert_moves_on(world, MINUTE)
    assert_all_well(world)


@BOTH
@pytest.mark.parametrize("commit_ms", [20.0, 300.0])
def test_slow_disks(commit_ms: float, quorum: Quorum) -> None:
    """P1, P3, P4: two of five have disks that take long for a commit; rounds go on, and their work
    is on the ledger.
    """
    world = swarm(5, 6, quorum)
    slow = [world.peers["p1"], world.peers["p4"]]
    for who in slow:
        who.commit_ms = commit_ms
    world.run_for(60_000)
    assert head(world) >= 20
    for who in slow:
        assert who.peer.is_member
        assert who.worker is not None
        assert units_on_chain(world, "p0") & set(who.worker.made)
        who.commit_ms = 0.0
    assert_all_well(world)
