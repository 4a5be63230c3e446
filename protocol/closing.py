"""One round, from its opening to the entry that closes it.

Everybody contributes to the round's first few by rank. The first closes once all live members are
in or time is up. When it is silent, the owner of the next ballot first asks what others hold
(`Prepare`), adopts an entry that already counts or may have been accepted, and else closes itself.
With `quorum = "any"` a sealed entry counts at once. With `"majority"` it counts when most members
accepted it: one Paxos decree a round, whose ballot 0 belongs to the closer.
"""

from collections import deque
from collections.abc import Callable, Iterable, Set
from statistics import median_low
from typing import Final

from protocol.attachments import Attachments
from protocol.building import build_entry
from protocol.codec import encode, encode_entry
from protocol.core import Core
from protocol.entries import (
    Admission,
    Departure,
    Entry,
    Line,
    contribution_bytes,
)
from protocol.errors import LocalError, RemoteError
from protocol.events import GiveBack, StartWork, WorkDone
from protocol.ids import Hash, Millis, PeerId
from protocol.ledger import Write, round_key
from protocol.messages import (
    Accepted,
    Closed,
    Commit,
    Contribute,
    Prepare,
    Promise,
    Propose,
    Sync,
)
from protocol.open_round import Held, Lead, OpenRound, Vote
from protocol.retreat import RETREAT_ROUNDS_MAX
from protocol.rounds import (
    ARRIVALS_MAX,
    ARRIVALS_MIN,
    Close,
    ballot_due,
    below,
    deadline_after_ms,
    decide,
    owner,
    ranking,
    tree,
    turn_ms,
)
from protocol.rules import Quorum
from protocol.wire import scalar

OUTBOX_ROUNDS: Final = 256


class Closing:
    """The open round. `adopt` is called with an entry that counts."""

    def __init__(
        self,
        core: Core,
        attachments: Attachments,
        adopt: Callable[[Entry], None],
        changes: Callable[[], tuple[tuple[Admission, ...], tuple[Departure, ...]]],
        fall_behind: Callable[[bytes], None],
    ) -> None:
        self._core, self._attachments = core, attachments
        self._adopt, self._changes, self._fall_behind = adopt, changes, fall_behind
        self._arrivals: deque[int] = deque(maxlen=ARRIVALS_MAX)
        self._took: deque[int] = deque(maxlen=ARRIVALS_MAX)
        self._early: dict[PeerId, Contribute] = {}  # for the round after the open one
        # The round before: its tip, when it opened, and who of it has been heard by now.
        self._late: tuple[bytes, Millis, set[PeerId]] | None = None
        self._returned: list[int] = []  # rounds whose payload was given back and not carried since
        self._carried = 0  # how many of those were given back before the present work began
        self._sealed: Entry | None = None  # our own seal for the open round
        # And for rounds that a retreat may open again: a second one would be equivocation.
        self._seals: dict[tuple[int, Hash], Entry] = {}
        self.stopping = False
        self.last: Entry | None = None  # the newest entry of the chain, to hand to who asks
        self._due_ms: int = core.now  # when, by the times that entries state, the round opened
        self._came_ms: int = core.now  # when we came to it
        self._silence_ms = 0  # before that
        self._round = self._new_round()

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

    def restore(self, vote: Vote, mine: Contribute | None, took: tuple[int, ...]) -> None:
        """After a start: what we promised, sealed and contributed in the open round before the
        process ended; and how long the rounds before it took, or we would wait for the ceiling.
        """
        self._remember(took)
        self._round = self._new_round()
        self._round.promised, self._round.accepted = vote.promised, vote.accepted
        self._keep_up(vote.promised)
        self._sealed = vote.sealed
        self._round.mine = mine

    def _remember(self, took: Iterable[int]) -> None:
        most = self._core.rules.window_ms + self._core.rules.deadline_ceiling_ms
        self._took.extend(min(ms, most) for ms in took)

    def sealed_before(self, entry: Entry) -> None:
        """By us."""
        if self._core.rules.attachment_bytes_max:
            self._seals[entry.round, entry.body.parent] = entry
            while len(self._seals) > RETREAT_ROUNDS_MAX:
                del self._seals[next(iter(self._seals))]

    def returned(self, round: int) -> None:
        self._returned.append(round)

    def open(self) -> None:
        """The chain's head moved: a new round is open."""
        core = self._core
        if self._round.mark is not core.head:
            before = self._round
            self._late = (before.mark.hash[:8], before.opened_ms, set(before.held))
            self._round = self._new_round()
            self._sealed = self._seals.get((core.head.round, core.head.hash))
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
        due = self._next_turn_ms()
        for time in (round.deadline_ms, self._roll_call_ms, self._silence_counts_ms):
            if core.now < time < due:
                due = time
        if round.lead is not None and round.lead.chosen is None:
            due = min(due, round.lead.until_ms)
        return Millis(due)

    def _turn(self, ballot: int) -> int:
        round = self._round
        after = turn_ms(ballot, round.deadline_ms - round.opened_ms, self._core.rules)
        return round.opened_ms + after - round.hurry_ms

    def _next_turn_ms(self) -> int:
        """The turn of the next ballot: asked far more often than it changes."""
        round = self._round
        at = round.next_ballot, round.hurry_ms
        if round.next_turn[0] != at:
            round.next_turn = at, self._turn(round.next_ballot)
        return round.next_turn[1]

    def _keep_up(self, ballot: int) -> None:
        """A vote binds us to `ballot`, so its turn has come, whatever our clock says. Otherwise a
        swarm that starts again would wait for as long as it was up before, and who does not know
        the ballots of one whose clock is ahead would wait until its own is as far.
        """
        if ballot and self._core.rules.quorum is Quorum.MAJORITY:
            round = self._round
            round.hurry_ms += max(0, self._turn(ballot) - self._core.now)
            round.next_ballot = max(round.next_ballot, ballot + 1)

    # Contributing

    def work_done(self, done: WorkDone) -> None:
        core, round = self._core, self._round
        if done.parent != core.head.hash or round.mine is not None or not core.is_member:
            if done.payload:
                core.out.append(GiveBack(done.round, done.payload, done.attached))
            return
        if not done.payload and self.stopping:
            return  # it was stopped before there was anything to offer
        try:
            core.judge.weigh_payload(done.payload, done.attached)
        except RemoteError as error:
            raise LocalError(f"our own work is not valid: {error}") from error
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
        gone = [Write("outbox", round_key(earlier), None) for earlier in [*rounds, *old]]
        core.save([*gone, Write("outbox", round_key(done.round), encode(round.mine))])
        self._contribute()
        self.advance()

    def _contribute(self) -> None:
        for collector in self._core.collectors():
            self._send_mine(collector)

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
        if sender not in core.head.roster:
            raise RemoteError("a contribution from a stranger")
        if message.round > core.head.round:
            if message.round == core.head.round + 1:
                core.judge.weigh_payload(message.payload, message.attached)
                self._early[sender] = message
            self._fall_behind(sender)
        elif message.tip == core.head.hash[:8]:
            self._hold(sender, message)
            self.advance()
        elif self._late is not None and message.tip == self._late[0]:
            _, opened_ms, heard = self._late
            if sender not in heard and message.attached is None:
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
        self._attachments.want(
            (line.attached,), message.round, (sender,), lambda: self._list(round, sender, held)
        )

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
        if core.now >= self._next_turn_ms():
            deadline = round.deadline_ms - round.opened_ms
            elapsed = core.now - round.opened_ms + round.hurry_ms
            due = ballot_due(elapsed, deadline, core.rules)
            # After a pause several are due: the last of ours counts, else the last.
            ours = due - (due - core.ranked().index(core.me)) % len(core.head.roster)
            ballot = ours if ours >= round.next_ballot else due
            round.next_ballot = due + 1
            self._escalate(ballot)
            if self._round is not round:
                return
        self._close_in_turn()
        lead = self._round.lead
        if lead is not None and lead.chosen is None and core.now >= lead.until_ms:
            self._conclude(lead, out_of_time=True)

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
        if ranked[first_up] != core.me or not self._may_lead(first_up):
            return
        if round.called_ms is None and core.now >= self._roll_call_ms:
            round.called_ms = core.now
            core.send_all(core.membership.call_roll())
        if not round.held:
            return
        excused = down | round.excused | self._silent()
        unheard = sum(1 for peer in excused if peer not in round.held)
        missing = len(core.head.roster) - len(round.held) - unheard
        verdict = decide(len(round.held), missing, round.deadline_ms, core.now)
        if isinstance(verdict, Close):
            self._start_lead(first_up, verdict.reason)

    @property
    def _roll_call_ms(self) -> int:
        """Shortly before contributions are due, the closer asks everybody for a sign of life: most
        of a round's deaths are not known to it when they begin to cost time.
        """
        rules = self._core.rules
        return self._round.opened_ms + max(0, rules.window_ms - 2 * rules.ping_timeout_ms)

    @property
    def _silence_counts_ms(self) -> int:
        """From when on nobody waits for those who did not answer."""
        called_ms = self._round.called_ms
        return 0 if called_ms is None else called_ms + self._core.rules.ping_timeout_ms

    def _silent(self) -> set[PeerId]:
        core, round = self._core, self._round
        called_ms = round.called_ms
        if called_ms is None or core.now < self._silence_counts_ms:
            return set()
        if round.silent is None:  # looked up once among all; only those can be silent still
            round.silent = set(core.membership.unheard_since(called_ms, core.head.roster.members))
        return set(core.membership.unheard_since(called_ms, round.silent))

    def _escalate(self, ballot: int) -> None:
        """The round is overdue: its next owners get our contribution, and the owner of this ballot
        takes over.
        """
        core, ranked = self._core, self._core.ranked()
        for ahead in range(self._core.rules.collectors):
            self._send_mine(owner(ranked, ballot + ahead))
        if owner(ranked, ballot) == core.me:
            self._start_lead(ballot, f"the closer is silent; ballot {ballot}")
            return
        others = core.membership.likely_up()
        if others:
            self._fall_behind(core.dice.pick(others)[0])

    def _may_lead(self, ballot: int) -> bool:
        round = self._round
        fresh = ballot > round.promised or ballot == round.promised == 0
        return fresh and ballot > round.tried_ballot

    def _start_lead(self, ballot: int, reason: str) -> None:
        core, round = self._core, self._round
        if not round.held or not self._may_lead(ballot):
            return
        round.tried_ballot = ballot
        core.note("debug", "closing", round=core.head.round, ballot=ballot, reason=reason)
        patience = self._turn(ballot + 1) - self._turn(ballot)
        if core.rules.quorum is Quorum.ANY:
            patience = patience * 3 // 4  # the next one's clock may be ahead of ours
        round.lead = Lead(ballot, core.now + patience)
        if ballot == 0:
            self._propose(round.lead, self._sealed or self._build())
            return
        round.promised = ballot
        self._save_vote()
        prepare = Prepare(core.head.round, core.head.hash[:8], ballot)
        core.send(core.membership.others_up(), prepare)
        self._conclude(round.lead, out_of_time=False)

    def on_prepare(self, sender: PeerId, message: Prepare) -> None:
        core, round = self._core, self._round
        if message.round > core.head.round:
            self._fall_behind(sender)
            return
        if message.tip != core.head.hash[:8] or not core.is_member:
            if self.last is not None and self.last.body.parent[:8] == message.tip:
                if core.may_answer(sender):
                    core.send(sender, Closed(self.last))
            else:
                self._compare(sender)
            return
        if owner(core.ranked(), message.ballot) != sender:
            raise RemoteError("a ballot that is somebody else's")
        if message.ballot < round.promised or not core.may_answer(sender):
            return
        if message.ballot > round.promised and self._binds(message.ballot):
            round.promised = message.ballot
            self._keep_up(message.ballot)
            if round.lead is not None and round.lead.ballot < message.ballot:
                round.lead = None
            self._save_vote()
        self._send_mine(sender)
        ballot, entry = round.accepted or (0, None)
        core.send(sender, Promise(message.round, message.tip, message.ballot, ballot, entry))

    def _binds(self, ballot: int) -> bool:
        """A vote needs every promise. Where any seal counts, promises only spare a duel, and one
        whose turn is far off silences nobody.
        """
        rules = self._core.rules
        soon = self._core.now + rules.window_ms + rules.deadline_ceiling_ms
        return rules.quorum is Quorum.MAJORITY or self._turn(ballot) <= soon

    def on_promise(self, sender: PeerId, message: Promise) -> None:
        core, round = self._core, self._round
        lead = round.lead
        if message.round > core.head.round:
            self._fall_behind(sender)
        if lead is None or lead.chosen is not None or message.tip != core.head.hash[:8]:
            return
        if message.ballot != lead.ballot or sender not in core.head.roster:
            return
        if message.accepted_ballot > message.ballot:
            raise RemoteError("a promise that is already broken")
        if message.entry is not None:
            core.judge.follow(core.head, message.entry)
        lead.promises[sender] = message
        self._conclude(lead, out_of_time=False)

    def _conclude(self, lead: Lead, *, out_of_time: bool) -> None:
        """Enough promises? Then propose what may already have been accepted, or our own."""
        core, round = self._core, self._round
        if core.rules.quorum is Quorum.MAJORITY:
            enough = len(lead.promises) + 1 >= core.head.roster.majority
        else:
            unheard = set(core.membership.others_up()) - lead.promises.keys()
            enough = out_of_time or unheard <= core.membership.down()
        if not enough:
            if out_of_time:
                round.lead = None
            return
        accepted = [round.accepted] if round.accepted else []
        accepted += [(p.accepted_ballot, p.entry) for p in lead.promises.values() if p.entry]
        best = max(accepted, key=lambda item: (item[0], item[1].hash), default=None)
        self._propose(lead, best[1] if best else self._sealed or self._build())

    def _propose(self, lead: Lead, entry: Entry) -> None:
        core, round = self._core, self._round
        lead.chosen = entry
        lead.quiet = self._silent()
        if lead.ballot > 0:
            lead.quiet |= {p for p in core.membership.others_up() if p not in lead.promises}
        if core.rules.quorum is Quorum.ANY:
            self._save_vote()
            self._adopt(entry)
            self.spread(Closed(entry), core.me, entry, lead.quiet)
            return
        if not self._attachments.holds(entry.body.attachments):
            # Somebody accepted it, and so has what it lists; we do not accept what we cannot merge.
            self._want(entry, lambda: self._go_on_leading(lead, entry))
            return
        lead.entry = entry
        round.promised, round.accepted = lead.ballot, (lead.ballot, entry)
        self._save_vote()
        lead.accepts.add(core.me)
        self._spread_in_round(Propose(lead.ballot, entry), lead.quiet)
        self._count_accepts(lead)

    def _want(self, entry: Entry, done: Callable[[], None]) -> None:
        attached, members = entry.body.attachments, self._core.head.roster.members
        holders = [members[line.seat] for line in entry.body.lines if line.attached is not None]
        holders.append(members[entry.body.closer])
        self._attachments.want(attached, entry.round, holders, done)

    def _go_on_leading(self, lead: Lead, entry: Entry) -> None:
        if self._round.lead is lead and lead.entry is None:
            self._propose(lead, entry)

    def _spread_in_round(self, message: Propose | Commit, quiet: Set[PeerId] = frozenset()) -> None:
        core = self._core
        root = owner(core.ranked(), message.ballot)
        order = tree(core.ranked(), root)
        core.send(self._below(order, quiet), message)

    def spread(
        self, message: Closed, root: PeerId, entry: Entry, quiet: Set[PeerId] = frozenset()
    ) -> None:
        """Pass an entry down its tree; the chain has already moved on, so the tree is the last
        round's.
        """
        core = self._core
        before = core.ledger.mark_at(entry.round)
        if before is None or before.hash != entry.body.parent or root not in before.roster:
            return
        if core.me not in before.roster:
            return
        order = tree(ranking(core.run, entry.round, before.roster), root)
        core.send(self._below(order, quiet), message)

    def _below(self, order: list[PeerId], quiet: Set[PeerId]) -> list[PeerId]:
        core = self._core
        return below(order, core.me, core.rules.fanout, core.membership.down() | quiet)

    def on_propose(self, sender: PeerId, message: Propose) -> None:
        core, round = self._core, self._round
        entry = message.entry
        if core.rules.quorum is not Quorum.MAJORITY:
            raise RemoteError("a proposal in a run that does not vote")
        if entry.round > core.head.round:
            self._fall_behind(sender)
        if entry.body.parent != core.head.hash or not core.is_member:
            return
        if sender not in core.head.roster:
            raise RemoteError("a proposal from a stranger")
        core.judge.follow(core.head, entry)
        if message.ballot < round.promised:
            return
        if round.passed_on != (message.ballot, entry.hash):
            # Before we hold what it lists, or everybody below us would wait for that too.
            round.passed_on = (message.ballot, entry.hash)
            self._spread_in_round(message)
        self._want(entry, lambda: self._accept(round, sender, message))

    def _accept(self, round: OpenRound, sender: PeerId, message: Propose) -> None:
        """All that the proposal lists is here."""
        core, entry = self._core, message.entry
        if round is not self._round or message.ballot < round.promised:
            return
        if round.accepted is None or round.accepted[0] < message.ballot:
            round.promised, round.accepted = message.ballot, (message.ballot, entry)
            self._keep_up(message.ballot)
            if round.lead is not None and round.lead.ballot < message.ballot:
                round.lead = None
            self._save_vote()
        elif round.accepted[1].hash != entry.hash:
            core.blame(sender, RemoteError("a second proposal under one ballot"))
            return
        leader = owner(core.ranked(), message.ballot)
        core.send(leader, Accepted(entry.round, message.ballot, entry.hash))

    def on_accepted(self, sender: PeerId, message: Accepted) -> None:
        lead = self._round.lead
        if lead is None or lead.entry is None or sender not in self._core.head.roster:
            return
        if message.ballot == lead.ballot and message.entry == lead.entry.hash:
            lead.accepts.add(sender)
            self._count_accepts(lead)

    def _count_accepts(self, lead: Lead) -> None:
        assert lead.entry is not None
        if len(lead.accepts) >= self._core.head.roster.majority:
            commit = Commit(lead.entry.round, lead.ballot, lead.entry.hash)
            self._spread_in_round(commit, lead.quiet)
            self._adopt(lead.entry)

    def on_commit(self, sender: PeerId, message: Commit) -> None:
        accepted = self._round.accepted
        if message.round < self._core.head.round:
            return
        if sender not in self._core.head.roster:
            raise RemoteError("a commit from a stranger")
        if accepted is None or accepted[1].hash != message.entry:
            self._fall_behind(sender)
            return
        self._spread_in_round(message)
        self._adopt(accepted[1])

    def _save_vote(self) -> None:
        """On disk before anybody hears of it."""
        core, round = self._core, self._round
        key = round_key(core.head.round)
        writes = [Write("votes", key + b"p", core.head.hash + round.promised.to_bytes(4, "big"))]
        if round.accepted is not None:
            ballot, entry = round.accepted
            writes.append(
                Write("votes", key + b"a", ballot.to_bytes(4, "big") + encode_entry(entry))
            )
        core.save(writes)

    def _build(self) -> Entry:
        core, round = self._core, self._round
        entry = build_entry(core, round, *self._changes())
        self._sealed = entry
        self.sealed_before(entry)
        core.save([Write("votes", round_key(core.head.round) + b"s", encode_entry(entry))])
        return entry

    # Settling

    def settle(self, entry: Entry) -> tuple[list[Write], GiveBack | None]:
        """An entry joined the chain: what to write down, and our own work if it was not listed."""
        core, round = self._core, self._round
        self.last = entry
        self._remember([entry.body.took_ms])
        # A closer that only just started states too little.
        self._due_ms += max(self._took[-1], median_low(self._took))
        # Old votes bind nobody once the round is closed; the last few stay for those who ask late.
        stale = round_key(max(0, entry.round - 2))
        writes = [Write("votes", stale + kind, None) for kind in (b"p", b"a")]
        kept = RETREAT_ROUNDS_MAX if core.rules.attachment_bytes_max else 2
        writes.append(Write("votes", round_key(max(0, entry.round - kept)) + b"s", None))
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
