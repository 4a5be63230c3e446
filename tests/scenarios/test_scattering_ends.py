"""Attachments that are summed part by part, when those who hold them end: at any write, or an
author together with who holds a part of it.
"""

from collections.abc import Callable
from itertools import product

import pytest

from node.sim.world import SimPeer, World
from protocol.blobs import Bits
from protocol.deal import Deal
from protocol.ids import PeerId
from protocol.restore import entry_at
from protocol.rules import Quorum
from tests.scenarios.attaching import agree, newest
from tests.scenarios.test_every_write import die_at_write
from tests.scenarios.test_scattering import BOTH, assert_moves_on, swarm


@BOTH
@pytest.mark.parametrize("peers", [1, 2])
def test_all_may_end_at_any_write(peers: int, quorum: Quorum) -> None:
    """P3: also between an entry and what it comes to, when nobody else has that."""
    for number, after in product(range(1, 15), [False, True]):
        world = swarm(peers, quorum=quorum, parts_max=2)
        assert world.run_until_round(2)
        for who in world.up():
            die_at_write(who, who.disk.commits + number, after=after)
        assert world.run_until(lambda world=world: not world.up(), 30_000), f"write {number}"
        known = {name: dict(who.disk.scan("chain")) for name, who in world.peers.items()}
        for who in world.peers.values():
            who.disk.before = who.disk.after = lambda: None
            world.start(who)
        assert_moves_on(world, 2, 60_000)
        for name, who in world.peers.items() if peers == 1 or quorum is Quorum.MAJORITY else ():
            assert known[name].items() <= dict(who.disk.scan("chain")).items()
        assert not world.counts["sums-differ"]


def only_holder(deal: Deal, closer: PeerId, author: PeerId) -> PeerId | None:
    """Of one of its parts: who has it, beside its author, as far as the closer was told."""
    seat = deal.mark.roster.seat(author)
    assert seat is not None
    for number in range(deal.count):
        told = deal.told.get(number, {}).items()
        having = [who for who, raw in told if who != author and seat in Bits(6, raw)]
        if len(having) == 1 and not deal.holds(author, number) and closer not in having:
            return having[0]
    return None


def end_both(world: World, is_due: Callable[[SimPeer], bool]) -> list[SimPeer]:
    """An author, and the only one that holds a part of it, end as soon as it would be listed."""
    dead: list[SimPeer] = []

    def look(who: SimPeer) -> None:
        if dead or not who.up or not is_due(who):
            return
        deal = who.peer._scattering.open_deal()
        assert deal is not None
        for author in who.peer._closing._round.held:
            holder = None if author == who.id else only_holder(deal, who.id, author)
            if holder is not None:
                dead.extend((world.by_id[author], world.by_id[holder]))
                for one in dead:
                    world.crash(one)
                    one.wants_up = False
                return

    world.on_event = look
    assert world.run_until(lambda: bool(dead), 30_000)
    world.on_event = lambda who: None
    return dead


@BOTH
@pytest.mark.parametrize("seed", range(3))
def test_what_nobody_can_add_up_is_not_listed(quorum: Quorum, seed: int) -> None:
    """P4: once it is known who is gone. What they brought counts when they are back (P3)."""
    world = swarm(6, seed, quorum, parts_max=6)
    assert world.run_until_round(3)
    dead = end_both(
        world,
        lambda who: who.peer.ledger.head.round > 3 and who.peer._core.ranked()[0] == who.id,
    )
    assert_moves_on(world, 3)
    for one in dead:
        world.start(one)
    assert world.run_until(lambda: len(world.up()) == 6 and agree(world), 120_000)
    assert_moves_on(world, 2)
    first = world.peers["p0"]
    assert world.run_until(lambda: len(newest(first, 1)[0].body.lines) == 6, 60_000)
    assert not world.counts["sums-differ"]


@pytest.mark.parametrize("seed", range(3))
def test_who_leaves_an_entry_brings_something_else(seed: int) -> None:
    """P1, P2: an entry that nobody can add up is left; what all bring to the same place then is
    other work in other parts, and nothing is summed of the parts that came before.
    """
    world = swarm(6, seed, parts_max=6)
    assert world.run_until_round(3)
    gone: list[SimPeer] = []

    def look(who: SimPeer) -> None:
        """Who closed, and half of all, end before anything is added up."""
        head = who.peer.ledger.head if who.up else None
        if gone or head is None or head.round < 4:
            return
        entry = entry_at(who.disk, head.round - 1)
        before = who.peer.ledger.mark_at(head.round - 1)
        assert entry is not None
        assert before is not None
        closer = before.roster.members[entry.body.closer]
        if closer == who.id:
            return
        others = [one for one in world.up() if one.id not in (who.id, closer)]
        gone.extend((world.by_id[closer], *others[:2]))
        for one in gone:
            world.crash(one)
            one.wants_up = False

    world.on_event = look
    assert world.run_until(lambda: bool(gone), 30_000)
    world.on_event = lambda who: None
    assert_moves_on(world, 4, 200_000)
    assert world.counts["switched"]
    for one in gone:
        world.start(one)
    assert world.run_until(lambda: len(world.up()) == 6 and agree(world), 200_000)
    assert_moves_on(world, 2)
    assert not world.counts["sums-differ"]
