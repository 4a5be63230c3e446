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
from dataclasses import dataclass, field, replace

from node.ports import Disk
from node.sim.blobs import STATE_BYTES, SimBlob, blob_of, keep_attachment
from protocol.effects import (
    AddUp,
    Apply,
    GiveBack,
    Hold,
    Patch,
    Proceed,
    Rebuild,
    Restore,
    ServeMend,
    StartWork,
    TakeChecks,
)
from protocol.entries import Attachment, Entry
from protocol.events import (
    Applied,
    Behind,
    ChecksTaken,
    Event,
    Patched,
    Summed,
    WorkDone,
)
from protocol.gathering import read_sum, sum_key
from protocol.ids import Hash, PeerId, digest
from protocol.ledger import Write, round_key
from protocol.messages import Mend, Message
from protocol.parts import SumName, whole_of
from protocol.restore import entry_at, entry_named, offered, parts_of, roster_at, snapshots_on_chain
from protocol.roster import Roster
from protocol.rules import Rules
from protocol.snapshots import SnapshotAt, is_taken, named_in

NAME_BYTES = 8


@dataclass(frozen=True, slots=True)
class Payloads:
    """What peers send each other: so many units a round, each of so many bytes."""

    units_per_round: int = 1
    unit_bytes: int = NAME_BYTES
    attached_bytes: int = 0  # what each contribution brings beside its payload

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


@dataclass(frozen=True, slots=True)
class Snapshots:
    """What stands in for snapshots in a world."""

    bytes: int = 64
    kept: int = 2


class StubWorker:
    """`later(delay_ms, event)` hands an event to the peer after virtual time has passed."""

    def __init__(
        self,
        me: PeerId,
        disk: Disk,
        commits: Commits,
        chance: random.Random,
        work_ms: Callable[[], float],
        later: Callable[[float, Event], None],
        rules: Rules,
        snapshots: Snapshots,
        blobs: dict[Hash, SimBlob],
        send: Callable[[bytes, Message], None],
        call_later: Callable[[float, Callable[[], None]], None],
        founders: Roster,
    ) -> None:
        self._founders = founders
        self._call_later = call_later
        self._postponed: StartWork | None = None
        self._lag: list[Entry] = []  # to be merged, when replaying takes its time
        self._rules, self._snapshots, self._blobs, self._send = rules, snapshots, blobs, send
        self._place: tuple[int, Hash] | None = None  # None: no entry has been merged
        self._taken: dict[int, tuple[Hash, Hash]] = {}  # round -> (entry before it, root)
        self._newest: set[Hash] = set()  # of our attachment, or its parts
        self._established = 0  # the newest of those that the ledger names
        self._is_held = False
        self.restored: list[int] = []  # rounds of the snapshots that were loaded
        self.replay_ms_per_round: float | None = None  # what replaying is said to take
        self.loads_ms = 0.0  # what loading model and data takes
        self._is_loading = False
        self._fetched: Restore | None = None  # meanwhile
        self._me, self._disk, self._chance = me, disk, chance
        self._commits, self._payloads = commits, commits.payloads
        self._work_ms, self._later = work_ms, later
        self.state = 0
        self.pending: dict[bytes, None] = {}
        self.merged: set[Hash] = set()  # the entries that the state is made of
        self.made: list[bytes] = []
        self._offered: tuple[bytes, ...] = ()  # in the newest payload

    @property
    def place(self) -> tuple[int, Hash]:
        return self._place or (0, Hash(bytes(32)))

    def start_work(self, task: StartWork) -> None:
        if self._lag or self._is_held or self._is_loading:
            self._postponed = task  # the state is not there yet
            return
        self._postponed = None
        count = self._payloads.units_per_round
        new = [self._chance.randbytes(NAME_BYTES) for _ in range(count)]
        room = self._rules.payload_bytes_max // self._payloads.unit_bytes
        self._offered = (*new, *self.pending)[:room]  # the rest another time
        payload = self._payloads.join(self._offered)
        named = self._root_named_in(task.round)
        done = WorkDone(task.round, task.parent, self.state, payload, 1.0, None, named)
        self.made += new
        delay_ms = max(0.0, self._work_ms() - task.late_ms)
        if self._payloads.attached_bytes:
            members = len(task.seats)
            self._call_later(delay_ms, lambda: self._attach(done, members))
        else:
            self._later(delay_ms, done)

    def _attach(self, done: WorkDone, members: int) -> None:
        count = self._rules.parts(members)
        seeds = [
            digest("stub attachment", self._me, round_key(done.round), done.payload, bytes([n]))
            for n in range(max(1, count))
        ]
        made = [self._make_blob(seed, self._part_bytes(count), done.round) for seed in seeds]
        self._newest = {whole_of(made).root, *(one.root for one in made)}
        if count:
            done = replace(done, attached=whole_of(made), parts=tuple(made))
        else:
            done = replace(done, attached=made[0])
        self._later(0.0, done)

    def _part_bytes(self, count: int) -> int:
        """Different parts have different bytes, so none is shorter than the seed of its own."""
        size = self._payloads.attached_bytes
        return max(STATE_BYTES, size // count) if count else size

    def _make_blob(self, seed: bytes, size: int, round: int) -> Attachment:
        root, blob = blob_of(int.from_bytes(seed[:STATE_BYTES], "big"), size)
        self._blobs[root] = blob
        keep_attachment(self._disk, root, round)
        return Attachment(root, size)

    def add_up(self, task: AddUp) -> None:
        if not all(map(self._has, task.parts)):
            self._later(0.0, Summed(task.name, None))
            return
        roots = (part.root for part in task.parts)  # of other parts it is another sum
        seed = digest("stub sum", task.entry.hash, bytes([task.name.number]), *roots)
        size = self._part_bytes(self._rules.parts(len(task.seats)))
        self._later(0.0, Summed(task.name, self._make_blob(seed, size, task.entry.round)))

    def _root_named_in(self, round: int) -> Hash | None:
        taken = named_in(round, self._rules)
        parent, root = self._taken.get(taken or 0, (None, None))
        on_chain = taken and self._disk.get("chain", round_key(taken - 1)) == parent
        return root if on_chain else None

    def in_hand(self) -> set[bytes]:
        """Units that may still be committed, and some that are."""
        return {*self._offered, *self.pending}

    def stop_work(self) -> None:
        """Work in the simulator is a delay that ends by itself."""

    def give_back(self, task: GiveBack) -> None:
        if task.attached is not None:
            made = parts_of(self._disk, task.attached) or (task.attached,)
            assert all(map(self._has, made)), "what is given back is still here"
        for unit in self._payloads.units(task.payload):
            if not self._commits.committed(unit, self.merged):
                self.pending[unit] = None

    def apply(self, task: Apply) -> None:
        if self._is_held:
            return
        if self._place is not None and task.entry.round < self._place[0]:
            return  # a snapshot was past it
        if self._is_loading:
            self._lag.append(task.entry)
            self._tell_behind(0, None)
            return
        if self.replay_ms_per_round is not None or self._lag or any(self._lacking(task.entry)):
            self._lag.append(task.entry)
            if len(self._lag) == 1 or any(self._lacking(self._lag[0])):
                self._call_later(self.replay_ms_per_round or 0.0, self._replay_one)
            return
        self._merge(task.entry)
        self._stand(task.entry.round + 1, task.entry.hash)

    def proceed(self, task: Proceed) -> None:
        self._call_later(0.0, self._replay_one)

    def _has(self, attached: Attachment) -> bool:
        blob = self._blobs.get(attached.root)
        return blob is not None and blob.is_whole

    def _lacking(self, entry: Entry) -> tuple[tuple[Attachment, ...], tuple[SumName, ...]]:
        if not self._rules.parts_max:
            return tuple(one for one in entry.body.attachments if not self._has(one)), ()
        if not entry.body.attachments:
            return (), ()
        roster = roster_at(self._disk, self._founders, entry.round)
        assert roster is not None, "what is applied is on disk"
        names = (SumName(entry.hash, n) for n in range(self._rules.parts(len(roster))))
        return (), tuple(name for name in names if not self._has_sum(entry.round, name))

    def _has_sum(self, round: int, name: SumName) -> bool:
        key = sum_key(round, name)
        raw = self._disk.get("sums", key)
        return raw is not None and self._has(read_sum(key, raw)[1])

    def _replay_one(self) -> None:
        """Slowly, so that a snapshot may be the faster way."""
        if self._is_held or not self._lag:
            return
        lacking = self._lacking(self._lag[0])
        if any(lacking):
            self._tell_behind(self._lag[0].round, None, *lacking)
            return
        entry = self._lag.pop(0)
        self._merge(entry)
        self._stand(entry.round + 1, entry.hash)
        ms = self.replay_ms_per_round or 0.0
        if self._lag:
            self._tell_behind(entry.round + 1, ms)
            self._call_later(ms, self._replay_one)

    def _tell_behind(
        self,
        round: int,
        ms_per_round: float | None,
        lacking: tuple[Attachment, ...] = (),
        sums: tuple[SumName, ...] = (),
    ) -> None:
        target = self._lag[-1].round + 1
        found = snapshots_on_chain(self._disk, self._founders, target, self._rules)
        ahead = tuple(one for one in found if one.round > round)
        self._later(0.0, Behind(round, target, ms_per_round, ahead, lacking, sums))

    def _loaded(self) -> None:
        self._is_loading = False
        if self._fetched is not None:
            self.restore(self._fetched)
        elif self._lag:
            self._call_later(0.0, self._replay_one)

    def _stand(self, round: int, hash: Hash) -> None:
        self._place = (round, hash)
        if not self._lag:  # while catching up, only the last digest is worth its time
            self._later(0.0, Applied(round, hash, self.state))
        task = self._postponed
        if task is not None and (task.round, task.parent) == self._place and not self._lag:
            self.start_work(task)
        if is_taken(round, self._rules):
            self._take(round, hash)

    def _take(self, round: int, hash: Hash) -> None:
        root, blob = blob_of(self.state, self._snapshots.bytes)
        self._taken[round] = hash, root
        self._blobs[root] = blob
        for named in snapshots_on_chain(self._disk, self._founders, round, self._rules, 1):
            if self._taken.get(named.round, (None, None))[1] == named.root:
                self._established = named.round
        old = sorted(self._taken)[: -self._snapshots.kept]
        for taken in old:
            if taken != self._established:
                self._blobs.pop(self._taken.pop(taken)[1], None)
        self._collect(self._established)

    def _collect(self, before: int) -> None:
        """Attachments of rounds that nobody will replay."""
        stay = {*offered(self._disk), *self._newest}
        rounds = [(root, int.from_bytes(at, "big")) for root, at in self._disk.scan("attachments")]
        old = [Hash(root) for root, at in rounds if at < before and root not in stay]
        for root in old:
            self._blobs.pop(root, None)
        gone = [Write("attachments", root, None) for root in old]
        gone += [
            Write("parts", root, None) for root, _ in self._disk.scan("parts") if root not in stay
        ]
        for key, _ in self._disk.scan("sums"):
            if int.from_bytes(key[:8], "big") < before:
                gone.append(Write("sums", key, None))
        if gone:
            self._disk.commit(gone)

    def hurry(self) -> None:
        """From now on replaying takes no time."""
        self.replay_ms_per_round = None
        if self._lag and not self._is_held:
            self._call_later(0.0, self._replay_one)

    def hold(self, task: Hold) -> None:
        self._is_held = True

    def restore(self, task: Restore) -> None:
        if self._is_loading:
            self._fetched = task
            return
        self._is_held = False
        self._lag.clear()
        self.replay_ms_per_round = None
        blob, round = self._blobs[task.snapshot.root], task.snapshot.round
        self.restored.append(round)
        self.state = int.from_bytes(blob.chunks[0][:STATE_BYTES], "big")
        self.merged.clear()
        for _, name in self._disk.scan("chain", round_key(0)):
            entry = entry_named(self._disk, Hash(name))
            assert entry is not None, "the chain names an entry that is not on disk"
            if entry.round < round:
                self._learn(entry)
            elif not self._merge_or_wait(entry):
                continue
            self._place = (entry.round + 1, entry.hash)
        assert self._place is not None
        if self._lag:
            self._call_later(0.0, self._replay_one)
        else:
            self._stand(*self._place)

    def _merge_or_wait(self, entry: Entry) -> bool:
        if self._lag or any(self._lacking(entry)):
            self._lag.append(entry)
            return False
        self._merge(entry)
        return True

    def take_checks(self, task: TakeChecks) -> None:
        if self._place == (task.round, task.parent):
            checks = self.state.to_bytes(STATE_BYTES, "big")
            self._later(0.0, ChecksTaken(task.round, task.parent, checks))

    def serve_mend(self, task: ServeMend) -> None:
        if self._place == (task.round, task.parent):
            ours = self.state.to_bytes(STATE_BYTES, "big")
            chunks = ((0, ours),) if ours != task.checks else ()
            self._send(task.to, Mend(task.round, task.parent, len(chunks), chunks))

    def patch(self, task: Patch) -> None:
        if self._place == (task.round, task.parent):
            for _, data in task.chunks:
                self.state = int.from_bytes(data[:STATE_BYTES], "big")
            self._later(0.0, Patched(task.round, task.parent, ("state",), STATE_BYTES))
            self._later(0.0, Applied(task.round, task.parent, self.state))

    def _merge(self, entry: Entry) -> None:
        self.state = next_state(self.state, entry)
        self._learn(entry)

    def _learn(self, entry: Entry) -> None:
        self._commits.learn(entry)
        self.merged.add(entry.hash)
        for unit in [unit for unit in self.pending if self._commits.committed(unit, {entry.hash})]:
            del self.pending[unit]

    def _own_snapshot(self, round: int) -> SnapshotAt | None:
        """To start from where the beginning cannot be merged any more."""
        first = entry_at(self._disk, 0)
        if first is None or not any(self._lacking(first)):
            return None
        for named in snapshots_on_chain(self._disk, self._founders, round, self._rules):
            blob = self._blobs.get(named.root)
            if blob is not None and blob.is_whole:
                return named
        return None

    def rebuild(self, task: Rebuild) -> None:
        self.state = 0
        self._is_held = False
        self._lag.clear()
        self._place = None
        self.merged.clear()
        if self.loads_ms:
            self._is_loading = True
            self._call_later(self.loads_ms, self._loaded)
            self.loads_ms = 0.0
            return
        own = self._own_snapshot(task.round)
        if own is not None:
            self.restore(Restore(own))
            return
        for _, name in self._disk.scan("chain", round_key(0)):
            entry = entry_named(self._disk, Hash(name))
            assert entry is not None, "the chain names an entry that is not on disk"
            if self.replay_ms_per_round is not None:
                self._lag.append(entry)
            elif self._merge_or_wait(entry):
                self._place = (entry.round + 1, entry.hash)
            if entry.round + 1 == task.round:
                break
        if self._lag:
            self._call_later(self.replay_ms_per_round or 0.0, self._replay_one)
        else:
            self._stand(task.round, task.parent)
