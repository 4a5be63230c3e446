"""Blobs on their way: what we fetch, whom we ask for it, and who may ask us.

What the disk holds is the node's to know: offers and pieces are served from there, in the order of
their urgency and within this machine's caps.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from protocol.blobs import Bits, Fetch, chunk_count
from protocol.core import Core
from protocol.errors import RemoteError
from protocol.events import (
    BlobOpened,
    DropBlob,
    OfferBlob,
    OpenBlob,
    ServePieces,
    StorePiece,
)
from protocol.ids import Hash, Millis, PeerId
from protocol.messages import (
    BlobOffer,
    BlobRequest,
    Level,
    Message,
    Piece,
    PieceRefused,
    PieceRequest,
)

_ASK_AGAIN_MS: Final = 3_000
_ASKED_AT_ONCE: Final = 8
_FETCHES_MAX: Final = 1_024


@dataclass(slots=True)
class _Order:
    """One fetch and what to do when it is whole."""

    fetch: Fetch
    done: Callable[[], None]
    holders: tuple[PeerId, ...]  # surely have it
    asked_ms: Millis
    is_opening: bool = False
    asked: set[PeerId] = field(default_factory=set)  # in this turn
    invited: set[PeerId] = field(default_factory=set)  # asked at any time: they may offer


class Transfers:
    def __init__(self, core: Core) -> None:
        self._core = core
        self._orders: dict[Hash, _Order] = {}

    @property
    def wake_ms(self) -> Millis | None:
        due: list[int] = []
        for order in self._orders.values():
            due.append(order.asked_ms + _ASK_AGAIN_MS)
            wake = order.fetch.wake_ms
            if wake is not None:
                due.append(wake)
        return Millis(min(due)) if due else None

    def get(self, root: Hash) -> Fetch | None:
        order = self._orders.get(root)
        return None if order is None else order.fetch

    # Fetching

    def start(self, root: Hash, done: Callable[[], None], holders: Iterable[PeerId] = ()) -> Fetch:
        """Fetch a blob; `done` is called once all of it is on disk."""
        core = self._core
        order = self._orders.get(root)
        if order is not None:
            return order.fetch
        assert len(self._orders) < _FETCHES_MAX, "fetches are bounded by who starts them"

        def send(to: PeerId, message: Message) -> None:
            core.send(to, message)

        fetch = Fetch(root, core.dice, core.now, send)
        sure = tuple(peer for peer in holders if peer != core.me)
        self._orders[root] = order = _Order(fetch, done, sure, core.now)
        self._look_for_holders(order)
        return fetch

    def cancel(self, root: Hash) -> None:
        """What came stays on disk for a while, in case it is wanted again."""
        if self._orders.pop(root, None) is not None:
            self._core.out.append(DropBlob(root))

    def tick(self) -> None:
        now = self._core.now
        for order in list(self._orders.values()):
            wake = order.fetch.wake_ms
            if wake is not None and now >= wake:
                order.fetch.tick(now)
            if now >= order.asked_ms + _ASK_AGAIN_MS:
                self._look_for_holders(order)

    def _look_for_holders(self, order: _Order) -> None:
        """Those who surely have it, and some more: the first few rounds everybody up is asked."""
        core = self._core
        order.asked_ms = core.now
        up = [peer for peer in core.membership.likely_up() if core.can_fetch_from(peer)]
        fresh = [peer for peer in up if peer not in order.asked and peer not in order.holders]
        if not fresh:
            order.asked.clear()  # whoever had none then may have some now
            fresh = [peer for peer in up if peer not in order.holders]
        first = [peer for peer in order.holders if peer not in order.asked]
        chosen = [*first, *core.dice.pick(fresh, _ASKED_AT_ONCE)]
        order.asked.update(chosen)
        order.invited.update(chosen)
        core.send(chosen, BlobRequest(order.fetch.root))

    def on_offer(self, sender: PeerId, message: BlobOffer) -> None:
        order = self._orders.get(message.root)
        if order is not None and sender in order.invited:
            order.fetch.on_offer(sender, message, self._core.now)

    def on_refused(self, sender: PeerId, message: PieceRefused) -> None:
        order = self._orders.get(message.root)
        if order is not None:
            order.fetch.on_refused(
                sender, message.level, message.numbers, message.wait_ms, self._core.now
            )

    def on_piece(self, sender: PeerId, message: Piece) -> None:
        order = self._orders.get(message.root)
        if order is None:
            return  # it was cancelled, or is whole, and this was on its way
        fetch, core = order.fetch, self._core
        news = fetch.on_piece(sender, message.level, message.number, message.data, core.now)
        if news and message.level is Level.CHUNK:
            core.out.append(StorePiece(message.root, message.number, message.data))
            self._conclude(order)
        elif fetch.chunk_ids is not None and fetch.size is not None and not order.is_opening:
            order.is_opening = True
            core.out.append(OpenBlob(message.root, fetch.size, fetch.chunk_ids))

    def opened(self, event: BlobOpened) -> None:
        """The disk made room, and found what it has."""
        order = self._orders.get(event.root)
        if order is not None and order.fetch.size is not None:
            order.fetch.opened(Bits(chunk_count(order.fetch.size), event.have), self._core.now)
            self._conclude(order)

    def _conclude(self, order: _Order) -> None:
        if order.fetch.is_whole:
            del self._orders[order.fetch.root]
            order.done()

    # Serving

    def on_request(self, sender: PeerId, message: BlobRequest) -> None:
        if self._core.may_answer(sender):
            self._core.out.append(OfferBlob(sender, message.root))

    def on_piece_request(self, sender: PeerId, message: PieceRequest) -> None:
        if not message.numbers or len(set(message.numbers)) != len(message.numbers):
            raise RemoteError("a request for no piece, or for one twice")
        self._core.out.append(ServePieces(sender, message.root, message.level, message.numbers))
