"""What became of stretches, after their session: who decided tells it until everybody has heard,
and who is in doubt asks until it knows.

A decision is kept, on disk too, until all others have said that they moved by it, or are no members
any more. So who decided and does not know a session any more has decided that nothing counts. A
doubt ends with an answer, or once the decider is dead by the ledger: what it had moved by went with
it, and those who live hold together what they held before.
"""

from dataclasses import dataclass, field
from typing import Final

from protocol.core import Core
from protocol.effects import DropDoubts, ForgetDecision, MoveStretch
from protocol.errors import RemoteError
from protocol.events import Recalled
from protocol.exchanging import Session, pack, unpack
from protocol.ids import Hash, PeerId
from protocol.messages import Counted, Ready, Verdict

_AGAIN_MS: Final = 1_000
_AGAIN_MS_MAX: Final = 64_000
DECISIONS_MAX: Final = 4_096
_VOID_MAX: Final = 4_096


@dataclass(slots=True)
class _Decision:
    stretches: set[int]
    unheard: dict[PeerId, set[int]]  # that others may not have moved by yet; none: nobody is left
    due_ms: int
    patience_ms: int = _AGAIN_MS


@dataclass(slots=True)
class _Doubt:
    decider: PeerId
    open: set[int]
    due_ms: int
    moving: set[int] = field(default_factory=set)
    is_final: bool = False


class Verdicts:
    """Nothing is answered before the disk has been asked what there is (`recall`)."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._decisions: dict[Hash, _Decision] = {}
        self._doubts: dict[Hash, _Doubt] = {}
        # Sessions of which we said that nothing counts: they must not begin after that.
        self._void: dict[Hash, None] = {}
        self._is_recalled = False

    @property
    def doubts(self) -> int:
        return len(self._doubts)

    def recall(self, event: Recalled) -> None:
        now = self._core.now
        for one in event.decisions:
            stretches = set(unpack(one.stretches))
            unheard = {peer: set(stretches) for peer in one.others}
            self._decisions[one.session] = _Decision(stretches, unheard, now)
        for other in event.doubts:
            open_ones = set(unpack(other.stretches))
            self._doubts[other.session] = _Doubt(other.decider, open_ones, now)
        self._is_recalled = True
        self.moved()

    def ended(self, session: Session) -> None:
        """What is left of a session."""
        now = self._core.now
        if session.decides:
            self._core.send(session.others, session.verdict())
            if session.moved:
                decision = _Decision(set(session.moved), session.unheard(), now + _AGAIN_MS)
                self._decisions[session.name] = decision
                self._forget_if_known(session.name)
                self._make_room()
        elif session.doubts:
            self._doubts[session.name] = _Doubt(session.decider, session.doubts, now)

    def _make_room(self) -> None:
        """Only members that hear nothing for days make so many; the oldest goes."""
        while len(self._decisions) > DECISIONS_MAX:
            name = next(iter(self._decisions))
            del self._decisions[name]
            self._core.out.append(ForgetDecision(name))

    # Decided here

    def on_ready(self, sender: PeerId, message: Ready) -> None:
        if not self._is_recalled or not self._core.may_answer(sender):
            return
        known = self._decisions.get(message.session)
        stretches = set() if known is None else known.stretches
        if known is None:
            self._void[message.session] = None
            if len(self._void) > _VOID_MAX:
                del self._void[next(iter(self._void))]
        self._core.send(sender, Verdict(message.session, pack(stretches), is_final=True))

    def is_void(self, session: Hash) -> bool:
        return session in self._void

    def on_counted(self, sender: PeerId, message: Counted) -> None:
        known = self._decisions.get(message.session)
        if known is not None and sender in known.unheard:
            known.unheard[sender].difference_update(unpack(message.stretches))
            self._forget_if_known(message.session)

    def _forget_if_known(self, name: Hash) -> None:
        if not any(self._decisions[name].unheard.values()):
            del self._decisions[name]
            self._core.out.append(ForgetDecision(name))

    # Decided by others

    def on_verdict(self, sender: PeerId, message: Verdict) -> None:
        core, doubt = self._core, self._doubts.get(message.session)
        if doubt is None:
            # We are in no doubt: what counts, we have moved by, or never were ready for.
            if self._is_recalled and message.stretches and core.may_answer(sender):
                core.send(sender, Counted(message.session, message.stretches))
            return
        if sender != doubt.decider:
            raise RemoteError("it is not for the sender to decide")
        for number in sorted(doubt.open & set(unpack(message.stretches))):
            doubt.open.discard(number)
            doubt.moving.add(number)
            core.out.append(MoveStretch(message.session, number, ()))
        if message.is_final:
            doubt.open.clear()
            doubt.is_final = True
            self._settle(message.session, doubt, "the other side did not count it")

    def has_moved(self, session: Hash, number: int) -> None:
        doubt = self._doubts.get(session)
        if doubt is not None:
            doubt.moving.discard(number)
            self._core.send(doubt.decider, Counted(session, pack([number])))
            self._settle(session, doubt, "settled")

    def _settle(self, name: Hash, doubt: _Doubt, reason: str) -> None:
        if not doubt.open and not doubt.moving:
            del self._doubts[name]
            self._core.out.append(DropDoubts(name, reason))

    # The ledger and time

    def moved(self) -> None:
        """Members may be others."""
        roster = self._core.head.roster
        for name, decision in list(self._decisions.items()):
            decision.unheard = {
                peer: left for peer, left in decision.unheard.items() if peer in roster
            }
            self._forget_if_known(name)
        for name, doubt in list(self._doubts.items()):
            if doubt.decider not in roster:
                doubt.open.clear()
                self._settle(name, doubt, "who decided it is no member any more")

    @property
    def wake_ms(self) -> int | None:
        due = [one.due_ms for one in self._decisions.values()]
        due += [one.due_ms for one in self._doubts.values()]
        return min(due, default=None)

    def tick(self) -> None:
        core = self._core
        for name, decision in self._decisions.items():
            if core.now >= decision.due_ms:
                decision.patience_ms = min(2 * decision.patience_ms, _AGAIN_MS_MAX)
                decision.due_ms = core.now + decision.patience_ms
                waiting = sorted(peer for peer, left in decision.unheard.items() if left)
                core.send(waiting, Verdict(name, pack(decision.stretches), is_final=True))
        for name, doubt in self._doubts.items():
            if core.now >= doubt.due_ms:
                doubt.due_ms = core.now + _AGAIN_MS
                if doubt.open:
                    core.send(doubt.decider, Ready(name, pack(doubt.open)))
