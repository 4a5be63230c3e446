"""From records on disk back to a peer: what was saved, seen the way the machine wants it after a
start.
"""

from collections.abc import Iterator
from typing import Final, Protocol

from protocol.codec import decode, decode_attachments, decode_card_list, decode_entry
from protocol.deal import read_dealt
from protocol.effects import GiveBack
from protocol.entries import Attachment, Card, Entry
from protocol.gathering import read_sum
from protocol.ids import Hash
from protocol.ledger import Mark, decode_mark, round_key
from protocol.messages import Contribute, Locator
from protocol.open_round import Vote
from protocol.peer import Saved
from protocol.roster import Roster
from protocol.rounds import ARRIVALS_MIN
from protocol.rules import Rules
from protocol.snapshots import SnapshotAt, established, naming_rounds

TABLES: Final = (
    "entries",
    "chain",
    "marks",
    "rosters",
    "votes",
    "outbox",
    "cards",
    "meta",
    "snapshots",
    "attachments",
    "parts",
    "sums",
    "dealt",
)
_ROSTER_IN_MARK: Final = slice(40, 72)
_REPLY_BYTES: Final = 1 << 20
_REPLY_ENTRIES: Final = 256
_TOOK_ROUNDS: Final = 2 * ARRIVALS_MIN
_PERIODS: Final = 8  # how far back snapshots are looked for
# ... and how far until there is one at all: as long as no two members hold the same state, nobody's
# snapshot is most members'.
_PERIODS_MOST: Final = 256


class Reader(Protocol):
    """Records by table and key."""

    def get(self, table: str, key: bytes) -> bytes | None: ...

    def scan(self, table: str, first: bytes = b"") -> Iterator[tuple[bytes, bytes]]: ...


def entry_at(disk: Reader, round: int) -> Entry | None:
    """The chain's entry that closed `round`."""
    name = disk.get("chain", round_key(round))
    return None if name is None else entry_named(disk, Hash(name))


def entry_named(disk: Reader, name: Hash) -> Entry | None:
    raw = disk.get("entries", name)
    return None if raw is None else decode_entry(raw)


def roster_at(disk: Reader, founders: Roster, round: int) -> Roster | None:
    """Of `round`: from the nearest mark before it and the entries since. None if the chain on disk
    does not lead there.
    """
    roster, start = founders, 0
    for key, mark in disk.scan("marks"):
        at = int.from_bytes(key, "big")
        if at > round:
            break
        kept = disk.get("rosters", mark[_ROSTER_IN_MARK])
        if kept is not None:
            roster, start = Roster.decode(kept), at
    for between in range(start, round):
        entry = entry_at(disk, between)
        if entry is None:
            return None
        roster = roster.after(entry.body)
    return roster


def snapshots_on_chain(
    disk: Reader, founders: Roster, head: int, rules: Rules, most: int = 2
) -> list[SnapshotAt]:
    """The newest snapshots whose roots the first `head` entries of the chain establish."""
    found: list[SnapshotAt] = []
    for round in naming_rounds(head, rules):
        entry, roster = entry_at(disk, round), roster_at(disk, founders, round)
        snapshot = None
        if entry is not None and roster is not None:
            snapshot = established(entry, rules, len(roster))
        if snapshot is not None:
            found.append(snapshot)
        periods = (head - round) / rules.snapshot_every
        if len(found) >= most or periods > (_PERIODS if found else _PERIODS_MOST):
            break
    return found


def restore(disk: Reader, genesis: Mark) -> Saved:
    """What a peer needs to go on where its process ended."""
    rosters = {key: Roster.decode(raw) for key, raw in disk.scan("rosters")}
    rosters[genesis.roster.hash] = genesis.roster
    marks = {0: genesis}
    for key, raw in disk.scan("marks"):
        mark = decode_mark(key, raw, rosters)
        marks[mark.round] = mark
    head = marks[max(marks)]
    mine = _contribution_after(head, disk.get("outbox", round_key(head.round)))
    return Saved(
        tuple(marks.values()),
        entry_at(disk, head.round - 1) if head.round else None,
        _vote(disk, head),
        mine,
        () if mine is None else parts_of(disk, mine.attached),
        tuple(work for work in unlisted(disk) if mine is None or work.round != head.round),
        tuple(Hash(root) for root, _ in disk.scan("attachments")),
        tuple(read_sum(key, raw) for key, raw in disk.scan("sums")),
        tuple(read_dealt(key, raw) for key, raw in disk.scan("dealt")),
        _contribution_before(disk, marks.get(head.round - 1)),
        tuple(decode_entry(raw) for key, raw in disk.scan("votes") if key[8:9] == b"s"),
        tuple(_took(disk, head)),
    )


def parts_of(disk: Reader, whole: Attachment | None) -> tuple[Attachment, ...]:
    """Of our own attachment; none if it was made in one piece."""
    raw = None if whole is None else disk.get("parts", whole.root)
    return () if raw is None else decode_attachments(raw)


def _took(disk: Reader, head: Mark) -> Iterator[int]:
    for round in range(max(0, head.round - _TOOK_ROUNDS), head.round):
        entry = entry_at(disk, round)
        if entry is not None:
            yield entry.body.took_ms


def _vote(disk: Reader, head: Mark) -> Vote:
    key = round_key(head.round)
    vote = Vote()
    promised = disk.get("votes", key + b"p")
    if promised is not None and promised[:32] == head.hash:
        vote.promised = int.from_bytes(promised[32:], "big")
    accepted = disk.get("votes", key + b"a")
    if accepted is not None:
        entry = decode_entry(accepted[4:])
        if entry.body.parent == head.hash:
            vote.accepted = int.from_bytes(accepted[:4], "big"), entry
    return vote


def _contribution_after(head: Mark, raw: bytes | None) -> Contribute | None:
    message = None if raw is None else decode(raw)
    if isinstance(message, Contribute) and message.tip == head.hash[:8]:
        return message
    return None


def _contribution_before(
    disk: Reader, mark: Mark | None
) -> tuple[Contribute, tuple[Attachment, ...]] | None:
    """To the round that is open at `mark`, and what it attaches."""
    raw = None if mark is None else disk.get("outbox", round_key(mark.round))
    mine = None if mark is None else _contribution_after(mark, raw)
    return None if mine is None else (mine, parts_of(disk, mine.attached))


def unlisted(disk: Reader) -> Iterator[GiveBack]:
    """Our own contributions that no entry of the chain lists.

    They missed their round, or the chain that listed them is no longer ours.
    """
    for _, raw in disk.scan("outbox"):
        message = decode(raw)
        assert isinstance(message, Contribute), "the outbox holds contributions"
        entry = entry_at(disk, message.round)
        # By signature, not by payload: two peers' small payloads may well be the same bytes.
        on_chain = entry is not None and entry.body.parent[:8] == message.tip
        if entry is None or not on_chain or message.signature not in entry.signatures:
            yield GiveBack(message.round, message.payload, message.attached)


def offered(disk: Reader) -> set[Hash]:
    """Attachments of our own that may have to be given back, should the chain switch; and what
    they are made of.
    """
    found: set[Hash] = set()
    for _, raw in disk.scan("outbox"):
        message = decode(raw)
        assert isinstance(message, Contribute), "the outbox holds contributions"
        if message.attached is not None:
            found.add(message.attached.root)
            found.update(part.root for part in parts_of(disk, message.attached))
    return found


def saved_cards(disk: Reader) -> tuple[Card, ...]:
    return tuple(card for _, raw in disk.scan("cards") for card in decode_card_list(raw))


def entries_after(
    disk: Reader, locators: tuple[Locator, ...], bytes_max: int = _REPLY_BYTES
) -> tuple[Entry, ...]:
    """What follows the first locator that is on our chain, as many entries as one frame should
    carry: at least one, and more up to `bytes_max`.
    """
    for locator in locators:
        if locator.round == 0 or disk.get("chain", round_key(locator.round - 1)) == locator.entry:
            return _read_on(disk, locator.round, min(bytes_max, _REPLY_BYTES))
    return ()


def _read_on(disk: Reader, round: int, room: int) -> tuple[Entry, ...]:
    found: list[Entry] = []
    for _, name in disk.scan("chain", round_key(round)):
        raw = disk.get("entries", name)
        if raw is None or (found and (room < len(raw) or len(found) >= _REPLY_ENTRIES)):
            break
        room -= len(raw)
        found.append(decode_entry(raw))
    return tuple(found)
