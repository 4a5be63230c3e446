"""What must hold in every world: the promises, as assertions over what peers have applied."""

from collections import Counter
from collections.abc import Container, Iterable
from dataclasses import dataclass, field

from node.sim.world import SimPeer, World
from protocol.codec import decode
from protocol.ids import Hash
from protocol.ledger import round_key
from protocol.messages import Contribute
from protocol.restore import entry_at
from protocol.rules import Quorum


class BrokenPromiseError(AssertionError):
    """A promise does not hold; the message names it, the seed and the story."""


def fail(world: World, promise: str, what: str, *who: SimPeer) -> None:
    raise BrokenPromiseError(f"{promise} at {world.now_ms:.0f} ms: {what}\n{stories(who)}")


def stories(who: Iterable[SimPeer]) -> str:
    """The last things that happened to these, each by its own clock."""
    return "\n".join(f"--- {peer.name}\n" + "\n".join(peer.peer.story) for peer in who if peer.up)


@dataclass(slots=True)
class Safety:
    """Do peers differ that should not (P5)? `after_event` and `every_second` look.

    In runs that vote, no two peers ever apply different entries for one round.
    (P5).

    In runs where any sealed entry counts, two peers may differ only while they cannot reach each
    other. A pair that has been joined and up for `patience_ms` must agree on the newest round that
    both have closed.
    """

    world: World
    patience_ms: float = 120_000
    _entries: dict[int, Hash] = field(default_factory=dict)
    _seen: dict[str, tuple[int, Hash]] = field(default_factory=dict)
    _apart_ms: dict[tuple[str, str], float] = field(default_factory=dict)

    def after_event(self, who: SimPeer) -> None:
        if not who.up:
            return
        head = who.peer.ledger.head
        if self._seen.get(who.name) == (head.round, head.hash):
            return
        before = self._seen.get(who.name, (0, Hash(self.world.run)))
        self._seen[who.name] = (head.round, head.hash)
        if self.world.rules.quorum is Quorum.MAJORITY:
            self._one_entry_a_round(who, before[0], head.round)

    def _one_entry_a_round(self, who: SimPeer, first: int, last: int) -> None:
        if last < first:
            fail(self.world, "P5", f"{who.name} went back from round {first} to {last}", who)
        for round in range(first, last):
            name = who.disk.get("chain", round_key(round))
            assert name is not None
            other = self._entries.setdefault(round, Hash(name))
            if other != name:
                fail(self.world, "P5", f"two entries were applied for round {round}", who)

    def every_second(self) -> None:
        """Runs where any sealed entry counts: look at every pair."""
        if self.world.rules.quorum is Quorum.MAJORITY:
            return
        up = [peer for peer in self.world.peers.values() if peer.up]
        names = {peer.name for peer in up}
        for pair in [pair for pair in self._apart_ms if not set(pair) <= names]:
            del self._apart_ms[pair]
        for index, one in enumerate(up):
            for other in up[index + 1 :]:
                self._look_at(one, other)

    def _look_at(self, one: SimPeer, other: SimPeer) -> None:
        world, pair = self.world, (one.name, other.name)
        paused = max(one.paused_until_ms, other.paused_until_ms) > world.now_ms
        if paused or not world.network.joined(one.id, other.id) or not self._differ(one, other):
            self._apart_ms.pop(pair, None)
            return
        since = self._apart_ms.setdefault(pair, world.now_ms)
        if world.now_ms - since > self.patience_ms:
            fail(
                world,
                "P5",
                f"{one.name} and {other.name} can reach each other and differ",
                one,
                other,
            )

    def _differ(self, one: SimPeer, other: SimPeer) -> bool:
        """Is there a round for which both have applied an entry, and not the same?"""
        round = min(one.peer.ledger.head.round, other.peer.ledger.head.round)
        if round == 0:
            return False
        key = round_key(round - 1)
        return one.disk.get("chain", key) != other.disk.get("chain", key)


def assert_live(world: World, rounds: int = 3, most_ms: float = 900_000) -> None:
    """After healing: all are members, all advance, on one ledger, with one state (P1, P4, P5).

    States come to a place when what it takes is there, so they are compared by place: any two that
    stand at the same one, whenever that is.
    """
    start = max((peer.peer.ledger.head.round for peer in world.up()), default=0)
    states: dict[tuple[int, Hash], set[int]] = {}

    def together() -> bool:
        up = world.up()
        on = all(who.peer.is_member and who.place[0] >= start + rounds for who in up)
        if not on or len({who.peer.ledger.head.hash for who in up}) > 1:
            return False
        for who in up:
            states.setdefault(who.place, set()).add(who.state)
        here = {who.place for who in up}
        return len(here) < max(2, len(up)) and all(len(states[place]) == 1 for place in here)

    if not world.run_until(together, most_ms):
        heads = [
            f"{who.name}: round {who.peer.ledger.head.round} {who.peer.ledger.head.hash[:4].hex()}"
            f" member {who.peer.is_member}"
            for who in world.up()
        ]
        fail(world, "P4", "no common progress after healing\n" + "\n".join(heads), *world.up())


def assert_counted(world: World) -> None:
    """Every unit of work on a disk is committed once, or its author still holds it (P3)."""
    reader = world.up()[0]
    committed: Counter[bytes] = Counter()
    for round in range(reader.peer.ledger.head.round):
        entry = entry_at(reader.disk, round)
        assert entry is not None
        for line in entry.body.lines:
            committed.update(world.payloads.units(line.payload))
    twice = [unit.hex() for unit, count in committed.items() if count > 1]
    if twice:
        fail(world, "P3", f"units {twice[:3]} were committed more than once", reader)
    for who in world.up():
        assert who.worker is not None
        _nothing_lost(world, who, committed)


def assert_unblamed(world: World, liars: Container[str] = ()) -> None:
    """Whoever keeps to the protocol is at fault in nobody's eyes but a liar's, whatever was lost,
    came late or went down (P6, P7).
    """
    for who, source, error in world.blamed:
        other = world.by_id.get(source)
        name = source.hex()[:8] if other is None else other.name
        if who.name not in liars and name not in liars:
            fail(world, "P6", f"{who.name} blames {name}: {error}", who)


def _nothing_lost(world: World, who: SimPeer, committed: Counter[bytes]) -> None:
    assert who.worker is not None
    held = set(who.worker.pending)
    for _, raw in who.disk.scan("outbox"):
        message = decode(raw)
        assert isinstance(message, Contribute)
        mine = world.payloads.units(message.payload)
        at_work = message.round >= who.peer.ledger.head.round
        lost = [unit for unit in mine if unit not in committed and unit not in held]
        if lost and not at_work:
            fail(world, "P3", f"{who.name} lost units {[unit.hex() for unit in lost[:3]]}", who)
