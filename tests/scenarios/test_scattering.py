"""Attachments that are summed part by part: what they cost, who dies when, and who goes on."""

import random
from collections import Counter
from dataclasses import replace
from functools import partial

import pytest

from node.sim.network import Link
from node.sim.world import SimPeer, World
from protocol.codec import CHUNK_BYTES, decode, encode
from protocol.entries import Attachment, Entry
from protocol.ids import Hash, PeerId
from protocol.messages import Part, PartsHeld, Sum
from protocol.restore import entry_at
from protocol.rules import Quorum
from tests.scenarios.attaching import FAST, agree, attaching, newest

BOTH = pytest.mark.parametrize("quorum", list(Quorum))
PARTS = 8
SIZE = PARTS * 1_000
swarm = partial(attaching, size=SIZE, parts_max=PARTS)


def assert_moves_on(world: World, rounds: int, most_ms: float = 120_000) -> None:
    until = max(world.rounds()) + rounds
    assert world.run_until(lambda: min(world.rounds()) >= until, most_ms), world.rounds()
    assert_agree(world)


def assert_agree(world: World) -> None:
    """All stand at one place for a moment, and have one state there."""
    for _ in range(1_000):
        if agree(world):
            return
        world.run_for(20)
    raise AssertionError([who.place for who in world.up()])


@BOTH
@pytest.mark.parametrize("peers", [1, 2, 3, 6])
def test_all_are_listed_and_merged(peers: int, quorum: Quorum) -> None:
    """P1, P2: every peer's state is made of the same sums, and nobody's work is left out."""
    world = swarm(peers, quorum=quorum)
    assert world.run_until_round(7)
    assert_agree(world)
    listed = [len(entry.body.lines) for entry in newest(world.peers["p0"], 4)]
    assert listed == [peers] * 4
    assert not any(who.peer.faults for who in world.up())
    assert not world.counts["sums-differ"]


def traffic(world: World, rounds: int) -> tuple[float, float]:
    """Bytes that a peer sends or receives a round: the mean, and the busiest one's. Whole rounds:
    from where all have the same state, and nothing is on its way, to where they have again.
    """
    sent, received = Counter[PeerId](), Counter[PeerId]()
    post = world.post

    def count(sender: PeerId, to: PeerId, data: bytes) -> None:
        sent[sender] += len(data)
        received[to] += len(data)
        post(sender, to, data)

    assert_agree(world)
    first = max(world.rounds())
    world.post = count  # type: ignore[method-assign]
    assert world.run_until(lambda: min(world.rounds()) >= first + rounds, 60_000)
    assert_agree(world)
    passed = max(world.rounds()) - first
    both = [max(sent[who.id], received[who.id]) / passed for who in world.up()]
    return sum(both) / len(both), max(both)


@pytest.mark.parametrize("peers", [4, 8, 16])
def test_a_peer_carries_about_twice_its_own_whatever_the_number_of_members(peers: int) -> None:
    """P8: each part once to who sums it, and each sum once to everybody."""
    size = 16 * CHUNK_BYTES
    world = swarm(peers, parts_max=16, size=size, window_ms=6_000)
    assert world.run_until_round(1)
    mean, most = traffic(world, 2)
    assert mean / size < 2.05, mean / size
    assert most / size < 2.05, most / size


def strike(world: World, when: int, victim: str) -> list[SimPeer]:
    """Kill somebody as soon as an entry with everybody in it is on its way: who sums a part of it,
    or an author that sums none.
    """
    dead: list[SimPeer] = []

    def look(who: SimPeer) -> None:
        head = who.peer.ledger.head if who.up else None
        if dead or head is None or head.round < when:
            return
        entry = entry_at(who.disk, head.round - 1)
        assert entry is not None
        if len(entry.body.lines) < len(head.roster) or not is_closer(who, entry):
            return
        ranked = ranking_before(world, who, entry)
        chosen = ranked[0] if victim == "sums" else ranked[-1]
        dead.append(world.by_id[chosen])
        world.crash(dead[0])
        dead[0].wants_up = False

    world.on_event = look
    while not dead:
        world.run_for(20)
    world.on_event = lambda who: None
    return dead


def is_closer(who: SimPeer, entry: Entry) -> bool:
    before = who.peer.ledger.mark_at(entry.round)
    return before is not None and before.roster.members[entry.body.closer] == who.id


def ranking_before(world: World, who: SimPeer, entry: Entry) -> tuple[PeerId, ...]:
    from protocol.rounds import ranking

    before = who.peer.ledger.mark_at(entry.round)
    assert before is not None
    return ranking(world.run, entry.round, before.roster)


@BOTH
@pytest.mark.parametrize("victim", ["sums", "does not"])
@pytest.mark.parametrize("seed", range(3))
def test_one_death_loses_nothing(victim: str, quorum: Quorum, seed: int) -> None:
    """P3: what an entry lists outlives who was to sum it, and who made it, whoever that is."""
    world = swarm(5, seed, quorum, parts_max=4)
    assert world.run_until_round(3)
    dead = strike(world, 5, victim)
    assert_moves_on(world, 3)
    assert not [note for _, _, note in world.notes if note.event == "switched"]
    world.start(dead[0])
    assert world.run_until(lambda: len(world.up()) == 5 and agree(world), 120_000)


@BOTH
def test_who_was_to_sum_stands_still(quorum: Quorum) -> None:
    """P4: a process that is stopped looks alive for a while; others take its part over."""
    world = swarm(5, 2, quorum, parts_max=3)
    assert world.run_until_round(4)
    for _ in range(2):
        head = world.peers["p0"].peer.ledger.head
        from protocol.rounds import ranking

        first = world.by_id[ranking(world.run, head.round, head.roster)[1]]
        world.pause(first, 20_000)
        began = world.now_ms
        others = [who for who in world.up() if who is not first]
        assert world.run_until(
            lambda head=head, others=others: (
                min(who.peer.ledger.head.round for who in others) > head.round
                and len({who.place for who in others}) == 1
            ),
            60_000,
        )
        assert world.now_ms - began < 20_000
        world.run_for(25_000)
    assert_moves_on(world, 2)


@BOTH
def test_messages_that_are_lost_are_sent_again(quorum: Quorum) -> None:
    lossy = replace(FAST, loss=0.1, duplicate=0.1, jitter_ms=100.0)
    world = swarm(5, 4, quorum, link=lossy, parts_max=4)
    assert world.run_until_round(7, 400_000)
    assert_moves_on(world, 1)
    assert not any(who.peer.faults for who in world.up())
    assert not world.counts["sums-differ"]


@BOTH
def test_who_was_away_catches_up_with_what_others_kept(quorum: Quorum) -> None:
    """P3: by replaying while sums are there; by a snapshot when they are collected."""
    world = swarm(5, quorum=quorum, snapshot_every=6)
    away = world.peers["p4"]
    assert world.run_until_round(4)
    world.crash(away)
    others = [who for who in world.up() if who is not away]
    for rounds in (3, 20):
        until = others[0].peer.ledger.head.round + rounds
        assert world.run_until(
            lambda until=until: min(w.peer.ledger.head.round for w in others) >= until, 400_000
        )
        world.start(away)
        assert world.run_until(lambda: len(world.up()) == 5 and agree(world), 120_000)
        assert away.worker is not None
        assert bool(away.worker.restored) == (rounds == 20)
        world.crash(away)
    sums = list(others[0].disk.scan("sums"))
    assert 0 < len(sums) <= 5 * 4 * 6, "old ones are collected"
    # Our own stay as long as they may have to be given back.
    assert len(list(others[0].disk.scan("parts"))) == len(list(others[0].disk.scan("outbox")))


def test_all_restart_in_the_middle_of_it() -> None:
    """P3: nothing that is not on disk is needed."""
    world = swarm(4, 5)
    chance = random.Random(5)
    assert world.run_until_round(3)
    for _ in range(6):
        world.run_for(chance.random() * 4_000)
        for who in world.up():
            world.crash(who)
        world.run_for(500)
        for who in list(world.peers.values()):
            world.start(who)
    assert_moves_on(world, 4)


def test_hidden_peers_take_part() -> None:
    """Chunks take no relay: what two of them bring is summed by others."""
    hidden = Link(nat=True, up_bytes_per_ms=20_000, down_bytes_per_ms=20_000)
    world = swarm(5, own_links=(FAST, FAST, hidden, hidden, hidden))
    assert world.run_until_round(7)
    assert_agree(world)
    assert all(len(entry.body.lines) == 5 for entry in newest(world.peers["p0"], 4))


@BOTH
def test_a_sum_that_nobody_has_is_given_up(quorum: Quorum) -> None:
    """P6: one member names sums that are not there. Others are asked, and all goes on."""
    world = swarm(5, 6, quorum, parts_max=4)
    liar = world.peers["p2"]
    post = world.post

    def lie(sender: PeerId, to: PeerId, data: bytes) -> None:
        if sender == liar.id and data[1] == 44:
            message = decode(data)
            assert isinstance(message, Sum)
            data = encode(replace(message, sum=Attachment(Hash(bytes(32)), message.sum.size)))
        post(sender, to, data)

    assert world.run_until_round(3)
    world.post = lie  # type: ignore[method-assign]
    until = max(who.place[0] for who in world.up()) + 3
    assert world.run_until(lambda: min(who.place[0] for who in world.up()) >= until, 400_000)
    world.post = post  # type: ignore[method-assign]
    assert_moves_on(world, 1)


@BOTH
@pytest.mark.parametrize("what", ["path", "number", "seats", "stranger"])
def test_bad_parts_are_counted_against_their_sender(what: str, quorum: Quorum) -> None:
    """P6: nothing of it is fetched, and nobody stops. Where any seal counts, a part that does not
    fit may be of what its author brought after it left an entry.
    """
    world = swarm(4, 7, quorum)
    liar = world.peers["p1"]
    post, bent = world.post, Counter[str]()

    def bend(sender: PeerId, to: PeerId, data: bytes) -> None:
        message = decode(data) if sender == liar.id and data[1] in (40, 41) else None
        if isinstance(message, Part) and what == "path":
            data = encode(replace(message, path=tuple(Hash(bytes(32)) for _ in message.path)))
        elif isinstance(message, Part) and what == "number":
            data = encode(replace(message, number=900))
        elif isinstance(message, Part) and what == "stranger":
            data = encode(replace(message, author=PeerId(bytes(32))))
        elif isinstance(message, PartsHeld) and what == "seats":
            data = encode(replace(message, seats=b"\xff" * 8))
        else:
            post(sender, to, data)
            return
        bent[what] += 1
        post(sender, to, data)

    assert world.run_until_round(3)
    world.post = bend  # type: ignore[method-assign]
    assert_moves_on(world, 3, 200_000)
    assert bent[what]
    is_blamed = any(who.peer.faults.get(liar.id) for who in world.up() if who is not liar)
    assert is_blamed == (quorum is Quorum.MAJORITY or what != "path")


@BOTH
def test_an_applicant_is_known_to_members_that_came_after_it(quorum: Quorum) -> None:
    """P4: what it lacks it asks of anybody, and they take no connection of a stranger.

    1. A newcomer is let in, and takes six seconds to load.
    2. Meanwhile others come, and are members before it is.
    3. It follows the sums of short rounds, and becomes a member; hardly anybody refuses it.
    """
    world = swarm(1, quorum=quorum, window_ms=250)
    world.run_for(3_000)
    late = world.join("late")
    world.run_for(50)
    world.crash(late)
    late.loads_ms = 6_000
    world.start(late)
    for number in range(5):
        world.join(f"n{number}")
        world.run_for(1_000)
    assert len(world.peers["p0"].peer.ledger.head.roster) >= 4
    assert not late.peer.is_member
    assert world.run_until(lambda: late.peer.is_member, 10_000)
    assert_moves_on(world, 5)
    assert world.counts["refused"] < 20
