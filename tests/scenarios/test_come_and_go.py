"""Peers join, leave, are dropped and come back, while rounds run."""

from node.sim.world import SimDisk, World
from protocol.rules import Rules
from tests.scenarios.telling import (
    assert_all_well,
    assert_moves_on,
    deadline_ms,
    everyone_is_member,
    head,
    roster_of,
    units_on_chain,
)

RULES = Rules(window_ms=1_000, deadline_ceiling_ms=3_000)


def test_joiners_come_while_rounds_run() -> None:
    """P1, P4: rounds do not wait for newcomers, and newcomers hold the same state.

    1. One peer founds a run and trains alone.
    2. Nine more come, one a second, through one another.
    3. All are members; each has work on the ledger.
    """
    world = World(1, seed=1, rules=RULES)
    world.run_for(10_000)
    assert head(world) >= 7
    for number in range(1, 10):
        before = head(world)
        world.join(f"p{number}", contact=f"p{number - 1}")
        world.run_for(1_000)
        assert head(world) >= before
    assert world.run_until(everyone_is_member(world), 60_000)
    assert_all_well(world)
    committed = units_on_chain(world, "p0")
    for who in world.up():
        assert who.worker is not None
        assert committed & set(who.worker.made), f"{who.name} never contributed"


def test_two_hundred_rounds_are_caught_up_by_a_newcomer() -> None:
    """P1: a newcomer reads the whole ledger and stands where the others stand."""
    world = World(2, seed=2, rules=RULES)
    assert world.run_until_round(200)
    late = world.join("late")
    assert world.run_until(lambda: late.peer.is_member, 30_000)
    assert_all_well(world)


def test_dropped_and_back_without_an_invite() -> None:
    """P3, P4: the ledger remembers who was a member.

    1. p3 dies and is dropped from the list of members.
    2. Its process starts again, with its disk and no invite.
    3. It is a member again, and what it had on disk is not lost.
    """
    world = World(5, seed=3, rules=RULES)
    world.run_for(5_000)
    gone = world.peers["p3"]
    assert gone.token is None
    world.crash(gone)
    assert world.run_until(lambda: "p3" not in roster_of(world, "p0"), 240_000)
    world.start(gone)
    assert world.run_until(lambda: gone.peer.is_member, 60_000)
    assert_all_well(world)


def test_who_leaves_is_not_waited_for() -> None:
    """P4: a peer that says goodbye is off the list within two rounds; none is late for it."""
    world = World(5, seed=4, rules=RULES)
    world.run_for(10_000)
    world.stop(world.peers["p2"])
    assert world.run_until(lambda: not world.peers["p2"].up, 5_000)
    assert_moves_on(world, deadline_ms(world), rounds=2)
    assert "p2" not in roster_of(world, "p0")
    assert world.peers["p2"].halted is None or world.peers["p2"].halted.clean
    assert_all_well(world)


def test_everybody_restarts_where_they_were() -> None:
    """P3: all processes are killed at one instant; all go on from their disks, digests the same.

    1. Eight peers; the power fails everywhere, in the middle of a round.
    2. All start again. Nobody is behind where it was, and the states agree with the ledger.
    """
    world = World(8, seed=5, rules=RULES)
    world.run_for(12_400)
    stood = {who.name: who.peer.ledger.head.round for who in world.up()}
    states = {who.peer.ledger.head.round: who.state for who in world.up()}
    for who in world.up():
        world.crash(who)
    world.run_for(3_000)
    for who in world.peers.values():
        world.start(who)
        assert who.peer.ledger.head.round == stood[who.name]
        assert who.state == states[stood[who.name]]
    assert_moves_on(world, 2 * deadline_ms(world))
    assert_all_well(world)


def test_the_last_two_leave_and_one_returns() -> None:
    """P4: a run whose peers have all stopped is on their disks; any one of them takes it up."""
    world = World(2, seed=6, rules=RULES)
    world.run_for(5_000)
    for who in list(world.up()):
        world.stop(who)
        world.run_for(5_000)
    assert not world.up()
    world.start(world.peers["p1"])
    assert_moves_on(world, 600_000, rounds=10)
    world.start(world.peers["p0"])
    assert_all_well(world)


def test_a_newcomer_after_the_founder_has_gone() -> None:
    """P4:
    1. One founds a run, three join, the founder vanishes for good.
    2. Somebody new is welcomed with everybody's cards. The beginning of the ledger knows the
       founder alone.
    3. It becomes a member all the same.
    """
    world = World(4, seed=5, rules=RULES, founders=1)
    assert world.run_until(everyone_is_member(world), 60_000)
    cards = world.peers["p1"].peer.cards()
    founder = world.peers["p0"]
    world.crash(founder)
    founder.wants_up = False
    world.run_for(30_000)
    late = world.join("late", contact="p1")
    late.contacts = cards
    world.crash(late)
    late.disk = SimDisk()
    world.start(late)
    assert world.run_until(lambda: late.peer.is_member, 60_000)
