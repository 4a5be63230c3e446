"""Staying on one chain with the others: see who is ahead, ask, and switch to the heavier chain.

One request is under way at a time. Whoever answers is asked again until it has no more; whoever is
silent is not waited for. What is asked for is found on disk by the other side (`ServeEntries`), so
nothing here grows with the chain.
"""

from collections.abc import Callable
from typing import Final

from protocol.core import Core
from protocol.entries import Entry
from protocol.errors import RemoteError
from protocol.events import ServeEntries
from protocol.ids import ID_BYTES, Millis, PeerId
from protocol.ledger import Step, head_is_better
from protocol.messages import Entries, EntriesRequest, Evidence, Head, Locator
from protocol.rules import Quorum

_EVIDENCE_ROUNDS: Final = 64


class CatchUp:
    """`advance` is called with what came of offered entries."""

    def __init__(self, core: Core, advance: Callable[[Step], None]) -> None:
        self._core, self._advance = core, advance
        self._asked: bytes | None = None
        self._asked_until_ms = 0
        self._best: tuple[bytes, Head] | None = None  # the best head heard of that is not ours yet
        self._seals: dict[
            tuple[PeerId, int, bytes], Entry
        ] = {}  # closer, round, parent -> what it sealed
        self.guilty: dict[PeerId, Evidence] = {}

    @property
    def wake_ms(self) -> Millis | None:
        return Millis(self._asked_until_ms) if self._asked is not None else None

    @property
    def busy(self) -> bool:
        """Is a better chain known than ours?"""
        return self._best is not None

    def heard_head(self, source: bytes, head: Head) -> None:
        if head_is_better(head, self._core.ledger.summary()):
            if self._best is None or head_is_better(head, self._best[1]):
                self._best = (source, head)
            self.ask(source)

    def tick(self) -> None:
        core = self._core
        if self._asked is None or core.now < self._asked_until_ms:
            return
        silent, self._asked = self._asked, None
        if self._best is None or not head_is_better(self._best[1], core.ledger.summary()):
            self._best = None
            return
        others = [peer for peer in core.membership.others_up() if peer != silent]
        self.ask(core.dice.pick(others)[0] if others else silent)
        if self._best[0] == silent:
            self._best = None  # whoever is ahead will say so again

    def ask(self, source: bytes) -> None:
        """Ask `source` for what follows our chain, unless somebody is being asked already."""
        core = self._core
        if self._asked is not None or len(source) != ID_BYTES or source == core.me:
            return
        self._asked = source
        self._asked_until_ms = core.now + 4 * core.rules.ping_timeout_ms
        locators = core.ledger.locators(core.rules.locators_max - 1)
        tip = core.ledger.branch_tip()
        if tip is not None:
            locators = (Locator(tip.round, tip.hash), *locators)
        core.send(source, EntriesRequest(locators))

    def on_request(self, sender: bytes, message: EntriesRequest) -> None:
        if len(message.locators) > self._core.rules.locators_max:
            raise RemoteError("too many locators")
        self._core.out.append(ServeEntries(PeerId(sender), message.locators))

    def on_entries(self, sender: bytes, message: Entries) -> None:
        if sender == self._asked:
            self._asked = None
        if message.entries:
            self.offer(message.entries)
        if self._best is not None and not head_is_better(
            self._best[1], self._core.ledger.summary()
        ):
            self._best = None
        if message.entries:
            self.heard_head(sender, message.head)

    def offer(self, entries: tuple[Entry, ...]) -> None:
        for entry in entries:
            self._watch(entry)
        ledger = self._core.ledger
        may_switch = self._core.rules.quorum is Quorum.ANY
        self._advance(ledger.offer(entries, may_switch=may_switch))

    def _watch(self, entry: Entry) -> None:
        """Two different entries sealed by one closer for one round and parent end its membership."""
        core = self._core
        mark = core.ledger.mark_at(entry.round)
        if mark is None or mark.hash != entry.body.parent:
            return
        if (
            entry.body.closer >= len(mark.roster)
            or entry.round < core.head.round - _EVIDENCE_ROUNDS
        ):
            return
        closer = mark.roster.members[entry.body.closer]
        other = self._seals.setdefault((closer, entry.round, mark.hash), entry)
        if other.hash != entry.hash:
            core.judge.follow(mark, entry)  # raises unless the seal is real
            pair = (entry.round, mark.hash, other.hash, other.seal, entry.hash, entry.seal)
            self._convict(Evidence(closer, *pair))
        while len(self._seals) > _EVIDENCE_ROUNDS:
            del self._seals[next(iter(self._seals))]

    def saw(self, entry: Entry) -> None:
        """Remember who sealed what has joined the chain."""
        self._watch(entry)

    def on_evidence(self, message: Evidence) -> None:
        core = self._core
        if message.closer in self.guilty or message.closer not in core.head.roster:
            return
        core.judge.check_evidence(message)
        self._convict(message)

    def _convict(self, evidence: Evidence) -> None:
        if evidence.closer in self.guilty or len(self.guilty) >= _EVIDENCE_ROUNDS:
            return
        core = self._core
        self.guilty[evidence.closer] = evidence
        core.note("error", "equivocation", peer=evidence.closer, round=evidence.round)
        core.send([p for p in core.collectors() if p != core.me], evidence)
