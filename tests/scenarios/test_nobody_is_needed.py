"""P4: any peer can vanish at any instant; the next round still closes, within a bounded time."""

import pytest

from node.sim.world import World
from protocol.messages import Closed, Commit, Propose
from protocol.rounds import ranking
from protocol.rules import Quorum, Rules
from tests.scenarios.telling import (
    assert_all_well,
    assert_moves_on,
    closer_of_open_round,
    deadline_ms,
    die_after_sends,
    die_after_writes,
    everyone_is_member,
    head,
    roster_of,
    units_on_chain,
)

BOTH = pytest.mark.parametrize("quorum", list(Quorum))


def swarm(peers: int, seed: int, quorum: Quorum = Quorum.ANY, founders: int | None = None) -> World:
    rules = Rules(quorum=quorum, window_ms=1_000, deadline_ceiling_ms=3_000)
    return World(peers, seed, rules, founders=founders)


@BOTH
def test_the_founder_vanishes(quorum: Quorum) -> None:
    """P4: the one who began is not needed, not even to let others in.

    1. p0 founds a run; four join with its invite.
    2. p0 is gone for good. The rest close the next round, and list its departure.
    3. A newcomer with an invite that p0 once made is let in by another.
    """
    world = swarm(5, seed=1, quorum=quorum, founders=1)
    assert world.run_until(everyone_is_member(world), 60_000)
    world.crash(world.peers["p0"])
    assert_moves_on(world, 2 * deadline_ms(world))
    assert world.run_until(lambda: "p0" not in roster_of(world, "p1"), 240_000)
    world.join("p9", contact="p3")
    assert world.run_until(everyone_is_member(world), 60_000)
    assert_all_well(world)


def test_the_last_peer_left_keeps_training() -> None:
    """P4: four of four vanish one after the other, the fifth goes on alone, and they can return."""
    world = swarm(5, seed=2)
    world.run_for(5_000)
    for name in ("p0", "p3", "p1", "p4"):
        world.crash(world.peers[name])
        assert_moves_on(world, 2 * deadline_ms(world))
    assert_moves_on(world, 600_000, rounds=50)
    assert roster_of(world, "p2") == {"p2"}
    for name in ("p0", "p3", "p1", "p4"):
        world.start(world.peers[name])
    assert_all_well(world)
    assert len(roster_of(world, "p2")) == 5


@BOTH
@pytest.mark.parametrize("seed", range(4))
def test_a_third_is_killed_at_once(seed: int, quorum: Quorum) -> None:
    """P4: the closer and its deputies among them; the next round closes within two deadlines."""
    world = swarm(12, seed, quorum)
    world.run_for(6_000 + 300 * seed)
    newest = max((who.peer.ledger.head for who in world.up()), key=lambda mark: mark.round)
    for peer in ranking(world.run, newest.round, newest.roster)[:4]:
        world.crash(world.by_id[peer])
    assert_moves_on(world, 2 * deadline_ms(world))
    for who in world.peers.values():
        if not who.up:
            world.start(who)
    assert_all_well(world)


@BOTH
@pytest.mark.parametrize("writes", range(6))
def test_the_closer_dies_at_a_write(writes: int, quorum: Quorum) -> None:
    """P3, P4: whatever a closer had written down when it died, the others close its round, and all
    agree once it is back.
    """
    world = swarm(5, seed=10 + writes, quorum=quorum)
    world.run_for(5_000)
    closer = closer_of_open_round(world)
    die_after_writes(closer, writes)
    assert world.run_until(lambda: not closer.up, 30_000)
    assert_moves_on(world, 2 * deadline_ms(world))
    world.start(closer)
    assert_all_well(world)


@pytest.mark.parametrize(
    ("quorum", "kind", "sends"),
    [
        (Quorum.ANY, Closed, 0),  # nobody has heard of the entry
        (Quorum.ANY, Closed, 1),  # one has
        (Quorum.MAJORITY, Propose, 0),
        (Quorum.MAJORITY, Propose, 1),  # accepted by too few
        (Quorum.MAJORITY, Propose, 3),  # accepted by most, known to nobody
        (Quorum.MAJORITY, Commit, 0),
        (Quorum.MAJORITY, Commit, 2),
    ],
)
def test_the_closer_dies_while_it_sends(quorum: Quorum, kind: type, sends: int) -> None:
    """P3, P4, P5: an entry that only its closer knew, or few, does no harm when the closer is back.

    1. The closer seals the round and dies before, or while, it tells the others.
    2. They close the round without it, or with what they heard of it.
    3. It returns with what it had sealed: all are on one ledger, and no work is lost.
    """
    world = swarm(6, seed=20 + sends, quorum=quorum)
    world.run_for(5_000)
    closer = closer_of_open_round(world)
    die_after_sends(world, closer, kind, sends)
    assert world.run_until(lambda: not closer.up, 120_000)
    assert_moves_on(world, 2 * deadline_ms(world), rounds=1)
    world.run_for(10_000)
    world.start(closer)
    assert_all_well(world)


def test_nobody_waits_for_the_slowest() -> None:
    """P3, P4: one peer takes six windows for its work. Rounds last a window and the least time that
    stragglers are given, no more; and once the peer has recovered, its late work is committed.
    """
    world = swarm(8, seed=30)
    slow = world.peers["p5"]
    slow.slowness = 6.0
    world.run_for(60_000)
    assert head(world) >= 60_000 / (world.rules.window_ms + 2 * world.rules.deadline_floor_ms)
    assert slow.peer.is_member
    assert slow.worker is not None
    late = set(slow.worker.pending)
    assert late
    slow.slowness = 1.0
    assert_all_well(world)
    assert late <= units_on_chain(world, "p0")


def test_a_paused_peer_is_not_lost() -> None:
    """P3, P4: a peer that stands still for ten seconds stays a member; its work counts later.

    1. p2 is stopped for ten seconds; the others go on without it.
    2. It wakes up with old timers and a full inbox, and catches up.
    3. It was a member all the time.
    """
    world = swarm(5, seed=31)
    world.run_for(5_000)
    before = world.peers["p2"].peer.ledger.head.round
    world.pause(world.peers["p2"], 10_000)
    for _ in range(10):
        world.run_for(1_000)
        assert all("p2" in roster_of(world, other) for other in ("p0", "p1", "p3", "p4"))
    assert head(world) >= before + 4
    assert_all_well(world)
    assert "p2" in roster_of(world, "p0")
    assert world.counts["departed"] == 0
