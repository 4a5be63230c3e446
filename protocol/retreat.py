"""An entry whose attachments nobody sends: when to leave the chain before it, and when to go back.

Where any seal counts, an entry may have been held by few, and those may be gone with what it lists.
Nobody can merge it then, and nobody needs to (P4): the rest go on from before it, and from then on
that chain is one among two (P5), followed again as soon as it can be.
"""

from collections.abc import Iterable, Sequence, Set
from typing import Final

from protocol.core import Core
from protocol.entries import Entry
from protocol.holdings import Holdings
from protocol.ids import Hash
from protocol.ledger import Mark
from protocol.roster import Roster
from protocol.rules import Quorum

RETREAT_ROUNDS_MAX: Final = 64


class Retreat:
    def __init__(self, core: Core, holdings: Holdings) -> None:
        self._core, self._holdings = core, holdings
        self._entries: dict[tuple[int, Hash], Entry] = {}  # of our chain, lately, by their place
        self._asked: dict[Hash, Hash] = {}  # for what left entries list, and at which head

    def joined(self, entry: Entry) -> None:
        """The chain."""
        self._entries[entry.round, entry.body.parent] = entry
        while len(self._entries) > RETREAT_ROUNDS_MAX:
            del self._entries[next(iter(self._entries))]

    def from_round(self, round: int) -> tuple[Mark, Entry] | None:
        """The entry that closed `round`, and the place before it, if it is right to leave it."""
        core = self._core
        before = core.ledger.mark_at(round)
        entry = None if before is None else self._entries.get((round, before.hash))
        if core.rules.quorum is not Quorum.ANY or before is None or entry is None:
            return None
        if core.me not in before.roster:
            return None
        if before.roster.members[entry.body.closer] == core.me:
            return None  # our own seal binds us: another for the same round would be equivocation
        up = set(core.membership.others_up()) - core.membership.down()
        if _contributes(up, before.roster.after(entry.body), self._since(round + 1)):
            return None
        return before, entry

    def _since(self, round: int) -> list[Entry]:
        marks = (self._core.ledger.mark_at(at) for at in range(round, self._core.head.round))
        found = (self._entries.get((mark.round, mark.hash)) for mark in marks if mark is not None)
        return [entry for entry in found if entry is not None]

    def reconsider(self, source: bytes, entry: Entry, following: Sequence[Entry]) -> bool:
        """`source` follows an entry that we left. Once what it lists is to be had, so will we."""
        core, before = self._core, self._core.ledger.place_before(entry)

        def allow() -> None:
            core.ledger.allow(entry.hash)

        if before is None:
            return False
        if _contributes({source}, before.roster.after(entry.body), following):
            allow()
            return True
        if self._asked.get(entry.hash) != core.head.hash:  # else it is waited for
            self._asked[entry.hash] = core.head.hash
            while len(self._asked) > RETREAT_ROUNDS_MAX:
                del self._asked[next(iter(self._asked))]
            self._holdings.want_left(entry, before.roster.members, allow)
        return False


def _contributes(who: Set[bytes], roster: Roster, entries: Iterable[Entry]) -> bool:
    """Did one of these contribute to entries that start with this roster? Then its state came past
    the one before, and it can help whoever lacks that one's attachments: with those, or with a
    snapshot.
    """
    for entry in entries:
        members = roster.members
        if any(line.seat < len(members) and members[line.seat] in who for line in entry.body.lines):
            return True
        roster = roster.after(entry.body)
    return False
