"""One round, from its opening to the entry that closes it.

Everybody contributes to the round's first few by rank. The first closes once all live members are
in or time is up; when it is silent, ballots go round.
"""

from collections import deque
from collections.abc import Callable, Iterable
from statistics import median_low
from typing import Final

from protocol.attachments import Attachments
from protocol.ballots import Ballots
from protocol.codec import encode, encode_attachments
from protocol.core import Core
from protocol.effects import GiveBack, StartWork
from protocol.entries import (
    Attachment,
    Entry,
    Line,
    contribution_bytes,
)
from protocol.errors import LocalError, RemoteError
from protocol.events import WorkDone
from protocol.ids import Millis, PeerId
from protocol.ledger import Write, round_key
from protocol.messages import (
    Closed,
    Contribute,
    Prepare,
    Sync,
)
from protocol.open_round import Held, OpenRound, Vote, silence_counts_ms, silent
from protocol.parts import whole_of
from protocol.rounds import (
    ARRIVALS_MAX,
    ARRIVALS_MIN,
    Close,
    deadline_after_ms,
    decide,
    owner,
)
from protocol.scattering import Scattering
from protocol.wire import scalar

OUTBOX_ROUNDS: Final = 256


class Closing:
    """The open round: what we contribute to it, what we hold of others, and when it is due."""

    def __init__(
        self,
        core: Core,
        attachments: Attachments,
        scattering: Scattering,
        ballots: Ballots,
        fall_behind: Callable[[bytes], None],
    ) -> None:
        self._core, self._attachments, self._ballots = core, attachments, ballots
        self._scattering, self._fall_behind = scattering, fall_behind
        self._arrivals: deque[int] = deque(maxlen=ARRIVALS_MAX)
        self._took: deque[int] = deque(maxlen=ARRIVALS_MAX)
        self._early: dict[PeerId, Contribute] = {}  # for the round after the open one
        # The round before: its tip, when it opened, and who of it has been heard by now.
        self._late: tuple[bytes, Millis, set[PeerId]] | None = None
        self._returned: list[int] = []  # rounds whose payload was given back and not carried since
        self._carried = 0  # how many of those were given back before the present work began
        self.stopping = False
        self.last: Entry | None = None  # the newest entry of the chain, to hand to who asks
        self._due_ms: int = core.now  # when, by the times that entries state, the round opened
        self._came_ms: int = core.now  # when we came to it
        self._silence_ms = 0  # before that
        self._parts: tuple[Attachment, ...] = ()  # of our own contribution to the open round
        self._round = self._new_round()
        ballots.begin(self._round)

    # Opening

    def _new_round(self) -> OpenRound:
        core = self._core
        arrivals = self._arrivals if len(self._arrivals) >= ARRIVALS_MIN else self._took
        deadline = core.now + deadline_after_ms(arrivals, core.rules)
        new = {peer for peer, first in core.head.roster.newcomers if first == core.head.round}
        excused = frozenset(core.membership.down() | new)
        return OpenRound(core.head, self._opening_ms(), Millis(deadline), excused)

    def _opening_ms(self) -> Millis:
        """When the round opened for the others. Who was stopped or cut off for a while hears of it
        late: at most by as long as nothing was heard, because an entry's times are one peer's word.
        """
        core, granted = self._core, self._core.rules.deadline_floor_ms
        if core.now - self._came_ms > granted:  # else the silence before an entry is the next one's
            self._silence_ms = 0
        self._silence_ms = max(self._silence_ms, core.membership.take_silence())
        self._came_ms = core.now
        late = min(core.now - self._due_ms, self._silence_ms)
        self._due_ms = core.now - (late if late > granted else 0)
        return Millis(self._due_ms)

    def restore(
        self,
        vote: Vote,
        mine: Contribute | None,
        parts: tuple[Attachment, ...],
        took: tuple[int, ...],
    ) -> None:
        """After a start: what we promised, sealed and contributed in the open round before the
        process ended; and how long the rounds before it took, or we would wait for the ceiling.
        """
        self._remember(took)
        self._round = self._new_round()
        self._ballots.begin(self._round)
        self._ballots.restore(vote)
        self._round.mine, self._parts = mine, parts

    def _remember(self, took: Iterable[int]) -> None:
        most = self._core.rules.window_ms + self._core.rules.deadline_ceiling_ms
        self._took.extend(min(ms, most) for ms in took)

    def returned(self, round: int) -> None:
        self._returned.append(round)

    def open(self) -> None:
        """The chain's head moved: a new round is open."""
        core = self._core
        if self._round.mark is not core.head:
            before = self._round
            self._late = (before.mark.hash[:8], before.opened_ms, set(before.held))
            self._round = self._new_round()
            self._ballots.begin(self._round)
        self._scattering.open(self._round.deadline_ms)
        early, self._early = self._early, {}
        if not core.is_member:
            return
        for sender, message in early.items():
            self._hold_early(sender, message)
        if self._round.mine is not None:
            self._contribute()
        elif not self.stopping:
            self._carried = len(self._returned)
            late_ms = core.now - self._round.opened_ms
            head = core.head
            core.out.append(
                StartWork(head.round, head.hash, head.roster.members, self._measures(), late_ms)
            )
        self.advance()

    def _hold_early(self, sender: PeerId, message: Contribute) -> None:
        if message.tip == self._core.head.hash[:8]:
            try:
                self._hold(sender, message)
            except RemoteError as error:
                self._core.blame(sender, error)

    def _measures(self) -> bool:
        core = self._core
        return core.head.round % core.rules.heldout_every == 0 and core.ranked()[-1] == core.me

    @property
    def wake_ms(self) -> Millis | None:
        core, round = self._core, self._round
        if not core.is_member:
            return None
        due = self._ballots.wake_ms
        for time in (round.deadline_ms, self._roll_call_ms, silence_counts_ms(core, round)):
            if core.now < time < due:
                due = Millis(time)
        return due

    # Contributing

    def work_done(self, done: WorkDone) -> None:
        core, round = self._core, self._round
        if done.parent != core.head.hash or round.mine is not None or not core.is_member:
            if done.payload:
                core.save(_parts_record(done))
                core.out.append(GiveBack(done.round, done.payload, done.attached))
            return
        if not done.payload and self.stopping:
            return  # it was stopped before there was anything to offer
        try:
            core.judge.weigh_payload(done.payload, done.attached)
        except RemoteError as error:
            raise LocalError(f"our own work is not valid: {error}") from error
        self._check_parts(done)
        if done.attached is not None:
            self._attachments.hold(done.attached.root, done.round)
        # A model that diverged says infinity; others could not even read that.
        line = Line(
            0,
            done.payload,
            scalar(done.loss),
            scalar(done.heldout),
            done.snapshot,
            done.attached,
        )
        signed = contribution_bytes(core.run, done.round, done.parent, done.state, line)
        round.mine = Contribute(
            done.round,
            done.parent[:8],
            done.state,
            done.payload,
            line.loss,
            line.heldout,
            line.snapshot,
            line.attached,
            core.keys.sign(signed),
        )
        rounds, self._returned = self._returned[: self._carried], self._returned[self._carried :]
        old = [done.round - OUTBOX_ROUNDS] if done.round >= OUTBOX_ROUNDS else []
        writes = [Write("outbox", round_key(earlier), None) for earlier in [*rounds, *old]]
        writes.append(Write("outbox", round_key(done.round), encode(round.mine)))
        self._parts = done.parts
        core.save([*writes, *_parts_record(done)])
        self._contribute()
        self.advance()

    def _check_parts(self, done: WorkDone) -> None:
        rules, members = self._core.rules, len(self._core.head.roster)
        count = rules.parts(members) if done.attached is not None else 0
        if len(done.parts) != count or (count and whole_of(done.parts) != done.attached):
            raise LocalError(f"our own work has {len(done.parts)} parts, not {count}")

    def _contribute(self) -> None:
        for collector in self._core.collectors():
            self._send_mine(collector)
        if self._round.mine is not None and self._parts:
            self._scattering.offer(self._round.mine, self._parts)

    def _send_mine(self, to: PeerId) -> None:
        round, core = self._round, self._core
        if round.mine is None or to in round.sent_to:
            return
        round.sent_to.add(to)
        if to == core.me:
            self._hold(core.me, round.mine)
        else:
            core.send(to, round.mine)

    def on_contribute(self, sender: PeerId, message: Contribute) -> None:
        core = self._core
        is_member = sender in core.head.roster
        if message.round > core.head.round:
            # One that we do not know may have been admitted by an entry that we lack.
            if message.round == core.head.round + 1 and is_member:
                core.judge.weigh_payload(message.payload, message.attached)
                self._early[sender] = message
            self._fall_behind(sender)
        elif message.tip == core.head.hash[:8]:
            if not is_member:
                raise RemoteError("a contribution from a stranger")
            self._hold(sender, message)
            self.advance()
        elif self._late is not None and message.tip == self._late[0]:
            _, opened_ms, heard = self._late
            if is_member and sender not in heard and message.attached is None:
                heard.add(sender)
                self._arrivals.append(core.now - opened_ms)
        elif message.round == core.head.round:
            self._compare(sender)

    def _compare(self, other: PeerId) -> None:
        """Somebody stands on another branch: show heads, so that the lighter side sees it."""
        core = self._core
        core.send(other, Sync(core.membership.view_hash(), core.ledger.summary()))

    def _hold(self, sender: PeerId, message: Contribute) -> None:
        core, round = self._core, self._round
        seat = core.head.roster.seat(sender)
        if seat is None or message.round != core.head.round:
            return
        if sender in round.held or sender in round.awaited:
            return
        core.judge.weigh_payload(message.payload, message.attached)
        line = message.line(seat)
        signed = contribution_bytes(core.run, message.round, core.head.hash, message.state, line)
        if not core.keys.verify(sender, signed, message.signature):
            raise RemoteError("a contribution with a false signature")
        held = Held(line, message.state, message.signature)
        if line.attached is None:
            self._list(round, sender, held)
            return
        round.awaited.add(sender)

        def done() -> None:
            self._list(round, sender, held)

        deal = self._scattering.open_deal()
        if deal is None:
            self._attachments.want((line.attached,), message.round, (sender,), done)
        else:
            self._scattering.introduce(deal, sender, line.attached)
            self._scattering.await_all(deal, sender, done)

    def _list(self, round: OpenRound, sender: PeerId, held: Held) -> None:
        """All of a contribution is here. In time or not, it took so long."""
        self._arrivals.append(self._core.now - round.opened_ms)
        if round is self._round:
            round.held[sender] = held

    # Closing

    def advance(self) -> None:
        """Do what is due: take turns, close, conclude."""
        core, round = self._core, self._round
        if not core.is_member:
            return
        ballot = self._ballots.take_turn()
        if ballot is not None:
            self._escalate(ballot)
            if self._round is not round:
                return
        self._close_in_turn()
        self._ballots.tick()

    def _close_in_turn(self) -> None:
        """Close as the first by rank that is up."""
        core, round = self._core, self._round
        if round.lead is not None:
            return
        down = core.membership.down()
        ranked = core.ranked()
        first_up = 0
        while ranked[first_up] in down:
            first_up += 1
        if ranked[first_up] != core.me or not self._ballots.may_lead(first_up):
            return
        if round.called_ms is None and core.now >= self._roll_call_ms:
            round.called_ms = core.now
            core.send_all(core.membership.call_roll())
        if not round.held:
            return
        excused = down | round.excused | silent(core, round)
        unheard = sum(1 for peer in excused if peer not in round.held)
        missing = len(core.head.roster) - len(round.held) - unheard
        verdict = decide(len(round.held), missing, round.deadline_ms, core.now)
        if isinstance(verdict, Close):
            self._ballots.lead(first_up, verdict.reason)

    @property
    def _roll_call_ms(self) -> int:
        """Shortly before contributions are due, the closer asks everybody for a sign of life: most
        of a round's deaths are not known to it when they begin to cost time.
        """
        rules = self._core.rules
        return self._round.opened_ms + max(0, rules.window_ms - 2 * rules.ping_timeout_ms)

    def _escalate(self, ballot: int) -> None:
        """The round is overdue: its next owners get our contribution, and the owner of this ballot
        takes over.
        """
        core, ranked = self._core, self._core.ranked()
        for ahead in range(self._core.rules.collectors):
            self._send_mine(owner(ranked, ballot + ahead))
            self._scattering.tell(owner(ranked, ballot + ahead))
        if owner(ranked, ballot) == core.me:
            self._ballots.lead(ballot, f"the closer is silent; ballot {ballot}")
            return
        others = core.membership.likely_up()
        if others:
            self._fall_behind(core.dice.pick(others)[0])

    def on_prepare(self, sender: PeerId, message: Prepare) -> None:
        core = self._core
        if message.round > core.head.round:
            self._fall_behind(sender)
        elif message.tip == core.head.hash[:8] and core.is_member:
            promise = self._ballots.promise(sender, message)
            if promise is not None:
                self._send_mine(sender)
                self._scattering.tell(sender)
                core.send(sender, promise)
        elif self.last is not None and self.last.body.parent[:8] == message.tip:
            if core.may_answer(sender):
                core.send(sender, Closed(self.last))
        else:
            self._compare(sender)

    # Settling

    def settle(self, entry: Entry) -> tuple[list[Write], GiveBack | None]:
        """An entry joined the chain: what to write down, and our own work if it was not listed."""
        core, round = self._core, self._round
        self.last = entry
        self._remember([entry.body.took_ms])
        # A closer that only just started states too little.
        self._due_ms += max(self._took[-1], median_low(self._took))
        writes = self._ballots.outdated(entry.round)
        mine = round.mine
        if mine is None or mine.round != entry.round:
            return writes, None
        # By signature: after a retreat we may have contributed to the same round before.
        if mine.signature in entry.signatures:
            return writes, None
        self._returned.append(entry.round)
        core.note("info", "late", round=entry.round)
        return writes, GiveBack(entry.round, mine.payload, mine.attached)

    def abandon(self, fork_round: int, old_round: int) -> None:
        """The chain switched: what we contributed from `fork_round` on is given back, and will be
        carried.
        """
        self._due_ms = self._core.now  # nothing tells when the others opened theirs
        first = max(fork_round, old_round - OUTBOX_ROUNDS)
        self._returned += range(first, old_round + 1)


def _parts_record(done: WorkDone) -> list[Write]:
    """What its attachment is made of, for as long as it may be given back."""
    if done.attached is None or not done.parts:
        return []
    return [Write("parts", done.attached.root, encode_attachments(done.parts))]
