"""Blobs on their way: what we fetch, whom we ask for it, and who may ask us.

What the disk holds is the node's to know: offers and pieces are served from there, in the order of
their urgency and within this machine's caps.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from protocol.blobs import Bits, Fetch, chunk_count
from protocol.core import Core
from protocol.effects import (
    BlobKind,
    DropBlob,
    OfferBlob,
    OpenBlob,
    ServePieces,
    StorePiece,
)
from protocol.errors import RemoteError
from protocol.events import BlobOpened
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
_ASKED_AT_ONCE: Final = {BlobKind.SNAPSHOT: 8, BlobKind.ATTACHMENT: 3}
_AT_ONCE: Final = 32  # fetches; a few that get done are worth more than many that are half done
_YIELD_MS: Final = 6_000  # one that does not move makes room for the next for so long
_ASKERS_MAX: Final = 32
_NEWS: Final = 4  # how often those who asked hear of more, while a blob comes


@dataclass(slots=True)
class _Order:
    """One fetch and what to do when it is whole."""

    fetch: Fetch
    kind: BlobKind
    size: int | None  # what it must have; None: whatever its root says
    done: list[Callable[[], None]]
    holders: tuple[PeerId, ...]  # surely have it
    asked_ms: Millis | None = None  # None: others come first
    is_opening: bool = False
    asked: set[PeerId] = field(default_factory=set)  # in this turn
    invited: set[PeerId] = field(default_factory=set)  # asked at any time: they may offer
    askers: dict[PeerId, None] = field(default_factory=dict)  # asked us, who have not all of it
    news: int = 0  # how much of it those were told of, of `_NEWS`


class Transfers:
    def __init__(self, core: Core) -> None:
        self._core = core
        self._orders: dict[Hash, _Order] = {}

    @property
    def wake_ms(self) -> Millis | None:
        due: list[int] = []
        for order in self._orders.values():
            if order.asked_ms is not None:
                due.append(order.asked_ms + _ASK_AGAIN_MS)
            wake = order.fetch.wake_ms
            if wake is not None:
                due.append(wake)
        return Millis(min(due)) if due else None

    def get(self, root: Hash) -> Fetch | None:
        order = self._orders.get(root)
        return None if order is None else order.fetch

    # Fetching

    def start(
        self,
        root: Hash,
        done: Callable[[], None],
        holders: Iterable[PeerId] = (),
        kind: BlobKind = BlobKind.SNAPSHOT,
        size: int | None = None,
    ) -> Fetch:
        """Fetch a blob; `done` is called once all of it is here. A blob that must have `size` bytes
        and has not never comes.
        """
        core = self._core
        order = self._orders.get(root)
        if order is not None:
            order.done.append(done)
            return order.fetch

        def send(to: PeerId, message: Message) -> None:
            core.send(to, message)

        fetch = Fetch(root, core.dice, core.now, send)
        sure = tuple(peer for peer in holders if peer != core.me)
        self._orders[root] = _Order(fetch, kind, size, [done], sure)
        self._begin()
        return fetch

    def cancel(self, root: Hash) -> None:
        """What came stays on disk for a while, in case it is wanted again."""
        if self._orders.pop(root, None) is not None:
            self._core.out.append(DropBlob(root))
            self._begin()

    def _begin(self) -> None:
        """As many as may go on at once, in the order that they were wanted."""
        waiting = [order for order in self._orders.values() if order.asked_ms is None]
        for order in waiting[: max(0, _AT_ONCE - len(self._orders) + len(waiting))]:
            self._look_for_holders(order)

    def tick(self) -> None:
        now = self._core.now
        for order in list(self._orders.values()):
            wake = order.fetch.wake_ms
            if wake is not None and now >= wake:
                order.fetch.tick(now)
            if order.asked_ms is not None and now >= order.asked_ms + _ASK_AGAIN_MS:
                self._go_on(order)

    def _go_on(self, order: _Order) -> None:
        """Ask again; or, if that has led nowhere, let others have their turn."""
        root, is_stuck = order.fetch.root, self._core.now - order.fetch.moved_ms >= _YIELD_MS
        if is_stuck and any(other.asked_ms is None for other in self._orders.values()):
            del self._orders[root]
            self._orders[root], order.asked_ms = order, None
            self._begin()
        else:
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
        chosen = [*first, *core.dice.pick(fresh, _ASKED_AT_ONCE[order.kind])]
        order.asked.update(chosen)
        order.invited.update(chosen)
        core.send(chosen, BlobRequest(order.fetch.root))

    def on_offer(self, sender: PeerId, message: BlobOffer) -> None:
        order = self._orders.get(message.root)
        if order is None or sender not in order.invited:
            return
        if order.size is None or message.size == order.size:
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
            self._tell_askers(order)
            self._conclude(order)
        elif fetch.chunk_ids is not None and fetch.size is not None and not order.is_opening:
            order.is_opening = True
            core.out.append(OpenBlob(message.root, fetch.size, fetch.chunk_ids, order.kind))

    def opened(self, event: BlobOpened) -> None:
        """The disk made room, and found what it has."""
        order = self._orders.get(event.root)
        if order is not None and order.fetch.size is not None:
            order.fetch.opened(Bits(chunk_count(order.fetch.size), event.have), self._core.now)
            self._conclude(order)

    def _conclude(self, order: _Order) -> None:
        if order.fetch.is_whole:
            del self._orders[order.fetch.root]
            for done in order.done:
                done()
            self._begin()

    # Serving

    def on_request(self, sender: PeerId, message: BlobRequest) -> None:
        if not self._core.may_answer(sender):
            return
        order = self._orders.get(message.root)
        if order is not None and len(order.askers) < _ASKERS_MAX:
            order.askers[sender] = None
        self._core.out.append(OfferBlob(sender, message.root))

    def _tell_askers(self, order: _Order) -> None:
        """Those who asked us for what we fetch ourselves may take from us what is here by now: so
        that not all of them take it from the few who had it first.
        """
        fetch = order.fetch
        if fetch.size is None or fetch.missing_bytes is None or not order.askers:
            return
        news = _NEWS * (fetch.size - fetch.missing_bytes) // fetch.size
        if news > order.news:
            order.news = news
            offers = (OfferBlob(peer, fetch.root) for peer in order.askers)
            self._core.out.extend(offers)

    def on_piece_request(self, sender: PeerId, message: PieceRequest) -> None:
        if not message.numbers or len(set(message.numbers)) != len(message.numbers):
            raise RemoteError("a request for no piece, or for one twice")
        self._core.out.append(ServePieces(sender, message.root, message.level, message.numbers))
