"""P6, and the proof of equivocation: a closer that signs two entries for one round is expelled."""

from dataclasses import replace

import pytest

from node.sim.world import SimPeer, World
from protocol.codec import encode, encode_body
from protocol.entries import Entry, entry_hash, seal_bytes
from protocol.messages import Closed
from protocol.restore import entry_at
from protocol.rules import Quorum, Rules
from tests.scenarios.telling import assert_moves_on, deadline_ms, head, roster_of


def another(world: World, liar: SimPeer, entry: Entry) -> Entry:
    """A second entry for the same round, as valid as the first, sealed by the same closer."""
    body = replace(entry.body, took_ms=entry.body.took_ms + 1)
    raw = encode_body(body)
    seal = liar.keys.sign(seal_bytes(world.run, body.round, body.parent, entry_hash(raw)))
    return Entry(body, raw, seal, entry.signatures)


@pytest.mark.parametrize("quorum", list(Quorum))
def test_a_closer_that_signs_two_entries_is_expelled(quorum: Quorum) -> None:
    """P6:
    1. A closer closes a round; everybody applies its entry.
    2. It hands one other peer a second entry for the same round, and nobody else.
    3. That peer proves it to all: the closer is expelled, and cannot come back.
    4. The rest go on, with one state.
    """
    rules = Rules(quorum=quorum, window_ms=1_000, deadline_ceiling_ms=3_000)
    world = World(6, 1, rules)
    world.run_for(8_000)
    reader = world.peers["p0"]
    newest = entry_at(reader.disk, min(world.rounds()) - 1)
    assert newest is not None
    mark = reader.peer.ledger.mark_at(newest.round)
    assert mark is not None
    liar = world.by_id[mark.roster.members[newest.body.closer]]
    victim = next(who for who in world.up() if who is not liar)
    honest = [who.name for who in world.up() if who is not liar]
    world.post(liar.id, victim.id, encode(Closed(another(world, liar, newest))))
    assert world.run_until(
        lambda: all(liar.name not in roster_of(world, name) for name in honest), 30_000
    )
    for name in honest:
        assert liar.id in world.peers[name].peer.ledger.head.roster.banned
    world.run_for(30_000)
    assert liar.name not in roster_of(world, honest[0])
    assert not liar.peer.is_member
    world.crash(liar)
    assert_moves_on(world, 2 * deadline_ms(world), rounds=3)
    states = {who.state for who in world.up() if who.peer.ledger.head.round == head(world)}
    assert len(states) == 1


def test_nobody_is_expelled_for_what_another_forged() -> None:
    """P6: a second entry with a seal that the closer did not make convicts nobody."""
    world = World(5, 2, Rules(window_ms=1_000, deadline_ceiling_ms=3_000))
    world.run_for(8_000)
    reader = world.peers["p0"]
    newest = entry_at(reader.disk, min(world.rounds()) - 1)
    assert newest is not None
    mark = reader.peer.ledger.mark_at(newest.round)
    assert mark is not None
    closer = world.by_id[mark.roster.members[newest.body.closer]]
    forger = next(who for who in world.up() if who is not closer)
    forged = another(world, forger, newest)
    for who in world.up():
        if who is not forger:
            world.post(forger.id, who.id, encode(Closed(forged)))
    world.run_for(20_000)
    assert len(roster_of(world, "p0")) == 5
    assert world.counts["equivocation"] == 0
    assert world.counts["fault"] >= 3
