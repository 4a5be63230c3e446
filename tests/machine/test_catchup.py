"""Who is behind asks; who is one round behind waits for what is on its way (P8)."""

from protocol.events import Tick
from protocol.ids import Millis
from protocol.messages import Closed, Entries, EntriesRequest, Head, Ping
from tests.machine.making import RULES, Door, entry, ids

P = ids(12)
ME, ONE, TWO = P[:3]
LEVEL_MS = 2 * RULES.ping_timeout_ms


def ahead(rounds: int) -> Ping:
    return Ping(1, Head(rounds, 10 * rounds, bytes(8)), ())


def asked_at(door: Door, until_ms: int) -> int | None:
    """When it asks for entries, if it does by then; it is woken whenever it wants to be."""
    while door.now <= until_ms:
        if door.sent(EntriesRequest):
            return door.now
        wake = door.peer.wake_ms
        assert wake is not None
        door.now = wake
        door.effects = door.peer.handle(Tick(), Millis(wake))
    return None


def test_one_round_behind_waits_as_long_as_the_tree_is_deep() -> None:
    """One level for a few, two for more than `fanout` others."""
    for members, levels in ((P[:3], 1), (P[:12], 2)):
        door = Door(ME, members)
        door.hear(ONE, ahead(1))
        assert asked_at(door, 10_000) == levels * LEVEL_MS


def test_farther_behind_asks_at_once() -> None:
    door = Door(ME, P[:3])
    door.hear(ONE, ahead(2))
    assert [to for to, _ in door.sent(EntriesRequest)] == [(ONE,)]


def test_a_stranger_asks_at_once() -> None:
    """Nobody sends entries to who is no member yet."""
    door = Door(P[5], P[:3])
    (((asked,), _),) = door.sent(EntriesRequest)
    door.hear(asked, Entries((), door.peer.ledger.summary()))
    assert not door.sent(EntriesRequest)
    door.hear(asked, ahead(1))
    assert door.sent(EntriesRequest)


def test_what_came_by_itself_is_not_asked_for() -> None:
    door = Door(ME, P[:3])
    closed = entry(door.mark, ONE)
    door.hear(TWO, Ping(1, Head(1, 1, closed.hash[:8]), ()))
    door.now = LEVEL_MS // 2
    door.hear(ONE, Closed(closed))
    assert door.mark.round == 1
    assert asked_at(door, 4 * LEVEL_MS) is None
