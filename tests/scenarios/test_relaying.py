"""Peers that nobody can dial take part like any other: members that both sides reach relay."""

from collections import Counter
from dataclasses import replace

import pytest

from node.sim.network import Link
from node.sim.world import SimPeer, World
from protocol.codec import decode, encode, kind_of
from protocol.ids import PeerId
from protocol.messages import Relay, Why
from protocol.relaying import RelayLimits
from protocol.restore import entry_at
from protocol.rules import Quorum, Rules
from tests.scenarios.telling import assert_all_well, assert_moves_on, deadline_ms

RULES = Rules(window_ms=1_000, deadline_ceiling_ms=3_000)
OPEN, HIDDEN = Link(), Link(nat=True)


def world_of(
    listening: int,
    hidden: int,
    seed: int = 1,
    rules: Rules = RULES,
    limits: RelayLimits | None = None,
) -> World:
    """p0, p1, ... can be dialled, the rest cannot."""
    links = [OPEN] * listening + [HIDDEN] * hidden
    return World(listening + hidden, seed, rules, own_links=links, relay_limits=limits)


def hidden_peers(world: World) -> list[SimPeer]:
    return [who for who in world.up() if world.network.link_of(who.id).nat]


def full_rounds(world: World, reader: SimPeer, first: int) -> tuple[int, int]:
    """How many rounds since `first` list a contribution of every member, and how many there are."""
    full = 0
    for round in range(first, reader.peer.ledger.head.round):
        entry, mark = entry_at(reader.disk, round), reader.peer.ledger.mark_at(round)
        assert entry is not None
        assert mark is not None
        full += len(entry.body.lines) == len(mark.roster)
    return full, reader.peer.ledger.head.round - first


def deaths(world: World) -> int:
    return world.counts["departed"]


@pytest.mark.parametrize("quorum", list(Quorum))
def test_two_hidden_peers_meet_through_the_one_that_both_reach(quorum: Quorum) -> None:
    """P4:
    1. One member can be dialled, four cannot; each has connections to the first alone.
    2. All contribute to nearly every round, whoever closes it, and none is ever held for dead.
    """
    rules = Rules(quorum=quorum, window_ms=1_000, deadline_ceiling_ms=3_000)
    world = world_of(1, 4, rules=rules)
    world.run_for(5_000)
    first = world.peers["p0"].peer.ledger.head.round
    world.run_for(60_000)
    full, rounds = full_rounds(world, world.peers["p0"], first)
    assert rounds >= 40
    assert full >= 0.95 * rounds, f"{full} of {rounds} rounds have a contribution of all"
    assert deaths(world) == 0
    for who in hidden_peers(world):
        others = [other.id for other in hidden_peers(world) if other is not who]
        assert {who.peer.relay_of(other) for other in others} == {world.peers["p0"].id}
        assert not who.peer.membership.down()
    assert world.peers["p0"].peer.relay_counts.relayed > 100
    assert world.counts["fault"] == 0
    assert_all_well(world)


def test_hidden_peers_join_through_one_another_s_friends() -> None:
    """P4: they come one after the other with an invite of the founder, and none is ever dropped."""
    world = World(1, seed=3, rules=RULES)
    world.network.own_links = {}
    world.run_for(3_000)
    for number in range(1, 6):
        id = world.id_of(f"p{number}")
        world.network.own_links[id] = HIDDEN
        world.join(f"p{number}")
        world.run_for(1_500)
    assert world.run_until(lambda: all(who.peer.is_member for who in world.up()), 60_000)
    first = world.peers["p0"].peer.ledger.head.round
    world.run_for(30_000)
    full, rounds = full_rounds(world, world.peers["p0"], first)
    assert full >= 0.9 * rounds, f"{full} of {rounds} rounds have a contribution of all"
    assert deaths(world) == 0
    assert_all_well(world)


@pytest.mark.parametrize("quorum", list(Quorum))
def test_the_only_one_that_can_be_dialled_leaves_and_returns(quorum: Quorum) -> None:
    """P4: 1. It leaves in good order. 2. The two that are left cannot reach each other, so no round
    can close that lets it in again. 3. It returns, and they reach each other through it: it is no
    member, but it was one.
    """
    rules = Rules(quorum=quorum, window_ms=1_000, deadline_ceiling_ms=3_000)
    world = world_of(1, 2, rules=rules)
    world.run_for(10_000)
    door = world.peers["p0"]
    world.stop(door)
    world.run_for(30_000)
    world.start(door)
    assert_moves_on(world, 60_000)
    assert world.run_until(lambda: all(who.peer.is_member for who in world.up()), 60_000)
    assert_all_well(world)


def test_a_relay_dies_and_another_is_used() -> None:
    """P4:
    1. Two members can be dialled, four cannot.
    2. The first of the two dies. The others close the next rounds in time, and are members still.
    3. It comes back; then the second dies. Nobody but the dead is ever dropped.
    """
    world = world_of(2, 4, seed=2)
    world.run_for(10_000)
    for name in ("p0", "p1"):
        victim = world.peers[name]
        world.crash(victim)
        assert_moves_on(world, 3 * deadline_ms(world), rounds=3)
        world.run_for(20_000)
        for who in hidden_peers(world):
            for other in hidden_peers(world):
                assert who is other or who.peer.relay_of(other.id) not in (None, victim.id)
            assert not who.peer.membership.down() - {victim.id}
        world.start(victim)
        world.run_for(20_000)
    assert_all_well(world)


def test_a_relay_that_alters_frames_is_caught_and_left() -> None:
    """P6:
    1. Of two members that can be dialled, the first alters every frame that it relays.
    2. Whoever gets one blames the relay, and nobody else; nothing of it is believed.
    3. All of them turn to the other one, and rounds go on in time.
    """
    world = world_of(2, 3, seed=5)
    world.run_for(5_000)
    liar, post = world.peers["p0"], world.post

    def alter(sender: PeerId, to: PeerId, data: bytes) -> None:
        if sender == liar.id and kind_of(data) is Relay:
            message = decode(data)
            assert isinstance(message, Relay)
            last = message.frame[-1] ^ 1
            data = encode(replace(message, frame=message.frame[:-1] + bytes((last,))))
        post(sender, to, data)

    world.post = alter  # type: ignore[method-assign]
    world.run_for(20_000)
    for who in world.up():
        assert set(who.peer.faults) <= {liar.id}, f"{who.name} blames the innocent"
    assert sum(who.peer.faults.get(liar.id, 0) for who in hidden_peers(world)) >= 1
    for who in hidden_peers(world):
        for other in hidden_peers(world):
            assert who is other or who.peer.relay_of(other.id) == world.peers["p1"].id
    assert_moves_on(world, 3 * deadline_ms(world), rounds=3)
    assert deaths(world) == 0
    world.post = post  # type: ignore[method-assign]
    assert_all_well(world, {liar.name})


def test_a_relay_carries_no_more_than_its_cap() -> None:
    """P8:
    1. One member can be dialled; it carries 1,000 bytes a second for the others, which want more.
    2. It carries no more, says so, and the run goes on all the same.
    """
    limits = RelayLimits(bytes_per_s=1_000)
    world = world_of(1, 5, seed=6, limits=limits)
    world.run_for(5_000)
    relay = world.peers["p0"].peer
    before, seconds = relay.relay_counts.relayed_bytes, 60
    world.run_for(1_000 * seconds)
    carried = relay.relay_counts.relayed_bytes - before
    assert carried <= limits.bytes_per_s * (seconds + 2)
    assert carried >= limits.bytes_per_s * seconds / 2
    assert relay.relay_counts.refused[Why.OVER_CAP] > 0
    assert_moves_on(world, 5 * deadline_ms(world), rounds=3)


def test_an_address_that_does_not_work_from_everywhere() -> None:
    """P4:
    1. All four can be dialled, but between two of them every packet is lost.
    2. Each of the two finds the other alive through others, who then relay. None is dropped.
    3. The network heals; they talk to each other directly again.
    """
    world = world_of(4, 0, seed=7)
    world.run_for(5_000)
    one, two = world.peers["p0"], world.peers["p1"]
    for sender, to in ((one, two), (two, one)):
        world.network.cut([sender.id], [to.id])
    world.run_for(10_000)
    assert one.peer.relay_of(two.id) is not None
    assert two.peer.relay_of(one.id) is not None
    first = one.peer.ledger.head.round
    world.run_for(60_000)
    full, rounds = full_rounds(world, one, first)
    assert full >= 0.9 * rounds, f"{full} of {rounds} rounds have a contribution of all"
    assert deaths(world) == 0
    world.network.heal()
    assert world.run_until(lambda: one.peer.relay_of(two.id) is None, 130_000)
    assert world.run_until(lambda: two.peer.relay_of(one.id) is None, 130_000)
    assert_all_well(world)


def test_what_hidden_peers_cost_the_others() -> None:
    """P8: anchors share the work, and envelopes are a small part of what a peer sends."""
    world = world_of(8, 24, seed=8)
    sizes: Counter[type] = Counter()
    world.run_for(10_000)
    world.on_frame = lambda data: sizes.update({kind_of(data): len(data)})
    before = {who.name: who.peer.relay_counts.relayed_bytes for who in world.up()}
    world.run_for(60_000)
    carried = {
        who.name: who.peer.relay_counts.relayed_bytes - before[who.name] for who in world.up()
    }
    relays = [name for name, size in carried.items() if size]
    assert len(relays) >= 4, carried
    assert not any(who.name in relays for who in hidden_peers(world))
    assert deaths(world) == 0
    assert_all_well(world)
