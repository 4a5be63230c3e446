"""Staying on one chain with the others: see who is ahead, ask, and switch to the heavier chain.

One request is under way at a time. Whoever answers is asked again until it has no more; whoever is
silent is not waited for. What is asked for is found on disk by the other side (`ServeEntries`), so
nothing here grows with the chain.
"""

from collections.abc import Callable, Sequence
from typing import Final

from protocol.core import Core
from protocol.effects import ServeEntries
from protocol.entries import Entry
from protocol.errors import RemoteError
from protocol.ids import ID_BYTES, Hash, Millis, PeerId
from protocol.ledger import Mark, Step, head_is_better
from protocol.messages import Entries, EntriesRequest, Evidence, Head, Locator
from protocol.rules import Quorum

_EVIDENCE_ROUNDS: Final = 64
_BARREN_MAX: Final = 256


class CatchUp:
    """`advance` is called with what came of offered entries; `reconsider` with who offered one that
    leads to a chain which we left, that entry and what follows it: may we go back?
    """

    def __init__(
        self,
        core: Core,
        advance: Callable[[Step], None],
        reconsider: Callable[[bytes, Entry, Sequence[Entry]], bool],
    ) -> None:
        self._core, self._advance, self._reconsider = core, advance, reconsider
        self._asked: bytes | None = None
        self._asked_until_ms = 0
        self._best: tuple[bytes, Head] | None = None  # the best head heard of that is not ours yet
        self._ask_at_ms: int | None = (
            None  # `_best` is one round ahead: its entry may come by itself
        )
        # (closer, round, parent) -> the first entry that it sealed there, and the seal: checked.
        self._seals: dict[tuple[PeerId, int, Hash], tuple[Hash, bytes]] = {}
        self._barren: dict[bytes, int] = {}  # promised a better chain and sent nothing; until when
        self._was_answered = False
        self.guilty: dict[PeerId, Evidence] = {}

    @property
    def wake_ms(self) -> Millis | None:
        if self._asked is not None:
            return Millis(self._asked_until_ms)
        return None if self._ask_at_ms is None else Millis(self._ask_at_ms)

    @property
    def busy(self) -> bool:
        """Is a better chain known than ours?"""
        return self._best is not None

    @property
    def is_level(self) -> bool:
        """Has somebody been asked, and is nothing better known than what we have?"""
        return self._was_answered and self._best is None

    def heard_head(self, source: bytes, head: Head) -> None:
        if self._is_barren(source):
            return
        if head_is_better(head, self._core.ledger.summary()):
            if self._best is None or head_is_better(head, self._best[1]):
                self._best = (source, head)
            if head.round != self._core.head.round + 1 or not self._core.is_member:
                self.ask(source)
            elif self._ask_at_ms is None:
                self._ask_at_ms = self._core.now + self._spread_ms()

    def _spread_ms(self) -> int:
        """How long an entry may take to come down the tree. Whoever asks for it before gets it
        twice, and keeps the uplink busy of one who has it to pass on.
        """
        core = self._core
        levels, reached = 0, 1
        while reached < len(core.head.roster):
            levels, reached = levels + 1, reached * core.rules.fanout + 1
        return levels * 2 * core.rules.ping_timeout_ms

    def moved(self) -> None:
        """The chain's head is another: what was better may be reached."""
        if self._best is not None and not head_is_better(
            self._best[1], self._core.ledger.summary()
        ):
            self._best = None
        self._ask_at_ms = None

    def tick(self) -> None:
        core = self._core
        if self._ask_at_ms is not None and core.now >= self._ask_at_ms:
            self._ask_at_ms = None
            if self._best is not None:
                self.ask(self._best[0])
        if self._asked is None or core.now < self._asked_until_ms:
            return
        silent, self._asked = self._asked, None
        if self._best is None or not head_is_better(self._best[1], core.ledger.summary()):
            self._best = None
            return
        others = [peer for peer in core.membership.likely_up() if peer != silent]
        if self._best[0] != silent:
            self.ask(self._best[0])
        else:
            self.ask(core.dice.pick(others)[0] if others else silent)
        if self._best[0] == silent:
            self._best = None  # whoever is ahead will say so again

    def ask(self, source: bytes) -> None:
        """Ask `source` for what follows our chain, unless somebody is being asked already. A
        silent suspect is not waited for when somebody better is there.
        """
        core, down = self._core, self._core.membership.down()
        if len(source) != ID_BYTES or source == core.me:
            return
        if self._asked is not None and (self._asked not in down or source in down):
            return
        if self._is_barren(source):
            return
        self._asked = source
        self._asked_until_ms = core.now + self._patience_ms
        locators = core.ledger.locators(core.rules.locators_max - 1)
        tip = core.ledger.branch_tip()
        if tip is not None:
            locators = (Locator(tip.round, tip.hash), *locators)
        core.send(source, EntriesRequest(locators))

    def on_request(self, sender: bytes, message: EntriesRequest) -> None:
        if len(message.locators) > self._core.rules.locators_max:
            raise RemoteError("too many locators")
        if self._core.may_answer(sender):
            self._core.out.append(ServeEntries(PeerId(sender), message.locators))

    def on_entries(self, sender: bytes, message: Entries) -> None:
        was_asked = sender == self._asked
        if was_asked:
            self._asked, self._was_answered = None, True
        before = self._place()
        try:
            if message.entries:
                self.offer(sender, message.entries)
        finally:
            ours = self._core.ledger.summary()
            if was_asked and self._place() == before and head_is_better(message.head, ours):
                self._distrust(sender)
            if self._best is not None and not head_is_better(self._best[1], ours):
                self._best = None
        if message.entries:
            self.heard_head(sender, message.head)

    @property
    def _patience_ms(self) -> int:
        return 4 * self._core.rules.ping_timeout_ms

    def _place(self) -> tuple[Mark, Mark | None]:
        """Moves whenever entries bring something new."""
        return self._core.ledger.head, self._core.ledger.branch_tip()

    def _distrust(self, source: bytes) -> None:
        """It says that it is ahead and has nothing to show: for a while it is not believed."""
        self._barren.pop(source, None)
        self._barren[source] = self._core.now + self._patience_ms
        while len(self._barren) > _BARREN_MAX:
            del self._barren[next(iter(self._barren))]
        if self._best is not None and self._best[0] == source:
            self._best = None

    def _is_barren(self, source: bytes) -> bool:
        return self._barren.get(source, 0) > self._core.now

    def offer(self, source: bytes, entries: tuple[Entry, ...]) -> None:
        """Raises RemoteError for a bad entry, once those before it have taken effect."""
        ledger = self._core.ledger
        may_switch = self._core.rules.quorum is Quorum.ANY
        step = ledger.offer(entries, may_switch=may_switch)
        self._advance(step)
        for entry in entries:
            self.watch(entry)
        if step.fault is not None:
            raise step.fault
        if step.left is not None:
            rest = entries[entries.index(step.left) :]
            if self._reconsider(source, rest[0], rest[1:]):
                self.offer(source, rest)

    def watch(self, entry: Entry) -> None:
        """Two different entries by one closer for one round and parent end its membership."""
        core = self._core
        mark = core.ledger.mark_at(entry.round)
        if mark is None or mark.hash != entry.body.parent:
            return
        if entry.round < core.head.round - _EVIDENCE_ROUNDS:
            return
        try:
            closer = core.judge.check_seal(mark, entry)
        except RemoteError:
            return  # a forgery proves nothing about whom it names
        key = closer, entry.round, mark.hash
        first, seal = self._seals.setdefault(key, (entry.hash, entry.seal))
        if first != entry.hash:
            self._convict(
                Evidence(closer, entry.round, mark.hash, first, seal, entry.hash, entry.seal)
            )
        while len(self._seals) > _EVIDENCE_ROUNDS:
            del self._seals[next(iter(self._seals))]

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
