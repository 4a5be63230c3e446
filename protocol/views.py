"""Peers compare what they hold of each other: cards, rumors, the head.

Two that are up do so every few seconds, so that what a rumor missed comes round; and now and then
one calls who is not up, or was dropped: this is how two halves of a split meet again (P5).
"""

from collections.abc import Callable
from typing import Final

from protocol.catchup import CatchUp
from protocol.codec import VIEW_RUMORS_MAX
from protocol.core import Core
from protocol.errors import RemoteError
from protocol.ids import Millis, PeerId
from protocol.messages import Ack, Sync, View

# In one view; a card has some 150 bytes, and views are compared every few seconds (P8).
_CARDS: Final = 64


class Views:
    """`twin` is called when another process shows a card of this identity, newer than ours."""

    def __init__(self, core: Core, catchup: CatchUp, twin: Callable[[], None]) -> None:
        self._core, self._catchup, self._twin = core, catchup, twin
        self._next_ms = core.now + core.dice.below(core.rules.sync_interval_ms)

    @property
    def wake_ms(self) -> Millis:
        return Millis(self._next_ms)

    def tick(self) -> None:
        """With one that is up, and one that is not or was dropped."""
        core = self._core
        if core.now < self._next_ms:
            return
        self._next_ms = core.now + core.rules.sync_interval_ms
        up = core.dice.pick(core.membership.others_up())
        gone = core.dice.pick(core.membership.dead() + core.membership.former())
        core.send(up + gone, Sync(core.membership.view_hash(), core.ledger.summary()))

    def announce(self) -> None:
        """Our address may be new: some hear it from us, the rest from them."""
        core = self._core
        some = core.dice.pick(core.membership.others_up(), core.rules.fanout)
        mine = (core.cards[core.me],)
        # A view is as long as the list of members, so one is asked for, not `fanout` of them (P8).
        core.send(some[:1], View((), mine, wants_reply=True))
        core.send(some[1:], View((), mine, wants_reply=False))

    def hear(self, sender: PeerId, message: Sync | View) -> None:
        match message:
            case Sync():
                self._on_sync(sender, message)
            case View():
                self._on_view(sender, message)

    def _on_sync(self, sender: PeerId, message: Sync) -> None:
        core = self._core
        self._catchup.heard_head(sender, message.head)
        is_same = message.view == core.membership.view_hash()
        is_same = is_same and message.head == core.ledger.summary()
        if not is_same and core.may_answer(sender):
            core.send(sender, self._view(wants_reply=True))
            core.send(sender, Ack(0, core.ledger.summary(), ()))

    def _view(self, *, wants_reply: bool) -> View:
        core = self._core
        cards = [core.cards[peer] for peer in core.head.roster.members if peer in core.cards]
        return View(
            tuple(core.dice.pick(core.membership.view(), VIEW_RUMORS_MAX)),
            tuple(core.dice.pick(cards, _CARDS)),
            wants_reply,
        )

    def _on_view(self, sender: PeerId, message: View) -> None:
        core = self._core
        if len({card.peer for card in message.cards}) != len(message.cards):
            raise RemoteError("two cards of one peer")
        core.membership.hear_view(sender, message.rumors, core.now)
        for card in message.cards:
            known = core.cards.get(card.peer)
            if known is not None and known.sequence >= card.sequence:
                continue
            if card.peer == core.me:
                core.judge.check_card(card)
                self._twin()
                return
            if core.head.roster.knows(card.peer):
                core.judge.check_card(card)
                core.learn_card(card)
        if message.wants_reply and core.may_answer(sender):
            core.send(sender, self._view(wants_reply=False))
