"""Processes that nobody can dial: they meet through those that somebody can."""

from node.swarm import PeerProcess, Swarm
from tests.shell.swarms import WAIT_S, entries, words


def reached(peer: PeerProcess, other: PeerProcess) -> tuple[str, str | None]:
    assert peer.seen is not None
    assert other.seen is not None
    (row,) = (row for row in peer.seen["members"] if row["peer"] == other.seen["peer"])
    return row["reached"], row["through"]


def grow(swarm: Swarm, listening: int, hidden: int) -> None:
    swarm.found()
    assert swarm.wait(swarm.invite_file.exists, WAIT_S), words(swarm)
    for listen in ["tcp://127.0.0.1:0"] * (listening - 1) + ["none"] * hidden:
        swarm.join(listen=listen)

    def all_in() -> bool:
        seen = [peer.seen for peer in swarm.peers]
        return all(facts and len(facts["members"]) == listening + hidden for facts in seen)

    assert swarm.wait(all_in, WAIT_S), words(swarm)


def healths(peer: PeerProcess) -> dict[str, str]:
    assert peer.seen is not None
    return {row["peer"]: row["health"] for row in peer.seen["members"]}


def in_full(reader: PeerProcess, first: int, members: int) -> int:
    """How many entries since `first` list contributions of so many."""
    return sum(len(entry.body.lines) >= members for entry in entries(reader)[first:])


def test_two_that_nobody_can_dial(swarm: Swarm) -> None:
    """P4:
    1. Two peers can be dialled, two cannot. All contribute to the same rounds.
    2. The one through which the latter meet is killed. They meet through the other one.
    3. They go on in the same rounds, and stay members.
    """
    grow(swarm, listening=2, hidden=2)
    founder, second, one, two = swarm.peers
    start = len(entries(founder))
    assert swarm.wait(lambda: in_full(founder, start, 4) >= 8, WAIT_S), words(swarm)

    def through() -> set[str]:
        ways = [reached(one, two), reached(two, one)]
        return {relay for way, relay in ways if way == "relay" and relay is not None}

    assert swarm.wait(lambda: len(through()) > 0, WAIT_S), words(swarm)
    for hidden in (one, two):
        assert hidden.seen is not None
        assert hidden.seen["addresses"] == []

    def settled() -> bool:
        """A ping that was slow while processes started was taken round for a while."""
        pairs = [(hidden, open) for hidden in (one, two) for open in (founder, second)]
        return all(
            reached(hidden, open) == ("direct", None) and reached(open, hidden) == ("inbound", None)
            for hidden, open in pairs
        )

    assert swarm.wait(settled, WAIT_S), words(swarm)
    assert all(peer.seen and peer.seen["faults"] == 0 for peer in swarm.peers)

    (relay, *_) = through()
    victim = next(peer for peer in (founder, second) if peer.seen and peer.seen["peer"] == relay)
    other = second if victim is founder else founder
    assert other.seen is not None
    swarm.kill(victim)
    start = len(entries(one))
    assert swarm.wait(lambda: in_full(one, start, 3) >= 8, WAIT_S), words(swarm)
    name = other.seen["peer"]
    assert swarm.wait(lambda: through() == {name}, WAIT_S), words(swarm)
    assert other.seen["relayed"] > 0
    for peer in (other, one, two):
        assert {health for name, health in healths(peer).items() if name != relay} == {"alive"}
