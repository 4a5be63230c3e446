"""What the parts of a peer share: who it is, the ledger, the view of others, and the effects asked
for so far.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from protocol.codec import encode_card_list
from protocol.dice import Dice
from protocol.effects import Connect, Disconnect, Effect, Note, Save, Send
from protocol.entries import Card
from protocol.errors import RemoteError
from protocol.identity import Keys
from protocol.ids import Millis, PeerId, RunId
from protocol.ledger import Judge, Ledger, Mark, Write
from protocol.membership import Membership, Outgoing
from protocol.messages import Message
from protocol.ration import Ration
from protocol.rounds import ranking
from protocol.rules import Rules

STRANGERS_MAX: Final = 1_024  # cards kept of peers that are no members
_FAULTS_MAX: Final = 10_000
_ANSWERS_BURST: Final = 32
_ANSWERS_EVERY_MS: Final = 50


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
    now: Millis
    cards: dict[PeerId, Card] = field(default_factory=dict)  # newest known of each peer
    cards_version: int = 0  # rises when a card changes
    out: list[Effect] = field(default_factory=list)
    faults: dict[bytes, int] = field(default_factory=dict)  # bad messages by sender
    answers: Ration = field(default_factory=lambda: Ration(_ANSWERS_BURST, _ANSWERS_EVERY_MS))
    me: PeerId = field(init=False)
    # Asked with every event; follow from the head, and are found anew when it moves.
    _at: Mark | None = field(init=False, default=None)
    _is_member: bool = field(init=False, default=False)
    _ranked: tuple[PeerId, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        self.me = self.keys.peer

    @property
    def head(self) -> Mark:
        return self.ledger.head

    @property
    def is_member(self) -> bool:
        if self._at is not self.ledger.head:
            self._look_around()
        return self._is_member

    def ranked(self) -> tuple[PeerId, ...]:
        if self._at is not self.ledger.head:
            self._look_around()
        return self._ranked

    def _look_around(self) -> None:
        head = self._at = self.ledger.head
        self._is_member = self.me in head.roster
        self._ranked = ranking(self.run, head.round, head.roster)

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

    def blame(self, source: bytes, error: RemoteError) -> None:
        """Count bad bytes against their sender (P6)."""
        if len(self.faults) < _FAULTS_MAX or source in self.faults:
            self.faults[source] = self.faults.get(source, 0) + 1
        self.note("warning", "fault", peer=source, error=str(error))

    def may_answer(self, source: bytes) -> bool:
        """Is what costs us far more than the asker still to be granted?"""
        return self.answers.take(source, self.now)

    def learn_card(self, card: Card) -> None:
        """Keep a card whose signature was checked, if it is news."""
        known = self.cards.get(card.peer)
        if card.peer == self.me or (known is not None and known.sequence >= card.sequence):
            return
        self.cards[card.peer] = card
        self.cards_version += 1
        self.out.append(Connect(card))
        self.save([Write("cards", card.peer, encode_card(card))])
        if known is None and len(self.cards) > len(self.head.roster) + STRANGERS_MAX:
            self._forget_stranger(card.peer)

    def _forget_stranger(self, newest: PeerId) -> None:
        """Whoever holds an invite can make up strangers without end; the oldest one makes room."""
        roster = self.head.roster
        kept = {self.me, newest}
        oldest = next((p for p in self.cards if p not in roster and p not in kept), None)
        if oldest is not None:
            del self.cards[oldest]
            self.cards_version += 1
            self.out.append(Disconnect(oldest))
            self.save([Write("cards", oldest, None)])

    def can_be_dialled(self, peer: PeerId) -> bool:
        card = self.cards.get(peer)
        return card is not None and bool(card.addresses)

    def can_fetch_from(self, peer: PeerId) -> bool:
        """Chunks take no relay: one of the two must be able to dial the other."""
        return peer in self.cards and (self.can_be_dialled(peer) or self.can_be_dialled(self.me))

    def set_own_card(self, card: Card) -> None:
        self.cards[self.me] = card
        self.cards_version += 1
        self.save([Write("cards", self.me, encode_card(card))])

    def collectors(self) -> list[PeerId]:
        """The closer and its deputies, as far as they are up: who should hear what the next entry
        may list.
        """
        down = self.membership.down()
        up = [peer for peer in self.ranked() if peer not in down]
        return up[: self.rules.collectors]


@lru_cache(maxsize=4_096)
def encode_card(card: Card) -> bytes:
    return encode_card_list((card,))
