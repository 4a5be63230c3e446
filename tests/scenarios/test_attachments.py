"""Contributions too large for the ledger: who sends them, who waits, and what if they are gone."""

from collections import Counter
from functools import partial

import pytest

from node.sim.network import Link
from node.sim.world import SimPeer
from protocol.codec import CHUNK_BYTES, decode
from protocol.ids import Hash, PeerId
from protocol.messages import Piece
from protocol.restore import entry_at
from protocol.rules import Quorum
from tests.scenarios.attaching import FAST, agree, attaching, newest

SIZE = 3 * CHUNK_BYTES
swarm = partial(attaching, size=SIZE)


@pytest.mark.parametrize("quorum", list(Quorum))
def test_all_are_listed_and_merged(quorum: Quorum) -> None:
    """P1, P2: every peer's state is made of the same attachments, and nobody's is left out."""
    world = swarm(quorum=quorum)
    assert world.run_until_round(12)
    assert world.run_until(lambda: agree(world), 20_000)
    listed = [len(entry.body.lines) for entry in newest(world.peers["p0"], 6)]
    assert listed == [6] * 6


def test_nobody_carries_its_own_to_everybody() -> None:
    """P8: the others pass on what they have. One peer's uplink is a tenth of the others'."""
    slow = Link(up_bytes_per_ms=2_000, down_bytes_per_ms=20_000)
    count = 9
    world = swarm(count, own_links=(*[FAST] * (count - 1), slow), window_ms=4_000)
    last = world.peers[f"p{count - 1}"]
    assert world.run_until_round(4)
    sent: Counter[Hash] = Counter()
    post = world.post

    def count_pieces(sender: PeerId, to: PeerId, data: bytes) -> None:
        if sender == last.id and len(data) > CHUNK_BYTES // 2:
            message = decode(data)
            assert isinstance(message, Piece)
            sent[message.root] += 1
        post(sender, to, data)

    world.post = count_pieces  # type: ignore[method-assign]
    first = last.peer.ledger.head.round
    assert world.run_until_round(first + 6)
    seat = last.peer.ledger.head.roster.seat(last.id)
    chain = newest(last, last.peer.ledger.head.round - first)[1:-1]
    mine = [line.attached for entry in chain for line in entry.body.lines if line.seat == seat]
    assert len(mine) >= len(chain) // 2, "slow as its line is, it counts"
    copies = [sent[one.root] * CHUNK_BYTES / SIZE for one in mine if one is not None]
    # Alone it would send each to 8 others.
    assert sum(copies) / len(copies) < 4.5, copies


def test_the_closer_and_an_author_die_with_what_only_they_held() -> None:
    """P4: nobody can merge the entry, so the rest leave it and go on."""
    world = swarm(6, seed=3, collectors=1)
    assert world.run_until_round(5)
    dead: list[SimPeer] = []

    def strike(who: SimPeer) -> None:
        """Once somebody has closed a round, and its entry, no more, is on its way to the others."""
        head = who.peer.ledger.head if who.up else None
        if dead or head is None or head.round < 7:
            return
        entry = entry_at(who.disk, head.round - 1)
        assert entry is not None
        if head.roster.members[entry.body.closer] == who.id and len(entry.body.lines) == 6:
            dead.extend((who, next(one for one in world.up() if one is not who)))
            for one in dead:
                world.crash(one)
                one.wants_up = False

    world.on_event = strike
    while not dead:
        world.run_for(20)
    rest = world.up()
    struck = max(who.peer.ledger.head.round for who in rest)
    assert world.run_until(lambda: min(world.rounds()) >= struck + 3, 120_000)
    assert world.run_until(lambda: agree(world), 20_000)
    left = {who for _, who, note in world.notes if note.event == "switched"}
    assert left == {who.name for who in rest}
    for who in dead:
        world.start(who)
    assert world.run_until(lambda: len(world.up()) == 6 and agree(world), 120_000)
    assert world.run_until(lambda: all(who.peer.is_member for who in world.up()), 60_000)


def test_who_was_away_catches_up_with_what_others_kept() -> None:
    """P3: by replaying while the attachments are there; by a snapshot when they are collected."""
    world = swarm(5, snapshot_every=6)
    away = world.peers["p4"]
    assert world.run_until_round(4)
    world.crash(away)
    others = [who for who in world.up() if who is not away]
    for rounds in (3, 40):
        until = others[0].peer.ledger.head.round + rounds
        assert world.run_until(
            lambda until=until: min(w.peer.ledger.head.round for w in others) >= until, 400_000
        )
        world.start(away)
        assert world.run_until(lambda: len(world.up()) == 5 and agree(world), 120_000)
        assert away.worker is not None
        assert bool(away.worker.restored) == (rounds == 40)
        world.crash(away)
    held = len([blob for blob in others[0].blobs.values() if blob.size == SIZE])
    assert held <= 5 * 4 * 6, "old ones are collected"


def test_two_hidden_peers_take_them_from_a_third() -> None:
    """Chunks take no relay, so what one of them brings reaches the other through who has it."""
    hidden = Link(nat=True, up_bytes_per_ms=20_000, down_bytes_per_ms=20_000)
    world = swarm(4, own_links=(FAST, FAST, hidden, hidden))
    assert world.run_until_round(10)
    assert world.run_until(lambda: agree(world), 20_000)
    assert all(len(entry.body.lines) == 4 for entry in newest(world.peers["p0"], 4))
