"""P3, P5: what a peer wrote down before it died binds it, and is not lost."""

from node.sim.checks import Safety
from node.sim.world import World
from protocol.codec import kind_of
from protocol.ids import PeerId
from protocol.ledger import round_key
from protocol.messages import Commit
from protocol.rules import Quorum, Rules
from tests.scenarios.telling import (
    assert_all_well,
    closer_of_open_round,
    units_on_chain,
)


def swarm(quorum: Quorum, seed: int) -> World:
    world = World(5, seed, Rules(quorum=quorum, window_ms=1_000, deadline_ceiling_ms=3_000))
    world.on_event = Safety(world).after_event
    return world


def test_work_that_was_done_before_a_crash_counts_after_it() -> None:
    """P3:
    1. p2 is cut off, ends its work for the round, writes it down, and dies.
    2. The round closes without it.
    3. p2 starts again: the work is on the ledger soon after.
    """
    world = swarm(Quorum.ANY, 1)
    world.run_for(5_000)
    who = world.peers["p2"]
    world.network.split([who.id])

    def written() -> bool:
        return who.disk.get("outbox", round_key(who.peer.ledger.head.round)) is not None

    while not written():
        world.run_for(10)
    assert who.worker is not None
    unit = who.worker.made[-1]
    world.crash(who)
    world.network.heal()
    world.run_for(10_000)
    assert unit not in units_on_chain(world, "p0")
    world.start(who)
    assert_all_well(world)
    world.run_for(5_000)
    assert unit in units_on_chain(world, "p0")


def test_work_that_was_late_before_a_crash_counts_after_it() -> None:
    """P3: the peer has heard that its work missed the round, and dies before it offers it again."""
    world = swarm(Quorum.ANY, 3)
    world.run_for(5_000)
    who = world.peers["p2"]
    who.slowness = 3.0
    assert who.worker is not None
    worker = who.worker
    world.network.split([who.id])
    before = who.peer.ledger.head.round
    while who.disk.get("outbox", round_key(before)) is None:
        world.run_for(10)
    world.run_for(500)
    world.network.heal()
    while not worker.pending:
        world.run_for(10)
    late = set(worker.pending)
    world.crash(who)
    who.slowness = 1.0
    assert not late & units_on_chain(world, "p0")
    world.start(who)
    assert_all_well(world)
    world.run_for(5_000)
    assert late <= units_on_chain(world, "p0")


def test_a_vote_outlives_the_process_that_gave_it() -> None:
    """P5, `quorum = "majority"`:
    1. The closer's entry is accepted by all; it applies it and is cut off before it can say so.
    2. All others are killed, and start again with their disks.
    3. They close the round without the closer, and with the very entry that it has applied.
    """
    world = swarm(Quorum.MAJORITY, 2)
    world.run_for(5_000)
    closer = closer_of_open_round(world)
    round = closer.peer.ledger.head.round
    post = world.post

    def without_commits(sender: PeerId, to: PeerId, data: bytes) -> None:
        if sender != closer.id or kind_of(data) is not Commit:
            post(sender, to, data)

    world.post = without_commits  # type: ignore[method-assign]
    while closer.peer.ledger.head.round == round:
        world.run_for(1)
    world.network.split([closer.id])
    others = [who for who in world.up() if who is not closer]
    assert all(who.peer.ledger.head.round == round for who in others)
    for who in others:
        world.crash(who)
    for who in others:
        world.start(who)
    assert world.run_until(
        lambda: all(who.peer.ledger.head.round > round + 2 for who in others), 120_000
    )
    key = round_key(round)
    assert {who.disk.get("chain", key) for who in world.up()} == {closer.disk.get("chain", key)}
    world.network.heal()
    assert_all_well(world)
