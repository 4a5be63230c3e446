"""Words that the scenarios are told in."""

from collections.abc import Callable, Container

from node.sim.checks import assert_counted, assert_live, assert_unblamed
from node.sim.world import CrashError, SimPeer, World
from protocol.ids import PeerId
from protocol.restore import entry_at
from protocol.rounds import ranking


def deadline_ms(world: World) -> int:
    """The longest that a closer waits before it closes a round."""
    return world.rules.window_ms + world.rules.deadline_ceiling_ms


def head(world: World) -> int:
    """The newest round that anybody has open."""
    return max(world.rounds())


def closer_of_open_round(world: World) -> SimPeer:
    newest = max(world.up(), key=lambda who: who.peer.ledger.head.round).peer.ledger.head
    return world.by_id[ranking(world.run, newest.round, newest.roster)[0]]


def assert_moves_on(world: World, within_ms: float, rounds: int = 1) -> None:
    """Everybody who is up closes so many more rounds in time (P4)."""
    goal = head(world) + rounds
    assert world.run_until(lambda: min(world.rounds()) >= goal, within_ms), world.rounds()


def assert_all_well(world: World, liars: Container[str] = ()) -> None:
    """All are members of one ledger with one state and go on (P1, P4, P5); no work is lost (P3);
    nobody honest was blamed (P6).
    """
    assert_live(world)
    assert_counted(world)
    assert_unblamed(world, liars)


def roster_of(world: World, reader: str) -> set[str]:
    """Who is a member, as `reader` sees it."""
    members = world.peers[reader].peer.ledger.head.roster.members
    return {world.by_id[member].name for member in members}


def everyone_is_member(world: World) -> Callable[[], bool]:
    return lambda: all(who.peer.is_member for who in world.up())


def units_on_chain(world: World, reader: str) -> set[bytes]:
    """All units of work that the ledger of `reader` lists."""
    who, found = world.peers[reader], set[bytes]()
    for round in range(who.peer.ledger.head.round):
        entry = entry_at(who.disk, round)
        assert entry is not None
        for line in entry.body.lines:
            found.update(world.payloads.units(line.payload))
    return found


def notes_called(world: World, event: str, name: str | None = None) -> int:
    return sum(note.event == event and name in (None, who) for _, who, note in world.notes)


def die_after_writes(who: SimPeer, writes: int) -> None:
    """The process ends at a commit, once so many more have been made."""
    left = writes

    def before() -> None:
        nonlocal left
        if left == 0:
            who.disk.before = lambda: None
            raise CrashError
        left -= 1

    who.disk.before = before


def die_after_sends(world: World, who: SimPeer, kind: type, sends: int) -> None:
    """The process ends while it sends messages of one kind, after so many of them."""
    from protocol.codec import kind_of

    left, post, life = sends, world.post, who.life

    def hook(sender: PeerId, to: PeerId, data: bytes) -> None:
        nonlocal left
        if sender == who.id and who.life == life and kind_of(data) is kind:
            if left == 0:
                world.post = post  # type: ignore[method-assign]
                raise CrashError
            left -= 1
        post(sender, to, data)

    world.post = hook  # type: ignore[method-assign]
