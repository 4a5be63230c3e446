"""One decree a round: who may close it, and which entry counts.

Ballot 0 belongs to the closer. When it is silent, the owner of the next ballot first asks what
others hold (`Prepare`), adopts an entry that already counts or may have been accepted, and else
closes itself. With `quorum = "any"` a sealed entry counts at once. With `"majority"` it counts when
most members accepted it: one Paxos decree a round.
"""

from collections.abc import Callable, Set
from typing import Final

from protocol.building import build_entry
from protocol.codec import encode_entry
from protocol.core import Core
from protocol.entries import Admission, Departure, Entry
from protocol.errors import RemoteError
from protocol.holdings import Holdings
from protocol.ids import Hash, Millis, PeerId
from protocol.ledger import Write, round_key, seal_key
from protocol.messages import Accepted, Closed, Commit, Prepare, Promise, Propose
from protocol.open_round import Lead, OpenRound, Vote, silent
from protocol.retreat import RETREAT_ROUNDS_MAX
from protocol.rounds import ballot_due, below, owner, ranking, tree, turn_ms
from protocol.rules import Quorum

_VOTES_ROUNDS: Final = 2  # old votes bind nobody; the last few stay for those who ask late


class Ballots:
    """The ballots of the open round. `adopt` is called with an entry that counts."""

    def __init__(
        self,
        core: Core,
        holdings: Holdings,
        adopt: Callable[[Entry], None],
        changes: Callable[[], tuple[tuple[Admission, ...], tuple[Departure, ...]]],
        fall_behind: Callable[[bytes], None],
    ) -> None:
        self._core, self._holdings = core, holdings
        self._adopt, self._changes, self._fall_behind = adopt, changes, fall_behind
        self._round: OpenRound  # there once the first one began
        # Our own, by round and parent. A retreat may open a round again, and a second seal for it
        # would be equivocation.
        self._seals: dict[tuple[int, Hash], Entry] = {}

    def begin(self, round: OpenRound) -> None:
        self._round = round

    def restore(self, vote: Vote) -> None:
        """After a start: what we promised in the open round before the process ended."""
        self._round.promised, self._round.accepted = vote.promised, vote.accepted
        self._keep_up(vote.promised)

    def sealed_before(self, entry: Entry) -> None:
        """By us."""
        self._seals[entry.round, entry.body.parent] = entry

    # Turns

    @property
    def wake_ms(self) -> Millis:
        due, lead = self._next_turn_ms(), self._round.lead
        if lead is not None and lead.chosen is None:
            due = min(due, lead.until_ms)
        return Millis(due)

    def take_turn(self) -> int | None:
        """The ballot whose turn has come since this was called last."""
        core, round = self._core, self._round
        if core.now < self._next_turn_ms():
            return None
        deadline = round.deadline_ms - round.opened_ms
        elapsed = core.now - round.opened_ms + round.hurry_ms
        due = ballot_due(elapsed, deadline, core.rules)
        # After a pause several are due: the last of ours counts, else the last.
        ours = due - (due - core.ranked().index(core.me)) % len(core.head.roster)
        ballot = ours if ours >= round.next_ballot else due
        round.next_ballot = due + 1
        return ballot

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

    # Leading

    def tick(self) -> None:
        lead = self._round.lead
        if lead is not None and lead.chosen is None and self._core.now >= lead.until_ms:
            self._conclude(lead, out_of_time=True)

    def may_lead(self, ballot: int) -> bool:
        round = self._round
        fresh = ballot > round.promised or ballot == round.promised == 0
        return fresh and ballot > round.tried_ballot

    def lead(self, ballot: int, reason: str) -> None:
        core, round = self._core, self._round
        if not round.held or not self.may_lead(ballot):
            return
        round.tried_ballot = ballot
        core.note("debug", "closing", round=core.head.round, ballot=ballot, reason=reason)
        patience = self._turn(ballot + 1) - self._turn(ballot)
        if core.rules.quorum is Quorum.ANY:
            patience = patience * 3 // 4  # the next one's clock may be ahead of ours
        round.lead = Lead(ballot, core.now + patience)
        if ballot == 0:
            round.lead.quiet = silent(core, round)
            self._propose_own(round.lead)
            return
        round.promised = ballot
        self._save_vote()
        prepare = Prepare(core.head.round, core.head.hash[:8], ballot)
        core.send(core.membership.others_up(), prepare)
        self._conclude(round.lead, out_of_time=False)

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
        lead.quiet = silent(core, round) | set(core.membership.others_up()) - lead.promises.keys()
        if best is None:
            self._propose_own(lead)
        else:
            self._propose(lead, best[1])

    def _propose_own(self, lead: Lead) -> None:
        entry = self._own_entry(lead)
        if entry is None:
            self._round.lead = None
        else:
            self._propose(lead, entry)

    def _propose(self, lead: Lead, entry: Entry) -> None:
        core = self._core
        lead.chosen = entry
        if core.rules.quorum is Quorum.ANY:
            self._save_vote()
            self._adopt(entry)
            self.spread(Closed(entry), core.me, entry, lead.quiet)
            return
        if self._holdings.holds(entry, len(core.head.roster)):
            self._accept_own(lead, entry)
            self._spread_in_round(Propose(lead.ballot, entry), lead.quiet)
            self._count_accepts(lead)
            return
        # We do not accept what we cannot merge. Who accepted it before has what it lists; but what
        # it comes to in parts is added up only once it is proposed. Under this ballot nothing else
        # ever will be: what is our own is sealed, and the ballot is taken, on the disk.
        if core.rules.parts_max:
            lead.entry = entry
            self._spread_in_round(Propose(lead.ballot, entry), lead.quiet)
        self._want(entry, lambda: self._go_on_leading(lead, entry))

    def _accept_own(self, lead: Lead, entry: Entry) -> None:
        round = self._round
        lead.entry = entry
        round.promised, round.accepted = lead.ballot, (lead.ballot, entry)
        self._save_vote()
        lead.accepts.add(self._core.me)

    def _want(self, entry: Entry, done: Callable[[], None]) -> None:
        self._holdings.want(entry, self._core.head.roster.members, done)

    def _go_on_leading(self, lead: Lead, entry: Entry) -> None:
        """All that our proposal lists is here."""
        if self._round.lead is not lead:
            return  # we promised more since, or the round is closed
        if lead.entry is None:
            self._propose(lead, entry)
        else:
            self._accept_own(lead, entry)
            self._count_accepts(lead)

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

    # Voting

    def promise(self, sender: PeerId, message: Prepare) -> Promise | None:
        """What to answer; None if we are bound otherwise."""
        core, round = self._core, self._round
        if owner(core.ranked(), message.ballot) != sender:
            raise RemoteError("a ballot that is somebody else's")
        if message.ballot < round.promised or not core.may_answer(sender):
            return None
        if message.ballot > round.promised and self._binds(message.ballot):
            round.promised = message.ballot
            self._keep_up(message.ballot)
            if round.lead is not None and round.lead.ballot < message.ballot:
                round.lead = None
            self._save_vote()
        ballot, entry = round.accepted or (0, None)
        return Promise(message.round, message.tip, message.ballot, ballot, entry)

    def _binds(self, ballot: int) -> bool:
        """A vote needs every promise. Where any seal counts, promises only spare a duel, and one
        whose turn is far off silences nobody.
        """
        rules = self._core.rules
        soon = self._core.now + rules.window_ms + rules.deadline_ceiling_ms
        return rules.quorum is Quorum.MAJORITY or self._turn(ballot) <= soon

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
        if owner(core.ranked(), message.ballot) == core.me:
            raise RemoteError("a proposal under our own ballot")
        core.judge.follow(core.head, entry)
        if message.ballot < round.promised:
            return
        if round.passed_on != (message.ballot, entry.hash):
            # Before we hold what it lists, or everybody below us would wait for that too.
            round.passed_on = (message.ballot, entry.hash)
            self._spread_in_round(message)
        # It comes more than once; what it lists is waited for once.
        place = message.ballot, entry.hash
        if place != round.awaited_entry or self._holdings.holds(entry, len(core.head.roster)):
            round.awaited_entry = place
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

    def on_commit(self, sender: PeerId, message: Commit) -> None:
        accepted, round = self._round.accepted, self._core.head.round
        if message.round != round:
            if message.round > round:  # it may have been admitted by an entry that we lack
                self._fall_behind(sender)
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

    def _own_entry(self, lead: Lead) -> Entry | None:
        """As it was sealed, if it was before. None if nobody could merge what we would list."""
        core, round = self._core, self._round
        known = self._seals.get((round.mark.round, round.mark.hash))
        if known is not None:
            return known
        gone = core.membership.down() | lead.quiet
        listed = [
            held for by, held in round.held.items() if self._holdings.is_within_reach(by, gone)
        ]
        if not listed:
            return None
        entry = build_entry(core, round, listed, *self._changes())
        self.sealed_before(entry)
        core.save([Write("votes", seal_key(entry.round, entry.body.parent), encode_entry(entry))])
        return entry

    def outdated(self, round: int) -> list[Write]:
        """What need not stay on disk of votes, once `round` is closed."""
        stale = round_key(max(0, round - _VOTES_ROUNDS))
        writes = [Write("votes", stale + kind, None) for kind in (b"p", b"a")]
        kept = RETREAT_ROUNDS_MAX if self._core.rules.attachment_bytes_max else _VOTES_ROUNDS
        for place in [place for place in self._seals if place[0] <= round - kept]:
            del self._seals[place]
            writes.append(Write("votes", seal_key(*place), None))
        return writes

    # Spreading

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
