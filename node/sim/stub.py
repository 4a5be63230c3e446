"""What stands in for a trainer in a simulation: units of work that can be counted, and a state
that can be compared.

A payload is a list of units, each a name of 8 bytes and as much padding as makes it the size of
what it stands for. The state is a hash over everything merged, in
order, so two peers agree on it only if they merged the same entries. Pending units follow the rule
that every method follows: given back, they are offered again, unless a merge shows that they were
committed.
"""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from protocol.entries import Entry
from protocol.events import Applied, Apply, Event, Rebuild, StartWork, WorkDone
from protocol.ids import Hash, PeerId, digest
from protocol.ledger import round_key
from protocol.restore import Reader, entry_named

NAME_BYTES = 8


@dataclass(frozen=True, slots=True)
class Payloads:
    """What peers send each other: so many units a round, each of so many bytes."""

    units_per_round: int = 1
    unit_bytes: int = NAME_BYTES

    def __post_init__(self) -> None:
        assert self.unit_bytes >= NAME_BYTES, "a unit holds its name"

    def weigh(self, payload: bytes) -> int:
        """Units in a payload; ValueError if it is none."""
        if not payload or len(payload) % self.unit_bytes:
            raise ValueError("not a list of units")
        return len(payload) // self.unit_bytes

    def units(self, payload: bytes) -> list[bytes]:
        """The names of the units in it."""
        return [payload[at : at + NAME_BYTES] for at in range(0, len(payload), self.unit_bytes)]

    def join(self, names: Iterable[bytes]) -> bytes:
        return b"".join(name.ljust(self.unit_bytes, b"\0") for name in names)


def next_state(state: int, entry: Entry) -> int:
    mixed = digest("stub", state.to_bytes(8, "big"), entry.hash)
    return int.from_bytes(mixed[:8], "big")


@dataclass(slots=True)
class Commits:
    """Which entries list which units; one for the whole world, as it follows from entries alone."""

    payloads: Payloads
    _entries: set[Hash] = field(default_factory=set)
    _where: dict[bytes, list[Hash]] = field(default_factory=dict)

    def learn(self, entry: Entry) -> None:
        if entry.hash in self._entries:
            return
        self._entries.add(entry.hash)
        for line in entry.body.lines:
            for unit in self.payloads.units(line.payload):
                self._where.setdefault(unit, []).append(entry.hash)

    def committed(self, unit: bytes, chain: set[Hash]) -> bool:
        return any(entry in chain for entry in self._where.get(unit, ()))


class StubWorker:
    """`later(delay_ms, event)` hands an event to the peer after virtual time has passed."""

    def __init__(
        self,
        me: PeerId,
        disk: Reader,
        commits: Commits,
        chance: random.Random,
        work_ms: Callable[[], float],
        later: Callable[[float, Event], None],
    ) -> None:
        self._me, self._disk, self._chance = me, disk, chance
        self._commits, self._payloads = commits, commits.payloads
        self._work_ms, self._later = work_ms, later
        self.state = 0
        self.pending: dict[bytes, None] = {}
        self.merged: set[Hash] = set()  # the entries that the state is made of
        self.made: list[bytes] = []
        self._offered: tuple[bytes, ...] = ()  # in the newest payload

    def start_work(self, task: StartWork) -> None:
        count = self._payloads.units_per_round
        new = [self._chance.randbytes(NAME_BYTES) for _ in range(count)]
        self._offered = (*new, *self.pending)
        payload = self._payloads.join(self._offered)
        done = WorkDone(task.round, task.parent, self.state, payload, 1.0, None)
        self.made += new
        self._later(self._work_ms(), done)

    def in_hand(self) -> set[bytes]:
        """Units that may still be committed, and some that are."""
        return {*self._offered, *self.pending}

    def stop_work(self) -> None:
        """Work in the simulator is a delay that ends by itself."""

    def give_back(self, round: int, payload: bytes) -> None:
        for unit in self._payloads.units(payload):
            if not self._commits.committed(unit, self.merged):
                self.pending[unit] = None

    def apply(self, task: Apply) -> None:
        self._merge(task.entry)
        self._later(0.0, Applied(task.entry.round + 1, task.entry.hash, self.state))

    def _merge(self, entry: Entry) -> None:
        self.state = next_state(self.state, entry)
        self._commits.learn(entry)
        self.merged.add(entry.hash)
        for unit in [unit for unit in self.pending if self._commits.committed(unit, {entry.hash})]:
            del self.pending[unit]

    def rebuild(self, task: Rebuild) -> None:
        self.state = 0
        self.merged.clear()
        for _, name in self._disk.scan("chain", round_key(0)):
            entry = entry_named(self._disk, Hash(name))
            assert entry is not None, "the chain names an entry that is not on disk"
            self._merge(entry)
            if entry.round + 1 == task.round:
                break
        self._later(0.0, Applied(task.round, task.parent, self.state))
