"""Reduce-scatter: before a round closes, each part of each contribution reaches a member that will
sum it.

An author offers each of its parts to the first in that part's order that is up and not itself, and
to the next when nothing comes of that. Whoever has one on disk tells its author and the collectors;
a contribution is listed once all of its parts are on the disks of others. So a round outlives the
death of any one peer (P3), and no collector needs all of anything.
"""

from collections.abc import Callable, Iterable, Set
from typing import Final

from protocol.attachments import Attachments
from protocol.blobs import Bits
from protocol.core import Core
from protocol.deal import Deal, Own, PartKept, dealt_key
from protocol.entries import Attachment, Entry
from protocol.errors import RemoteError
from protocol.ids import Hash, Millis, PeerId
from protocol.ledger import Mark, Write
from protocol.messages import Contribute, Part, PartRequest, PartsHeld
from protocol.parts import check_part, path_to
from protocol.rounds import ranking
from protocol.rules import Quorum

_AGAIN_MS: Final = 1_000  # an offer may have been lost
_PATIENCE_MS: Final = 4_000  # a part that nobody asked us for in so long is offered to another
_RENEW_MS: Final = 10_000  # a round that is overdue by so much is dealt once more
_TELL_MS: Final = 200  # collectors hear of single parts no more often
_REPEAT_MS: Final = 2_000  # what they were told may have been lost
_DEALS_MAX: Final = 4
_EARLY_MAX: Final = 16  # of one sender


class Scattering:
    """Does nothing in a run whose attachments everybody fetches."""

    def __init__(self, core: Core, attachments: Attachments) -> None:
        self._core, self._attachments = core, attachments
        self._deals: dict[tuple[int, Hash], Deal] = {}  # of the open round and the one before
        self._early: dict[PeerId, list[Part | PartsHeld]] = {}
        self.came: Callable[[Deal], None] = lambda deal: None  # a part did, that may be summed

    @property
    def is_on(self) -> bool:
        return bool(self._core.rules.parts_max)

    @property
    def wake_ms(self) -> Millis | None:
        deal = self.open_deal()
        if deal is None:
            return None
        due = [at for at in (self._offer_ms(deal), self._tell_ms(deal)) if at is not None]
        return Millis(min(due)) if due else None

    # Rounds

    def open(self, deadline_ms: int) -> None:
        """A round is open. Contributions to it should be in by then."""
        head = self._core.head
        if not self.is_on:
            return
        place = head.round, head.hash
        if place not in self._deals:
            self._deals[place] = self._new_deal(head, deadline_ms)
        self._deals[place].mine = None  # opened again, it gets what is made anew
        while len(self._deals) > _DEALS_MAX:
            self._drop(next(iter(self._deals)))
        early, self._early = self._early, {}
        for sender, messages in early.items():
            for message in messages:
                self._heed(sender, message)

    def _new_deal(self, mark: Mark, deadline_ms: int) -> Deal:
        core = self._core
        ranked = ranking(core.run, mark.round, mark.roster)
        return Deal(mark, ranked, core.rules.parts(len(mark.roster)), deadline_ms)

    def _drop(self, place: tuple[int, Hash]) -> None:
        deal = self._deals.pop(place)
        self._unwrite(deal, deal.parts)

    def _unwrite(self, deal: Deal, known: Iterable[tuple[PeerId, int]]) -> None:
        place = deal.mark.round, deal.mark.hash
        self._core.save(Write("dealt", dealt_key(*place, *one), None) for one in known)

    def left(self, round: int) -> None:
        """The chain ends before the entry that closed `round` now. Who contributed to that brings
        something else to the same place.
        """
        for place in [place for place in self._deals if place[0] >= round]:
            self._drop(place)

    def restore(
        self, kept: Iterable[PartKept], mine: Contribute | None, parts: tuple[Attachment, ...]
    ) -> None:
        """After a start: what we hold of the last rounds, and our own contribution to the one that
        the newest entry closed. The open round's own is offered anew.
        """
        core, stale = self._core, []
        first = core.head.round - _DEALS_MAX + 1
        if self.is_on and core.head.round:
            self._restore_own(core.head.round - 1, mine, parts)
        for one in kept:
            mark = core.ledger.mark_at(one.round)
            if one.round < first or mark is None or mark.hash != one.parent:
                stale.append(Write("dealt", one.key, None))
            elif self._attachments.holds((one.part,)):
                deal = self._deals.setdefault(
                    (one.round, mark.hash), self._new_deal(mark, core.now)
                )
                deal.wholes[one.author] = one.whole
                deal.parts[one.author, one.number] = one.part
                deal.hold(one.author, one.number, core.me)
        core.save(stale)

    def _restore_own(
        self, round: int, mine: Contribute | None, parts: tuple[Attachment, ...]
    ) -> None:
        mark = self._core.ledger.mark_at(round)
        if mark is None:
            return
        deal = self._deals[round, mark.hash] = self._new_deal(mark, self._core.now)
        if mine is not None and mine.attached is not None and parts:
            deal.mine = Own(mine, parts)
            self._hold_own(deal, mine.attached, parts)

    def _hold_own(self, deal: Deal, whole: Attachment, parts: tuple[Attachment, ...]) -> None:
        me = self._core.me
        deal.wholes[me] = whole
        for number, part in enumerate(parts):
            self._attachments.hold(part.root, deal.mark.round)
            deal.parts[me, number] = part
            deal.hold(me, number, me)

    def _heed(self, sender: PeerId, message: Part | PartsHeld) -> None:
        """What it said before we could understand it."""
        try:
            self.hear(sender, message)
        except RemoteError as error:
            self._core.blame(sender, error)

    def hear(self, sender: PeerId, message: Part | PartsHeld | PartRequest) -> None:
        """Raises RemoteError for what is none of the sender's business, or does not fit."""
        deal = self._find(sender, message)
        if deal is None:
            return
        match message:
            case Part():
                self._on_part(deal, sender, message)
            case PartsHeld():
                self._on_parts_held(deal, sender, message)
            case PartRequest():
                self._on_part_request(deal, sender, message)

    def open_deal(self) -> Deal | None:
        """Of the open round; None where attachments are not dealt in parts."""
        return self._deals.get((self._core.head.round, self._core.head.hash))

    def deal_before(self, entry: Entry) -> Deal | None:
        """Of the round that `entry` closes."""
        return self._deals.get((entry.round, entry.body.parent))

    def _find(self, sender: PeerId, message: Part | PartsHeld | PartRequest) -> Deal | None:
        """The round that is meant, if we know it and it is the sender's business. Raises
        RemoteError for what nobody who keeps to the protocol sends.
        """
        for deal in self._deals.values():
            if deal.place == (message.round, message.tip):
                if message.number >= deal.count:
                    raise RemoteError("of a part that is not there")
                return deal if self._may_take_part(deal, sender, message) else None
        is_next = message.round == self._core.head.round + 1
        if is_next and sender in self._core.head.roster and not isinstance(message, PartRequest):
            early = self._early.setdefault(sender, [])
            if len(early) < _EARLY_MAX:
                early.append(message)
        return None

    def _may_take_part(
        self, deal: Deal, sender: PeerId, message: Part | PartsHeld | PartRequest
    ) -> bool:
        """Who became a member later adds up old sums like all others, and asks for what that
        takes; what it holds of them counts for nothing. It may know before us that a round is over.
        """
        if sender in deal.mark.roster:
            return True
        if isinstance(message, Part) and deal is self.open_deal():
            raise RemoteError("a part of a round that is not this sender's business")
        return isinstance(message, PartRequest) and sender in self._core.head.roster

    # Authors

    def offer(self, mine: Contribute, parts: tuple[Attachment, ...]) -> None:
        """Our own contribution to the open round."""
        deal = self.open_deal()
        if deal is None or mine.attached is None:
            return
        deal.mine = Own(mine, parts)
        self._hold_own(deal, mine.attached, parts)
        for number in range(len(parts)):
            self._pass_on(deal, deal.mine, number)

    def _candidates(self, deal: Deal, number: int) -> list[PeerId]:
        core, down = self._core, self._core.membership.down()
        return [
            peer
            for peer in deal.order(number)
            if peer != core.me and peer not in down and core.can_fetch_from(peer)
        ]

    def _pass_on(self, deal: Deal, own: Own, number: int) -> None:
        """To the next who could take it; after the last, to the first again."""
        candidates = self._candidates(deal, number)
        fresh = [peer for peer in candidates if peer not in own.offered[number]]
        if not fresh:
            own.offered[number].clear()
            fresh = candidates
        own.moved_ms[number] = self._core.now
        if fresh:
            own.offered[number].append(fresh[0])
            self._send_part(fresh[0], deal, own, number)

    def _send_part(self, to: PeerId, deal: Deal, own: Own, number: int) -> None:
        core, part = self._core, own.parts[number]
        own.sent_ms[number] = core.now
        if deal is self.open_deal():
            core.send(to, own.message)  # later on the entry names the whole
        path = path_to(own.parts, number)
        core.send(to, Part(*deal.place, core.me, number, part, path))

    def asked_for(self, root: Hash) -> None:
        """Somebody fetches this blob from us."""
        for deal in self._deals.values():
            if deal.mine is not None:
                deal.mine.asked_for(root, self._core.now)

    def _on_part_request(self, deal: Deal, sender: PeerId, message: PartRequest) -> None:
        if deal.mine is not None and self._core.may_answer(sender):
            self._send_part(sender, deal, deal.mine, message.number)

    def _offer_ms(self, deal: Deal) -> int | None:
        """When the next of our parts is offered to another."""
        own = deal.mine
        if own is None:
            return None
        due = [deal.due_ms + _RENEW_MS]
        for number in own.still:
            due.append(own.moved_ms[number] + _PATIENCE_MS)
            if own.offered[number] and own.is_unheard(number):
                due.append(own.sent_ms[number] + _AGAIN_MS)
        return min(due)

    def _offer_again(self, deal: Deal, own: Own) -> None:
        core, down = self._core, self._core.membership.down()
        if core.now >= deal.due_ms + _RENEW_MS:
            deal.due_ms = core.now
            own.begin_again()  # who had them may have been restarted, and does not know it
        for number in own.still:
            offered = own.offered[number]
            is_stuck = core.now >= own.moved_ms[number] + _PATIENCE_MS
            is_gone = bool(offered) and offered[-1] in down
            if is_stuck or is_gone or not offered:
                self._pass_on(deal, own, number)
            elif own.is_unheard(number) and core.now >= own.sent_ms[number] + _AGAIN_MS:
                self._send_part(offered[-1], deal, own, number)

    # Holders

    def introduce(self, deal: Deal, author: PeerId, whole: Attachment) -> None:
        """A contribution that was checked names this."""
        if author in deal.wholes:
            return
        deal.wholes[author] = whole
        for number in range(deal.count):
            message = deal.unproved.pop((author, number), None)
            if message is not None:
                self._heed(author, message)

    def settle(self, deal: Deal, author: PeerId, whole: Attachment) -> None:
        """An entry lists this. Whoever signed two different ones is believed the one that counts;
        while the round is open, none does.
        """
        if deal.wholes.get(author, whole) != whole and deal is not self.open_deal():
            self._unwrite(deal, [(author, number) for number in deal.forget(author)])
            del deal.wholes[author]
        self.introduce(deal, author, whole)

    def _on_part(self, deal: Deal, sender: PeerId, message: Part) -> None:
        if message.author not in deal.mark.roster:
            raise RemoteError("a stranger's part")
        if message.author in deal.wholes:
            self._take(deal, sender, message)
        elif sender == message.author:
            deal.unproved[sender, message.number] = message

    def _take(self, deal: Deal, sender: PeerId, message: Part) -> None:
        author, number = message.author, message.number
        known = deal.parts.get((author, number))
        if known is not None and deal.holds(author, number):
            self._tell(author, deal, number)  # it did not hear of it
            return
        if known is not None and self._attachments.is_coming(known.root):
            return
        whole = deal.wholes[author]
        try:
            check_part(whole, deal.count, number, message.part, message.path)
        except RemoteError:
            # Where any seal counts it may be of what the author brought after it left an entry, and
            # that is no fault; what came first counts. Nor do we know what others have open still.
            if self._core.rules.quorum is Quorum.ANY or deal is not self.open_deal():
                return
            raise
        deal.parts[author, number] = message.part
        holders = dict.fromkeys((sender, author))
        self._attachments.want(
            (message.part,),
            message.round,
            holders,
            lambda: self._came(deal, author, number, message.part),
        )

    def is_missing(self, entry: Entry, number: int) -> None:
        """One of these parts, on the disk; which one, it does not say. Those that are there come
        back as soon as their authors name them again.
        """
        deal = self.deal_before(entry)
        if deal is not None:
            for author in deal.held.pop(number, ()):
                self._attachments.is_missing(deal.parts[author, number].root)

    def _came(self, deal: Deal, author: PeerId, number: int, part: Attachment) -> None:
        place = deal.mark.round, deal.mark.hash
        if deal.parts.get((author, number)) != part or self._deals.get(place) is not deal:
            return  # its author brought something else since
        kept = PartKept(*place, author, number, deal.wholes[author], part)
        self._core.save([Write("dealt", kept.key, kept.value)])
        deal.hold(author, number, self._core.me)
        self._tell(author, deal, number)
        self._conclude(deal)
        self.came(deal)

    def _tell(self, to: PeerId, deal: Deal, number: int) -> None:
        if to != self._core.me:
            self._core.send(to, PartsHeld(*deal.place, number, deal.seats_held(number)))

    def tell(self, to: PeerId) -> None:
        """Somebody may have to close the open round."""
        deal = self.open_deal()
        for number in deal.held if deal is not None else ():
            assert deal is not None
            self._tell(to, deal, number)

    def _tell_ms(self, deal: Deal) -> int | None:
        """When the collectors hear next of what is here."""
        if not any(deal.held.values()):
            return None
        return deal.told_ms + (_TELL_MS if deal.is_news else _REPEAT_MS)

    def _tell_collectors(self, deal: Deal) -> None:
        core, due = self._core, self._tell_ms(deal)
        if due is None:
            return
        if core.now >= due or (deal.is_news and self._has_all(deal)):
            deal.is_news, deal.told_ms = False, core.now
            for collector in core.collectors():
                self.tell(collector)

    def _has_all(self, deal: Deal) -> bool:
        """Nobody who is up owes us a part that we were offered any of."""
        return deal.has_all(p for p in self._core.membership.alive() if p in deal.mark.roster)

    # Collectors

    def await_all(self, deal: Deal, author: PeerId, done: Callable[[], None]) -> None:
        """`done` is called once all parts of a contribution are on others' disks, or never."""
        deal.waiting[author] = done
        self._conclude(deal)

    def _on_parts_held(self, deal: Deal, sender: PeerId, message: PartsHeld) -> None:
        seats = Bits(len(deal.mark.roster), message.seats)
        mine = deal.mark.roster.seat(self._core.me)
        if deal.mine is not None and mine is not None and mine in seats:
            deal.mine.is_kept(message.number)
        told = deal.told.setdefault(message.number, {})
        if told.get(sender) == message.seats:
            return
        told[sender] = message.seats
        deal.hear(sender, message.number, seats)
        self._conclude(deal)

    def _conclude(self, deal: Deal) -> None:
        for author in [a for a in deal.waiting if deal.is_covered(a) or self._is_alone(deal, a)]:
            deal.waiting.pop(author)()

    def is_within_reach(self, author: PeerId, gone: Set[PeerId]) -> bool:
        """Without these, can what it attached to the open round still be had? It could when it
        began to count; if its author and who held a part are gone since, nobody adds that up.
        """
        deal = self.open_deal()
        if deal is None or author not in deal.wholes or author not in gone:
            return True
        return all(deal.has_holder(author, number, gone) for number in range(deal.count))

    def _is_alone(self, deal: Deal, author: PeerId) -> bool:
        """The last one that is up vouches for itself (P4)."""
        core = self._core
        return author == core.me and not any(self._candidates(deal, n) for n in range(deal.count))

    # Time

    def tick(self) -> None:
        deal = self.open_deal()
        if deal is None:
            return
        if deal.mine is not None:
            self._offer_again(deal, deal.mine)
        self._tell_collectors(deal)
        self._conclude(deal)
