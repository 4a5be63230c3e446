"""P6: members that lie. A closer that signs two entries for one round is expelled; whatever else is
said falsely or out of turn, the honest go on, agree, and lose nothing.
"""

import random
from dataclasses import replace

import pytest

from node.sim.checks import Safety
from node.sim.liars import Liar
from node.sim.world import SimPeer, World
from protocol.codec import encode, encode_body
from protocol.entries import Entry, entry_hash, seal_bytes
from protocol.messages import Closed
from protocol.restore import entry_at
from protocol.rules import Quorum, Rules
from tests.scenarios.telling import (
    assert_all_well,
    assert_moves_on,
    deadline_ms,
    head,
    notes_called,
    roster_of,
)

BOTH = pytest.mark.parametrize("quorum", list(Quorum))
TALES = Liar.tales()


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
    for name in honest:
        assert liar.name not in roster_of(world, name)
        assert liar.id not in world.peers[name].links, "its connections are refused"
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


def swarm_with_a_liar(seed: int, quorum: Quorum) -> tuple[World, Liar]:
    """Six members; p2 is the liar."""
    world = World(6, seed, Rules(quorum=quorum, window_ms=1_000, deadline_ceiling_ms=3_000))
    world.on_event = Safety(world).after_event
    world.run_for(5_000)
    return world, Liar(world, world.peers["p2"], random.Random(seed))


def silence(world: World) -> None:
    """The liar is gone, expelled or not, for good."""
    world.crash(world.peers["p2"])
    world.peers["p2"].wants_up = False


@BOTH
@pytest.mark.parametrize("tale", TALES)
def test_a_lie_told_every_second_does_little_harm(tale: str, quorum: Quorum) -> None:
    """P4, P5, P6: two thirds of the rounds close, nobody honest is dropped, expelled, or rebuilds
    its state; nobody switches ledgers; all agree and have lost nothing once the liar is gone.
    """
    world, liar = swarm_with_a_liar(1, quorum)
    before = head(world)
    for _ in range(21):
        world.run_for(1_000)
        liar.lie(tale)
    assert head(world) >= before + 14
    honest = {name for name in world.peers if name != "p2"}
    assert all(roster_of(world, name) >= honest for name in honest)
    gone = {note.fields["peer"] for _, _, note in world.notes if note.event == "departed"}
    assert gone <= {world.peers["p2"].id}
    for name in honest:
        assert not notes_called(world, "switched", name)
        assert not notes_called(world, "digest-mismatch", name)
    silence(world)
    assert_all_well(world, {"p2"})


@BOTH
@pytest.mark.parametrize("seed", range(2))
def test_a_liar_that_tells_everything(seed: int, quorum: Quorum) -> None:
    """P4, P5, P6: all kinds of lies in any order, five a second, from one of six."""
    world, liar = swarm_with_a_liar(10 + seed, quorum)
    before = head(world)
    for _ in range(100):
        world.run_for(200)
        liar.lie_at_random()
    assert head(world) >= before + 10
    silence(world)
    assert_all_well(world, {"p2"})
