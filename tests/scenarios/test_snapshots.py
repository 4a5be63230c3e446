"""Newcomers to long runs: the state comes as chunks from many members, the ledger tells which."""

from collections import Counter

from node.sim.network import Link
from node.sim.stub import Snapshots
from node.sim.world import SimDisk, SimPeer, World
from protocol.codec import CHUNK_BYTES, decode
from protocol.ids import PeerId
from protocol.messages import Piece
from protocol.restore import snapshots_on_chain
from protocol.rules import Rules

RULES = Rules(window_ms=1_000, deadline_ceiling_ms=3_000, snapshot_every=8)
CHUNKS = 40


def long_run(peers: int = 4, seed: int = 1, rounds: int = 30) -> World:
    link = Link(up_bytes_per_ms=2_000, down_bytes_per_ms=8_000)
    snapshots = Snapshots(bytes=CHUNKS * CHUNK_BYTES)
    world = World(peers, seed, RULES, link, snapshots=snapshots)
    assert world.run_until_round(rounds)
    return world


def newcomer(world: World, loads_ms: float = 0.0) -> SimPeer:
    """It was welcomed with everybody's card. Its machine is slow at replaying: fetching pays."""
    late = world.join("late")
    late.replay_ms_per_round, late.loads_ms = 600.0, loads_ms
    late.contacts = world.peers["p0"].peer.cards()
    world.crash(late)
    late.disk = SimDisk()
    world.start(late)
    return late


def test_roots_get_into_the_ledger_by_what_most_say() -> None:
    """P1: everybody's snapshot of a round is the same, byte for byte."""
    world = long_run()
    founders = world.peers["p0"].peer.ledger.genesis.roster
    found = [
        snapshots_on_chain(who.disk, founders, who.peer.ledger.head.round, RULES)
        for who in world.up()
    ]
    assert [one.round for one in found[0]] == [24, 16]
    assert all(one[1:] == found[0][1:] for one in found)
    roots = {root for who in world.up() for root in who.blobs}
    assert len(roots) <= 3, "no two peers' snapshots of one round differ"


def test_a_newcomer_fetches_from_many_and_contributes() -> None:
    world = long_run()
    pieces: Counter[int] = Counter()
    donors: set[PeerId] = set()
    sent = world.post

    def post(sender: PeerId, to: PeerId, data: bytes) -> None:
        message = decode(data)
        if isinstance(message, Piece):
            donors.add(sender)
            pieces[message.level * 1_000 + message.number] += 1
        sent(sender, to, data)

    world.post = post  # type: ignore[method-assign]
    late = newcomer(world)
    assert world.run_until(lambda: late.up and late.peer.is_member, 120_000)
    assert late.worker is not None
    assert late.worker.restored, "it did not replay"
    assert len(donors) == 4
    assert max(pieces.values()) == 1, "no chunk came twice"
    world.run_for(5_000)
    assert len({who.state for who in world.up()}) == 1
    assert world.counts["catching-up"] == 1


def test_the_state_comes_while_the_model_loads() -> None:
    """And nobody is made a member for whom the others would wait in vain."""
    world = long_run(rounds=45)
    late = newcomer(world, loads_ms=30_000.0)
    start_ms = world.now_ms
    assert world.run_until(lambda: world.counts["snapshot-fetched"] == 1, 20_000)
    world.run_until(lambda: world.now_ms >= start_ms + 29_000, 30_000)
    assert late.worker is not None
    assert not late.worker.restored
    assert not late.peer.is_member
    assert world.run_until(lambda: late.peer.is_member, 10_000)
    assert late.worker.restored, "it did not replay"
    world.run_for(5_000)
    assert len({who.state for who in world.up()}) == 1


def test_a_donor_dies_half_way_and_no_chunk_comes_twice() -> None:
    """P3, P4: what it had sent is kept, what it had not comes from the others."""
    world = long_run()
    late = newcomer(world)
    while len(late.blobs) == 0 or not any(blob.chunks for blob in late.blobs.values()):
        world.run_for(50)
    blob = next(iter(late.blobs.values()))
    while len(blob.chunks) < CHUNKS // 2:
        world.run_for(20)
    world.crash(world.peers["p1"])
    assert world.run_until(lambda: late.up and late.peer.is_member, 120_000)
    (note,) = [n for _, who, n in world.notes if n.event == "snapshot-fetched" and who == "late"]
    assert note.fields["repeated"] == 0
    assert note.fields["received"] == CHUNKS * CHUNK_BYTES


def test_a_newcomer_that_crashes_goes_on_where_it_was() -> None:
    world = long_run()
    late = newcomer(world)
    while not any(blob.chunks for blob in late.blobs.values()):
        world.run_for(50)
    world.run_for(100)
    before = {root: len(blob.chunks) for root, blob in late.blobs.items()}
    assert 0 < max(before.values()) < CHUNKS
    world.crash(late)
    world.start(late)
    assert world.run_until(lambda: late.up and late.peer.is_member, 120_000)
    fetched = [n for _, who, n in world.notes if n.event == "snapshot-fetched" and who == "late"]
    kept = max(before.values()) * CHUNK_BYTES
    assert fetched[-1].fields["received"] <= CHUNKS * CHUNK_BYTES - kept


def test_nobody_has_it_so_it_is_replayed() -> None:
    """P4: a snapshot that cannot be had stops nobody."""
    world = long_run()
    members = world.up()

    def forget(_: SimPeer) -> None:
        for who in members:
            who.blobs.clear()

    world.on_event = forget
    late = newcomer(world)
    assert world.run_until(lambda: late.up and late.peer.is_member, 200_000)
    assert late.worker is not None
    assert not late.worker.restored


def test_a_donor_that_lies_is_found_out_and_does_no_harm() -> None:
    """P6: its chunks do not fit their names; it is blamed, and others send the right ones."""
    world = long_run()
    liar = world.peers["p2"]

    def lie(_: SimPeer) -> None:
        for blob in liar.blobs.values():
            blob.chunks = dict.fromkeys(blob.chunks, b"lies")

    world.on_event = lie
    late = newcomer(world)
    assert world.run_until(lambda: late.up and late.peer.is_member, 120_000)
    assert late.worker is not None
    assert late.worker.restored
    assert late.peer.faults.get(liar.id)
    world.run_for(5_000)
    assert len({who.state for who in world.up()}) == 1


def test_a_damaged_replica_is_mended_by_itself() -> None:
    """P1: a bit flips; within two rounds it is found, and put right from one that agrees with
    most.
    """
    world = long_run(rounds=5)
    sick = world.peers["p3"]
    assert sick.worker is not None
    sick.worker.state ^= 1 << 17
    hit = sick.peer.ledger.head.round
    assert world.run_until(lambda: world.counts["repaired"] > 0, 30_000)
    assert sick.peer.ledger.head.round <= hit + 3
    assert world.run_until_round(hit + 5)
    assert len({who.state for who in world.up()}) == 1
    assert world.counts["digest-mismatch"] <= 2
