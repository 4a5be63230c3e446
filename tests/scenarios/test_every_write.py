"""P3: a process may end before or after any of its writes; nothing is lost, and it comes back.

One small world for each write of one peer: the world runs to that write, the process ends there,
and starts again two seconds later with what its disk holds.
"""

import pytest

from node.sim.checks import Safety
from node.sim.world import CrashError, SimPeer, World
from protocol.codec import decode
from protocol.messages import Contribute
from protocol.rules import Quorum, Rules
from tests.scenarios.telling import assert_all_well, units_on_chain

FEW = range(1, 33)
"""Joining, and three or more rounds, in which each peer is closer, deputy and neither."""


def world_of_three(quorum: Quorum) -> World:
    """p0 founds, p1 and p2 join."""
    rules = Rules(quorum=quorum, window_ms=500, deadline_ceiling_ms=1_000, deadline_floor_ms=200)
    world = World(3, 7, rules, founders=1)
    world.on_event = Safety(world).after_event
    world.keep_notes = False
    return world


def die_at_write(who: SimPeer, number: int, *, after: bool) -> None:
    """The process ends at its commit of this number, before or after that takes effect."""

    def maybe() -> None:
        if who.disk.commits + (not after) == number:
            who.disk.before = who.disk.after = lambda: None
            raise CrashError

    if after:
        who.disk.after = maybe
    else:
        who.disk.before = maybe


def written_units(world: World, who: SimPeer) -> set[bytes]:
    """The work that its disk holds."""
    found = set[bytes]()
    for _, raw in who.disk.scan("outbox"):
        message = decode(raw)
        assert isinstance(message, Contribute)
        found.update(world.payloads.units(message.payload))
    return found


def crash_and_return(quorum: Quorum, name: str, number: int, *, after: bool) -> bool:
    """False: there was no such write within a minute."""
    world = world_of_three(quorum)
    who = world.peers[name]
    die_at_write(who, who.disk.commits + number, after=after)
    while who.up:
        world.run_for(100)
        if world.now_ms > 60_000:
            return False
    held, chain = written_units(world, who), who.disk.scan("chain")
    applied = dict(chain)
    world.run_for(2_000)
    world.start(who)
    assert_all_well(world)
    assert who.worker is not None
    lost = held - units_on_chain(world, name) - who.worker.in_hand()
    assert not lost, f"{len(lost)} units that were on disk at the crash"
    if quorum is Quorum.MAJORITY:
        assert applied.items() <= dict(who.disk.scan("chain")).items(), "a committed round is gone"
    return True


@pytest.mark.parametrize("name", ["p0", "p1"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("quorum", list(Quorum))
def test_a_process_may_end_at_any_write(quorum: Quorum, after: bool, name: str) -> None:
    """P3, P4, P5: for the founder and for a joiner, in both kinds of runs."""
    for number in FEW:
        died = crash_and_return(quorum, name, number, after=after)
        assert died, f"write {number} was never made"
