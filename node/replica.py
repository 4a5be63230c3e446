"""The replicated state at one place on the chain, and how it moves: entry by entry, or back and on
again.

The trainer's thread uses it while a peer runs; `peer export`, `peer generate` and `peer apply` use
it alone, because the ledger is the model.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from torch import Tensor

from node import checkpoints
from node.methods.base import Contribution, Method, RoundContext
from protocol.codec import decode
from protocol.entries import Entry
from protocol.ids import Hash, PeerId, RunId, digest
from protocol.ledger import round_key
from protocol.messages import Contribute
from protocol.restore import Reader, entry_at
from protocol.roster import Roster

SETTLED_ROUNDS: Final = 64  # how far back own work is looked up; older is too late to be offered
_TELL_S: Final = 0.5
_ROSTER_IN_MARK: Final = slice(40, 72)

Progress = Callable[[str, int, int], None]  # what, done, total


class Replica:
    """`round` is the round that is open at the state's place, `hash` the entry before it."""

    def __init__(
        self,
        method: Method,
        initial_state: Callable[[], Mapping[str, Tensor]],  # made anew: the state before round 0
        run: RunId,
        me: PeerId,
        founders: tuple[PeerId, ...],
    ) -> None:
        self.method = method
        self._initial_state = initial_state
        self._run, self._me, self._founders = run, me, founders
        self.round, self.hash = 0, Hash(run)

    def digest(self) -> int:
        return self.method.state_digest(state_key(self._run, self.round, self.hash))

    def merge(self, entry: Entry, seats: tuple[PeerId, ...]) -> None:
        assert entry.body.parent == self.hash, "entries are applied in the ledger's order"
        context = RoundContext(self._run, entry.round, self._me, seats, lambda: False)
        lines = [Contribution(seats[line.seat], line.payload) for line in entry.body.lines]
        self.method.merge(context, lines)
        self.round, self.hash = entry.round + 1, entry.hash

    def save(self, home: Path) -> None:
        state = self.method.replicated_state()
        checkpoints.save(home, self.round, self.hash, state, {"run": self._run.hex()})

    # Moving along the chain on disk

    def rebuild(
        self, disk: Reader, home: Path, round: int, progress: Progress, *, from_scratch: bool
    ) -> None:
        """To the place on the chain where `round` is open, as far as the chain on disk leads."""
        stands = not from_scratch and self._stands_on(disk, round)
        least = self.round + 1 if stands else 1
        if from_scratch or (not self._load_checkpoint(disk, home, least, round) and not stands):
            self.method.load_replicated_state(self._initial_state())
            self.round, self.hash = 0, Hash(self._run)
        first, told = self.round, time.monotonic()
        roster = self._roster(disk) if self.round < round else None
        while self.round < round:
            entry = entry_at(disk, self.round)
            if entry is None or roster is None or entry.body.parent != self.hash:
                return  # the chain moved under us; another rebuild is queued
            self.merge(entry, roster.members)
            roster = roster.after(entry.body)
            if time.monotonic() - told > _TELL_S:
                told = time.monotonic()
                progress("replaying", self.round - first, round - first)

    def _stands_on(self, disk: Reader, round_max: int) -> bool:
        return self.round <= round_max and _is_on_chain(disk, self.round, self.hash)

    def _load_checkpoint(self, disk: Reader, home: Path, least: int, most: int) -> bool:
        """The newest one on the chain, of a round from `least` to `most`."""
        for round in sorted(checkpoints.rounds(home), reverse=True):
            if not least <= round <= most:
                continue
            found = checkpoints.load(home, round)
            if found is not None and _is_on_chain(disk, round, found.entry_hash):
                self.method.load_replicated_state(found.tensors)
                self.round, self.hash = round, Hash(found.entry_hash)
                self._settle(disk)
                return True
        return False

    def _settle(self, disk: Reader) -> None:
        """Tell the method which of our recent work is part of the state that was loaded."""
        first = max(0, self.round - SETTLED_ROUNDS)
        for key, raw in disk.scan("outbox", round_key(first)):
            round = int.from_bytes(key, "big")
            message = decode(raw)
            assert isinstance(message, Contribute), "the outbox holds contributions"
            entry = entry_at(disk, round) if round < self.round else None
            payloads = [line.payload for line in entry.body.lines] if entry else []
            if message.payload in payloads:
                self.method.settled(round, message.payload)

    def _roster(self, disk: Reader) -> Roster | None:
        """Of the open round: from the nearest mark before it, and the entries since."""
        roster, start = Roster(self._founders), 0
        for key, mark in disk.scan("marks"):
            at = int.from_bytes(key, "big")
            kept = disk.get("rosters", mark[_ROSTER_IN_MARK])
            if start < at <= self.round and kept is not None:
                roster, start = Roster.decode(kept), at
        for between in range(start, self.round):
            entry = entry_at(disk, between)
            if entry is None:
                return None
            roster = roster.after(entry.body)
        return roster


def _is_on_chain(disk: Reader, round: int, name: bytes) -> bool:
    """Is `name` the entry before `round`?"""
    return round == 0 or disk.get("chain", round_key(round - 1)) == name


def state_key(run: RunId, round: int, parent: Hash) -> int:
    """The key of a state digest: nobody can know it before the entry before is closed."""
    return int.from_bytes(digest("state", run, round.to_bytes(8, "big"), parent)[:8], "big")
