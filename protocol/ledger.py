"""The hash chain of closed rounds: what counts as an entry, which of two chains to keep, what to
ask for.

Entries themselves live on disk. In memory is the head, and a *mark* (round, hash, weight, roster)
for the last few hundred entries and, ever sparser, for older ones: enough to judge what arrives and
to find where two chains part, and it does not grow with the number of rounds (P8).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from protocol.codec import encode_entry
from protocol.entries import (
    ENTRY_BYTES_MAX,
    Admission,
    Attachment,
    Body,
    Card,
    Cause,
    Departure,
    Entry,
    Token,
    card_bytes,
    contribution_bytes,
    leave_bytes,
    seal_bytes,
    token_bytes,
)
from protocol.errors import RemoteError
from protocol.identity import Keys
from protocol.ids import Hash, PeerId, RunId
from protocol.messages import Evidence, Head, Locator
from protocol.roster import Roster
from protocol.rules import Rules

RECENT: Final = 256
_SWEEP: Final = 64  # marks are thinned out every so many rounds
BRANCH_MAX: Final = 100_000
_LEFT_MAX: Final = 64

Weigh = Callable[[bytes], int]


@dataclass(frozen=True, slots=True, eq=False)
class Mark:
    """A place on a chain: the state of everything that follows from the ledger alone."""

    round: int  # the round that is open here
    hash: Hash  # the entry before it; the run id at the beginning
    weight: int
    roster: Roster


@dataclass(frozen=True, slots=True)
class Write:
    """One record for the disk; None deletes."""

    table: str
    key: bytes
    value: bytes | None


class Judge:
    """Is an entry valid after a mark, and what is the mark after it?

    Pure, so peers of one simulation may share one; it remembers its latest verdicts.
    """

    def __init__(self, run: RunId, rules: Rules, keys: Keys, weigh: Weigh) -> None:
        self.run, self.rules, self.weigh = run, rules, weigh
        self._keys = keys
        self._verdicts: dict[tuple[Hash, Hash, bytes, tuple[bytes, ...]], Mark] = {}

    def follow(self, mark: Mark, entry: Entry) -> Mark:
        """The mark after `entry`. Raises RemoteError when it does not follow, or was not signed as
        it says.
        """
        key = (mark.roster.hash, entry.hash, entry.seal, entry.signatures)
        known = self._verdicts.get(key)
        if known is not None and entry.body.parent == mark.hash:
            return known
        weight = self._check(mark, entry)
        after = Mark(
            mark.round + 1, entry.hash, mark.weight + weight, mark.roster.after(entry.body)
        )
        if not after.roster.members:
            raise RemoteError("an entry that leaves nobody")
        if len(after.roster) > self.rules.members_max:
            raise RemoteError(f"more than {self.rules.members_max} members")
        if len(self._verdicts) >= 64:
            self._verdicts.pop(next(iter(self._verdicts)))
        self._verdicts[key] = after
        return after

    def _check(self, mark: Mark, entry: Entry) -> int:
        body = entry.body
        if body.round != mark.round or body.parent != mark.hash:
            raise RemoteError(f"entry {body.round} does not follow")
        if len(entry.raw) > ENTRY_BYTES_MAX:
            raise RemoteError("entry out of bounds")
        self.check_seal(mark, entry)
        self._check_changes(mark, body)
        return self._check_lines(mark, entry)

    def check_seal(self, mark: Mark, entry: Entry) -> PeerId:
        """Who sealed `entry`, a member at `mark`."""
        body, members = entry.body, mark.roster.members
        if body.closer >= len(members):
            raise RemoteError("an entry that was closed by nobody")
        seal = seal_bytes(self.run, body.round, body.parent, entry.hash)
        if not self._keys.verify(members[body.closer], seal, entry.seal):
            raise RemoteError(f"entry {body.round} has a false seal")
        return members[body.closer]

    def _check_lines(self, mark: Mark, entry: Entry) -> int:
        body, members = entry.body, mark.roster.members
        if not body.lines:
            raise RemoteError("an entry without contributions")
        last, weight = -1, 0
        for line, signature in zip(body.lines, entry.signatures, strict=True):
            if not last < line.seat < len(members):
                raise RemoteError("contributions out of order or from a stranger")
            last = line.seat
            weight += self.weigh_payload(line.payload, line.attached)
            signed = contribution_bytes(self.run, body.round, body.parent, body.state, line)
            if not self._keys.verify(members[line.seat], signed, signature):
                raise RemoteError(f"contribution of seat {line.seat} has a false signature")
        return weight

    def weigh_payload(self, payload: bytes, attached: Attachment | None = None) -> int:
        """Work in a payload, at least 1. Raises RemoteError for bytes that no method can merge."""
        if len(payload) > self.rules.payload_bytes_max:
            raise RemoteError(f"payload of {len(payload)} bytes")
        if attached is not None and not 1 <= attached.size <= self.rules.attachment_bytes_max:
            raise RemoteError(f"an attachment of {attached.size} bytes")
        try:
            weight = self.weigh(payload)
        except ValueError as error:
            raise RemoteError(f"payload: {error}") from error
        if not 1 <= weight <= 1 << 32:
            raise RemoteError(f"payload claims {weight} units of work")
        return weight

    def _check_changes(self, mark: Mark, body: Body) -> None:
        joining = [admission.card.peer for admission in body.admissions]
        if joining != sorted(set(joining)) or len(joining) > self.rules.joins_per_entry_max:
            raise RemoteError("admissions out of order or too many")
        for admission in body.admissions:
            self.check_admission(mark.roster, admission)
        seats = [departure.seat for departure in body.departures]
        if seats != sorted(set(seats)):
            raise RemoteError("departures out of order")
        for departure in body.departures:
            self.check_departure(mark, departure)

    def check_card(self, card: Card) -> None:
        signed = card_bytes(self.run, card.peer, card.sequence, card.addresses)
        if not self._keys.verify(card.peer, signed, card.signature):
            raise RemoteError("a card with a false signature")

    def check_token(self, token: Token) -> None:
        signed = token_bytes(self.run, token.minter, token.expires_s, token.nonce)
        if not self._keys.verify(token.minter, signed, token.signature):
            raise RemoteError("a token with a false signature")

    def check_admission(self, roster: Roster, admission: Admission) -> None:
        self.check_card(admission.card)
        if admission.token is not None:
            self.check_token(admission.token)
        if not roster.may_join(admission):
            raise RemoteError("a peer that may not join")

    def check_departure(self, mark: Mark, departure: Departure) -> None:
        if departure.seat >= len(mark.roster):
            raise RemoteError("a departure of nobody")
        peer = mark.roster.members[departure.seat]
        if departure.cause is Cause.LEFT:
            may_leave = mark.roster.may_leave(peer, departure.round, mark.round)
            notice = leave_bytes(self.run, peer, departure.round)
            if departure.round > mark.round or not may_leave:
                raise RemoteError("a notice of leaving that has lapsed or not begun")
            if not self._keys.verify(peer, notice, departure.proof):
                raise RemoteError("a notice of leaving that does not hold")
        elif departure.cause is Cause.EQUIVOCATED:
            self.check_equivocation(peer, departure)

    def check_evidence(self, evidence: Evidence) -> None:
        halves = evidence.first, evidence.first_seal, evidence.second, evidence.second_seal
        proof = b"".join((evidence.parent, *halves))
        departure = Departure(0, Cause.EQUIVOCATED, evidence.round, proof)
        self.check_equivocation(evidence.closer, departure)

    def check_equivocation(self, peer: PeerId, departure: Departure) -> None:
        """The proof: parent, then twice a hash and its seal."""
        proof = departure.proof
        if len(proof) != 32 + 2 * 96:
            raise RemoteError("a proof of the wrong size")
        parent = Hash(proof[:32])
        halves = (proof[32:128], proof[128:224])
        if halves[0][:32] == halves[1][:32]:
            raise RemoteError("a proof that names one entry twice")
        for half in halves:
            signed = seal_bytes(self.run, departure.round, parent, Hash(half[:32]))
            if not self._keys.verify(peer, signed, half[32:]):
                raise RemoteError("a proof with a false seal")


class Ledger:
    """The chain that this peer follows, and at most one other that it is reading."""

    def __init__(
        self, judge: Judge, founders: Iterable[PeerId], marks: Iterable[Mark] = ()
    ) -> None:
        self.judge = judge
        self.genesis = Mark(0, Hash(judge.run), 0, Roster(founders))
        self._marks: dict[int, Mark] = {0: self.genesis}
        for mark in marks:
            self._marks[mark.round] = mark
        self.head = self._marks[max(self._marks)]
        self._branch: list[Mark] = []
        self._branch_root: Mark | None = None
        self._left: dict[Hash, None] = {}  # entries that we cannot merge: no chain of ours has them

    def summary(self) -> Head:
        return Head(self.head.round, self.head.weight, self.head.hash[:8])

    def mark_at(self, round: int) -> Mark | None:
        return self._marks.get(round)

    def weight_at(self, round: int) -> float:
        """Units of work committed before `round`; between marks, as if spread evenly."""
        before = max(at for at in self._marks if at <= round)
        after = min((at for at in self._marks if at >= round), default=before)
        first, last = self._marks[before].weight, self._marks[after].weight
        return first + (last - first) * (round - before) / max(1, after - before)

    def locators(self, most: int) -> tuple[Locator, ...]:
        """Newest first: the last few one by one, then each a third farther back, and the beginning.

        So what two peers hold in common is asked for again only to a third of what they do not.
        """
        chosen: list[int] = []
        gap = 0
        for round in sorted(self._marks, reverse=True):
            if round and len(chosen) < most - 1 and self.head.round - round >= gap:
                chosen.append(round)
                behind = self.head.round - round
                gap = max(behind + 1, behind * 4 // 3)
        return tuple(Locator(round, self._marks[round].hash) for round in [*chosen, 0])

    def extend(self, entry: Entry) -> list[Write]:
        """Append to the chain. Raises RemoteError; returns what to write down before anything else
        happens.
        """
        mark = self.judge.follow(self.head, entry)
        self.head = mark
        return [_keep(entry), *self._advance([mark])]

    def retreat(self, root: Mark, entry: Entry) -> list[Write]:
        """Leave the chain from `entry` on, which follows `root`: what it lists cannot be had."""
        assert self._marks.get(root.round) is root, "a mark of this chain"
        self._left[entry.hash] = None
        while len(self._left) > _LEFT_MAX:
            del self._left[next(iter(self._left))]
        writes = self._cut(root)
        self._branch, self._branch_root = [], None
        self.head = root
        return writes

    def has_left(self, entry: Hash) -> bool:
        return entry in self._left

    def allow(self, entry: Hash) -> None:
        """It can be merged after all."""
        self._left.pop(entry, None)

    def offer(self, entries: Iterable[Entry], *, may_switch: bool) -> "Step":
        """Entries that somebody sent for catching up: extend the chain, or grow the branch beside
        it.

        A branch is kept to itself until it is the heavier one (ties by the smaller hash); then the
        chain switches. What came before a bad entry counts; `Step.fault` says what was wrong. One
        that follows nothing we know is no fault: its sender stands on a branch that we have not
        seen, or have given up since we asked. It and what comes after it is left out.
        """
        step = Step()
        try:
            for entry in entries:
                if entry.hash in self._left:
                    step.left = entry
                    break
                if not self._offer_one(entry, step, may_switch=may_switch):
                    break
        except RemoteError as error:
            step.fault = error
        return step

    def _offer_one(self, entry: Entry, step: "Step", *, may_switch: bool) -> bool:
        """False if it follows nothing that is known here."""
        if entry.body.parent == self.head.hash:
            step.writes += self.extend(entry)
            step.last = entry
            if step.switched_from is None:
                step.appended.append(entry)
            return True
        known = self._marks.get(entry.round + 1)
        if known is not None and known.hash == entry.hash:
            return True
        if not may_switch:
            if entry.round >= self.head.round:
                raise RemoteError(f"entry {entry.round} does not follow what is committed here")
            return True
        on_branch = self._on_branch(entry.round + 1)
        if on_branch is not None and on_branch.hash == entry.hash:
            return True
        if not self._grow(entry):
            return False
        step.read.append(entry)
        step.writes.append(_keep(entry))
        if heavier(self._branch[-1], self.head):
            self._switch(step)
            step.last = entry
        return True

    def _grow(self, entry: Entry) -> bool:
        """The branch, or another that parts from it, or from our chain; False: it follows none."""
        parent = entry.body.parent
        tip = self._on_branch(entry.round)
        is_on_branch = tip is not None and tip.hash == parent
        if not is_on_branch:
            tip = self._marks.get(entry.round)
        if tip is None or tip.hash != parent:
            return False
        after = self.judge.follow(tip, entry)
        if not is_on_branch:
            self._branch, self._branch_root = [after], tip
            return True
        length = entry.round - self._branch[0].round + 1
        if length >= BRANCH_MAX:
            raise RemoteError("a branch that is too long")
        del self._branch[length:]
        self._branch.append(after)
        return True

    def place_before(self, entry: Entry) -> Mark | None:
        """On our chain or on the branch; None if it follows neither."""
        for mark in (self._marks.get(entry.round), self._on_branch(entry.round)):
            if mark is not None and mark.hash == entry.body.parent:
                return mark
        return None

    def _on_branch(self, round: int) -> Mark | None:
        """Where `round` is open on the branch."""
        at = round - self._branch[0].round if self._branch else -1
        return self._branch[at] if 0 <= at < len(self._branch) else None

    def branch_tip(self) -> Mark | None:
        return self._branch[-1] if self._branch else None

    def _switch(self, step: "Step") -> None:
        assert self._branch_root is not None
        root, branch = self._branch_root, self._branch
        step.switched_from = step.switched_from or self.head
        earlier = root.round if step.fork_round is None else step.fork_round
        step.fork_round = min(root.round, earlier)
        step.appended.clear()
        step.writes += self._cut(root)
        self._branch, self._branch_root = [], None
        self.head = branch[-1]
        step.writes += self._advance(branch)

    def _cut(self, root: Mark) -> list[Write]:
        """Forget what the chain holds after `root`."""
        gone = range(root.round, self.head.round)
        writes = [Write("chain", round_key(round), None) for round in gone]
        for round in [round for round in self._marks if round > root.round]:
            del self._marks[round]
            writes.append(Write("marks", round_key(round), None))
        return writes

    def _advance(self, marks: list[Mark]) -> list[Write]:
        writes: list[Write] = []
        for mark in marks:
            before = self._marks.get(mark.round - 1)
            if before is None or before.roster.hash != mark.roster.hash:
                writes.append(Write("rosters", mark.roster.hash, mark.roster.encode()))
            writes.append(Write("chain", round_key(mark.round - 1), mark.hash))
            writes.append(Write("marks", round_key(mark.round), encode_mark(mark)))
            self._marks[mark.round] = mark
        if marks[-1].round // _SWEEP != (marks[0].round - 1) // _SWEEP:
            writes += self._thin_out()
        return writes

    def _thin_out(self) -> list[Write]:
        """A mark RECENT * 2^k rounds old stays only if its round is a multiple of 2^(k+1)."""
        writes: list[Write] = []
        for round in sorted(self._marks):
            octaves = ((self.head.round - round) // RECENT).bit_length()
            if round % (1 << octaves):
                del self._marks[round]
                writes.append(Write("marks", round_key(round), None))
        return writes


@dataclass(slots=True)
class Step:
    """What came of offered entries."""

    writes: list[Write] = field(default_factory=list)
    appended: list[Entry] = field(default_factory=list)  # apply in order; none if it switched
    switched_from: Mark | None = None  # the head before the chain switched: rebuild the state
    fork_round: int | None = None  # the first round that differs
    last: Entry | None = None  # the newest entry of the chain, if it moved
    fault: RemoteError | None = None  # an entry did not hold, and what followed was not looked at
    left: Entry | None = None  # one that we left came up, and what followed was not looked at
    read: list[Entry] = field(default_factory=list)  # of the branch; of the chain if it switched


def heavier(one: Mark, other: Mark) -> bool:
    """Fork choice: more committed work; ties by the smaller hash (P5)."""
    return (one.weight, other.hash) > (other.weight, one.hash)


def head_is_better(theirs: Head, ours: Head) -> bool:
    """The same choice, by what a head tells."""
    return (theirs.weight, ours.tip) > (ours.weight, theirs.tip)


def round_key(round: int) -> bytes:
    return round.to_bytes(8, "big")


def seal_key(round: int, parent: Hash) -> bytes:
    """In the table "votes", of our own entry."""
    return round_key(round) + b"s" + parent


def encode_mark(mark: Mark) -> bytes:
    return mark.hash + mark.weight.to_bytes(8, "big") + mark.roster.hash


def decode_mark(key: bytes, raw: bytes, rosters: dict[bytes, Roster]) -> Mark:
    """What `encode_mark` made, from our own disk."""
    weight = int.from_bytes(raw[32:40], "big")
    return Mark(int.from_bytes(key, "big"), Hash(raw[:32]), weight, rosters[raw[40:72]])


def _keep(entry: Entry) -> Write:
    return Write("entries", entry.hash, encode_entry(entry))
