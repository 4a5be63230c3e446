"""The replicated state at one place on the chain, and how it moves: entry by entry, or in one leap
from a snapshot.

The trainer's thread uses it while a peer runs; `peer export`, `peer generate` and `peer apply` use
it alone, because the ledger is the model.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Final, Protocol

from node.guard import StateGuard
from node.methods.base import Contribution, Method, RoundContext, Summing
from node.snapshots import Record
from protocol.codec import decode
from protocol.entries import Attachment, Entry
from protocol.ids import Hash, PeerId, RunId, digest
from protocol.ledger import round_key
from protocol.messages import Contribute
from protocol.parts import SumName
from protocol.restore import Reader, entry_at, roster_at
from protocol.roster import Roster

if TYPE_CHECKING:
    from torch import Tensor

    from node.stream import StateStream

SETTLED_ROUNDS: Final = 64  # how far back own work is looked up; older is too late to be offered
_TELL_S: Final = 0.5

Progress = Callable[[str, int, int], None]  # what, done, total
Place = tuple[int, Hash]  # the round that is open, and the entry before it


class Library(Protocol):
    """Snapshots to start from."""

    def newest(self) -> list[Record]: ...

    def load(self, record: Record) -> "dict[str, Tensor] | None": ...


class AttachmentLibrary(Protocol):
    """What entries' lines have beside them."""

    def has(self, attached: Attachment) -> bool: ...

    def read(self, attached: Attachment) -> bytes | None: ...

    def sum(self, round: int, name: SumName) -> Attachment | None: ...


class NoAttachments:
    """For runs that have none, and where nothing is merged."""

    def has(self, attached: Attachment) -> bool:
        return False

    def read(self, attached: Attachment) -> bytes | None:
        return None

    def sum(self, round: int, name: SumName) -> Attachment | None:
        return None


class LackingError(Exception):
    """The next entry cannot be merged yet: some of what it attaches, or of what that comes to, is
    not on disk, or is none (`refused`).
    """

    def __init__(
        self,
        round: int,
        attachments: tuple[Attachment, ...] = (),
        sums: tuple[SumName, ...] = (),
        refused: tuple[SumName, ...] = (),
    ) -> None:
        super().__init__(f"round {round} lacks {len(attachments)} attachments, {len(sums)} sums")
        self.round, self.attachments, self.sums, self.refused = round, attachments, sums, refused


class Replica:
    """`round` is the round that is open at the state's place, `hash` the entry before it."""

    def __init__(
        self,
        method: Method,
        initial_state: Callable[[], "Mapping[str, Tensor]"],  # made anew: the state before round 0
        run: RunId,
        me: PeerId,
        founders: tuple[PeerId, ...],
        attachments: AttachmentLibrary | None = None,
        parts: Callable[[int], int] = lambda members: 0,  # in which they are summed
    ) -> None:
        self.method, self._attachments = method, attachments or NoAttachments()
        self._parts = parts
        self.guard = StateGuard()
        self._initial_state = initial_state
        self._run, self._me, self.founders = run, me, Roster(founders)
        self.round, self.hash = 0, Hash(run)
        self._digest: tuple[Place, int, int] | None = None  # of a place and a version of the state
        self._roster: tuple[Place, Roster] | None = None  # of the open round, once it was wanted
        # Told of a contribution that is in the ledger and cannot be merged: round, author, why.
        self.unusable: Callable[[int, PeerId, str], None] = lambda round, author, why: None

    @property
    def place(self) -> Place:
        return self.round, self.hash

    def digest(self) -> int:
        """Computed once for each place, and again when the state was mended there."""
        with self.guard.reading() as version:
            known = self._digest
            if known is not None and known[:2] == (self.place, version):
                return known[2]
            found = self.method.state_digest(state_key(self._run, self.round, self.hash))
            self._digest = self.place, version, found
            return found

    def stream(self) -> "StateStream":
        """The state's bytes, as a snapshot of this place would hold them."""
        meta = {
            "format": "1",
            "run": self._run.hex(),
            "round": str(self.round),
            "entry": self.hash.hex(),
        }
        from node.stream import StateStream  # torch: for who trains

        return StateStream(self.method.replicated_state(), meta)

    def merge(self, entry: Entry, seats: tuple[PeerId, ...]) -> None:
        """Raises LackingError, and has done nothing then."""
        assert entry.body.parent == self.hash, "entries are applied in the ledger's order"
        parts = self._parts(len(seats)) if entry.body.attachments else 0
        context = RoundContext(self._run, entry.round, self._me, seats, lambda: False, parts)
        if parts:
            assert isinstance(self.method, Summing), "only these have attachments in parts"
            sums, lines = self._sums(self.method, context, entry), self._own_alone(entry, seats)
            with self.guard.writing():
                self.method.merge_sums(context, lines, sums)
                self.round, self.hash = entry.round + 1, entry.hash
            return
        lines = self._contributions(entry, seats)
        with self.guard.writing():
            self.method.merge(context, lines)
            self.round, self.hash = entry.round + 1, entry.hash

    def _sums(self, method: Summing, context: RoundContext, entry: Entry) -> list[bytes]:
        names = [SumName(entry.hash, number) for number in range(context.parts)]
        found: list[bytes] = []
        lacking: list[SumName] = []
        refused: list[SumName] = []
        for name in names:
            where = self._attachments.sum(entry.round, name)
            data = None if where is None else self._attachments.read(where)
            if data is None:
                lacking.append(name)
                continue
            try:
                method.check_sum(context, name.number, data)
            except ValueError:
                lacking.append(name)
                refused.append(name)
            else:
                found.append(data)
        if lacking:
            raise LackingError(entry.round, sums=tuple(lacking), refused=tuple(refused))
        return found

    def _own_alone(self, entry: Entry, seats: tuple[PeerId, ...]) -> list[Contribution]:
        """All lines, with what we attached ourselves to ours, if that is still here."""
        found: list[Contribution] = []
        for line in entry.body.lines:
            data = None
            if seats[line.seat] == self._me and line.attached is not None:
                data = self._attachments.read(line.attached)
            found.append(Contribution(seats[line.seat], line.payload, data or b""))
        return found

    def _contributions(self, entry: Entry, seats: tuple[PeerId, ...]) -> list[Contribution]:
        """Those that can be merged. Whether one can follows from the round and its bytes, which its
        name fixes: so all peers leave out the same ones.
        """
        lacking = [one for one in entry.body.attachments if not self._attachments.has(one)]
        if lacking:
            raise LackingError(entry.round, tuple(lacking))
        found: list[Contribution] = []
        for line in entry.body.lines:
            data = b"" if line.attached is None else self._attachments.read(line.attached)
            if data is None:
                assert line.attached is not None
                raise LackingError(entry.round, (line.attached,))  # the disk damaged it
            try:
                self.method.check(entry.round, line.payload, data)
            except ValueError as error:
                self.unusable(entry.round, seats[line.seat], str(error))
            else:
                found.append(Contribution(seats[line.seat], line.payload, data))
        return found

    def patch(self, chunks: tuple[tuple[int, bytes], ...]) -> tuple[list[str], int]:
        """Put right what differs. Returns the tensors' names, and how many bytes were wrong."""
        names: dict[str, None] = {}
        changed = 0
        with self.guard.writing():
            stream = self.stream()
            for number, data in chunks:
                stream.check(number, data)
            for number, data in chunks:
                found, count = stream.write(number, data)
                names |= dict.fromkeys(found)
                changed += count
            # What is made from the state, or was a copy of it, follows.
            self.method.load_replicated_state(stream.tensors)
        return list(names), changed

    # Moving along the chain on disk

    def start_over(self) -> None:
        with self.guard.writing():
            self.method.load_replicated_state(self._initial_state())
            self.round, self.hash = 0, Hash(self._run)

    def load(self, tensors: "Mapping[str, Tensor]", place: Place, disk: Reader) -> None:
        """Raises ValueError for tensors that are not this method's."""
        with self.guard.writing():
            self.method.load_replicated_state(tensors)
            self.round, self.hash = place
        self._settle(disk)

    def stands_on(self, disk: Reader, round_max: int) -> bool:
        """Is this place on the chain, and not past `round_max`?"""
        return self.round <= round_max and is_on_chain(disk, self.round, self.hash)

    def step(self, disk: Reader) -> bool:
        """Merge the chain's next entry; False if there is none after this place. Raises
        LackingError.
        """
        entry = entry_at(disk, self.round)
        if entry is None or entry.body.parent != self.hash:
            return False
        roster = self._roster_here(disk)
        if roster is None:
            return False
        self.merge(entry, roster.members)
        self._roster = self.place, roster.after(entry.body)
        return True

    def rebuild(self, disk: Reader, library: Library, round: int, progress: Progress) -> None:
        """To the place on the chain where `round` is open, as far as the chain on disk leads.
        Raises LackingError.
        """
        self.find_start(disk, library, round)
        first, told = self.round, time.monotonic()
        while self.round < round and self.step(disk):
            if time.monotonic() - told > _TELL_S:
                told = time.monotonic()
                progress("replaying", self.round - first, round - first)

    def find_start(self, disk: Reader, library: Library, round: int) -> None:
        """The nearest place before `round` that the state can be at without replaying."""
        stands = self.stands_on(disk, round)
        for taken, record in on_chain(disk, library):
            if taken > round or (stands and taken <= self.round):
                continue
            tensors = library.load(record)
            if tensors is not None:
                self.load(tensors, (taken, Hash(record.entry)), disk)
                return
        if not stands:
            self.start_over()

    def _settle(self, disk: Reader) -> None:
        """Tell the method which of our recent work is part of the state that was loaded."""
        first = max(0, self.round - SETTLED_ROUNDS)
        for key, raw in disk.scan("outbox", round_key(first)):
            round = int.from_bytes(key, "big")
            message = decode(raw)
            assert isinstance(message, Contribute), "the outbox holds contributions"
            entry = entry_at(disk, round) if round < self.round else None
            # By signature, not by payload: two peers' small payloads may well be the same bytes.
            if entry is not None and message.signature in entry.signatures:
                attached = message.attached
                data = None if attached is None else self._attachments.read(attached)
                self.method.settled(round, message.payload, data or b"")

    def _roster_here(self, disk: Reader) -> Roster | None:
        """Of the open round."""
        if self._roster is not None and self._roster[0] == self.place:
            return self._roster[1]
        return roster_at(disk, self.founders, self.round)


def is_on_chain(disk: Reader, round: int, name: bytes) -> bool:
    """Is `name` the entry before `round`?"""
    return round == 0 or disk.get("chain", round_key(round - 1)) == name


def on_chain(disk: Reader, library: Library) -> Iterator[tuple[int, Record]]:
    """Snapshots of places on the chain, newest first, each with its round."""
    for record in library.newest():
        if record.round is not None and is_on_chain(disk, record.round, record.entry):
            yield record.round, record


def state_key(run: RunId, round: int, parent: Hash) -> int:
    """The key of a state digest: nobody can know it before the entry before is closed."""
    return int.from_bytes(digest("state", run, round.to_bytes(8, "big"), parent)[:8], "big")
