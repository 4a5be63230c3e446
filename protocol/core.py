"""What the parts of a peer share: who it is, the ledger, the view of others, and the effects asked
for so far.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from protocol.codec import encode_card_list
from protocol.dice import Dice
from protocol.entries import Card
from protocol.events import Connect, Effect, Note, Save, Send
from protocol.identity import Keys
from protocol.ids import Millis, PeerId, RunId
from protocol.ledger import Judge, Ledger, Mark, Write
from protocol.membership import Membership, Outgoing
from protocol.messages import Message
from protocol.rounds import ranking
from protocol.rules import Rules

CARDS_MAX = 8_192


@dataclass(slots=True)
class Core:
    run: RunId
    rules: Rules
    keys: Keys
    dice: Dice
    judge: Judge
    ledger: Ledger
    membership: Membership
    manifest: bytes
    cards: dict[PeerId, Card] = field(default_factory=dict)  # newest known of each peer
    out: list[Effect] = field(default_factory=list)
    now: Millis = Millis(0)

    @property
    def me(self) -> PeerId:
        return self.keys.peer

    @property
    def head(self) -> Mark:
        return self.ledger.head

    @property
    def is_member(self) -> bool:
        return self.me in self.head.roster

    def ranked(self) -> tuple[PeerId, ...]:
        return ranking(self.run, self.head.round, self.head.roster)

    def send(self, to: bytes | Iterable[bytes], message: Message) -> None:
        targets = (to,) if isinstance(to, bytes) else tuple(to)
        if targets:
            self.out.append(Send(targets, message))

    def send_all(self, outgoing: Iterable[Outgoing]) -> None:
        for to, message in outgoing:
            self.send(to, message)

    def save(self, writes: Iterable[Write]) -> None:
        kept = tuple(writes)
        if kept:
            self.out.append(Save(kept))

    def note(self, level: str, event: str, **fields: object) -> None:
        self.out.append(Note(level, event, fields))

    def learn_card(self, card: Card) -> bool:
        """Keep a card whose signature was checked, if it is news."""
        known = self.cards.get(card.peer)
        if known is not None and known.sequence >= card.sequence:
            return False
        if known is None and len(self.cards) >= CARDS_MAX:
            return False
        self.cards[card.peer] = card
        if card.peer != self.me:
            self.out.append(Connect(card))
            self.save([Write("cards", card.peer, encode_card(card))])
        return True

    def collectors(self) -> list[PeerId]:
        """The closer and its deputies, as far as they are up: who should hear what the next entry
        may list.
        """
        down = self.membership.down()
        up = [peer for peer in self.ranked() if peer not in down]
        return up[: self.rules.collectors]


@lru_cache(maxsize=CARDS_MAX)
def encode_card(card: Card) -> bytes:
    return encode_card_list((card,))
