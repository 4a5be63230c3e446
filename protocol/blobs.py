"""Content-addressed byte strings in chunks: how they are named, and how one is fetched from many.

A blob's chunks are named by their hashes, the list of those names is cut into pages, and the root
names the size and the pages. So whoever knows a root can check each chunk by itself, whoever sent
it. A `Fetch` asks everybody who has some of a blob, the rarest chunks first, and each no faster
than it answers; what came is kept, so a fetch that is cut off goes on where it was.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from protocol.codec import CHUNK_BYTES, PAGES_MAX, PIECES_MAX
from protocol.dice import Dice
from protocol.errors import RemoteError
from protocol.ids import ID_BYTES, Hash, Millis, PeerId, digest
from protocol.messages import BlobOffer, Level, Message, PieceRequest

PAGE_IDS: Final = CHUNK_BYTES // ID_BYTES
SIZE_MAX: Final = CHUNK_BYTES * PAGE_IDS * PAGES_MAX
ASKED_MAX: Final = PIECES_MAX  # pieces under way from one holder

_WINDOW_FIRST: Final = 4
_LATENCY_MS: Final = 500  # a holder is asked for as much as it sends in this time
_PATIENCE_MS: Final = 4_000  # nothing came for so long: others are asked
_REST_MS: Final = 8_000  # a silent holder rests, twice as long each time
_HOLDERS_MAX: Final = 64
_STRIKES_MAX: Final = 6
_SILENCES_MAX: Final = 3  # in a row


def chunk_id(data: bytes) -> Hash:
    return digest("chunk", data)


def page_id(data: bytes) -> Hash:
    return digest("page", data)


def blob_root(size: int, pages: Iterable[Hash]) -> Hash:
    return digest("blob", size.to_bytes(8, "big"), *pages)


def pages_of(chunk_ids: bytes) -> list[bytes]:
    """The list of all chunks' names, cut into pages."""
    step = PAGE_IDS * ID_BYTES
    return [chunk_ids[at : at + step] for at in range(0, len(chunk_ids), step)]


def chunks_of(data: bytes) -> list[bytes]:
    return [data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)]


def root_of(size: int, chunk_ids: bytes) -> Hash:
    return blob_root(size, map(page_id, pages_of(chunk_ids)))


def chunk_count(size: int) -> int:
    return -(-size // CHUNK_BYTES)


def page_count(size: int) -> int:
    return -(-chunk_count(size) // PAGE_IDS)


def chunk_length(size: int, number: int) -> int:
    return min(CHUNK_BYTES, size - number * CHUNK_BYTES)


class Bits:
    """A set of chunk numbers, as it travels: bit n % 8 of byte n // 8."""

    def __init__(self, count: int, raw: bytes | None = None) -> None:
        """Raises RemoteError for bytes that are not `count` bits."""
        self.count = count
        self._raw = bytearray(raw if raw is not None else bytes(-(-count // 8)))
        spare = -count % 8
        if len(self._raw) != -(-count // 8) or (spare and self._raw[-1] >> (8 - spare)):
            raise RemoteError(f"a map that is not of {count} chunks")

    @classmethod
    def full(cls, count: int) -> "Bits":
        return cls(count, ((1 << count) - 1).to_bytes(-(-count // 8), "little"))

    def __contains__(self, number: int) -> bool:
        return bool(self._raw[number >> 3] >> (number & 7) & 1)

    def add(self, number: int) -> None:
        self._raw[number >> 3] |= 1 << (number & 7)

    def remove(self, number: int) -> None:
        self._raw[number >> 3] &= ~(1 << (number & 7))

    def total(self) -> int:
        return int.from_bytes(self._raw, "big").bit_count()

    def __iter__(self) -> Iterator[int]:
        return (number for number in range(self.count) if number in self)

    def encode(self) -> bytes:
        return bytes(self._raw)


@dataclass(slots=True)
class _Holder:
    have: Bits | None  # None: all of it
    asked: dict[tuple[Level, int], Millis] = field(default_factory=dict)
    window: int = _WINDOW_FIRST
    heard_ms: int = 0
    rests_until_ms: int = 0
    strikes: int = 0

    def holds(self, number: int) -> bool:
        return self.have is None or number in self.have


class Fetch:
    """One blob on its way here. `send` takes messages; what is received comes in through `on_*`.

    In order: offers name the size and the pages; pages name the chunks; then the disk says which
    chunks it has (`opened`), and the rest is asked for until none is missing.
    """

    def __init__(
        self, root: Hash, dice: Dice, now: Millis, send: Callable[[PeerId, Message], None]
    ) -> None:
        self.root, self._dice, self._send = root, dice, send
        self.started_ms = now
        self.moved_ms = now  # when something last came
        self.size: int | None = None
        self._page_ids: tuple[Hash, ...] = ()
        self._pages: dict[int, bytes] = {}
        self._names = b""  # of all chunks, once every page is here
        self._have: Bits | None = None  # None: the disk has not said yet
        self._holders: dict[PeerId, _Holder] = {}
        self._barred: set[PeerId] = set()  # sent bytes that are not what they were asked for
        self._order: deque[int] = deque()  # missing and not asked for, rarest first
        self._is_order_stale = False
        self._opened_ms = now
        self._missing = 0
        self.received_bytes = 0  # of chunks, good ones
        self.repeated = 0  # chunks that came twice

    # Reading

    @property
    def chunk_ids(self) -> bytes | None:
        """The names of all chunks, one after the other, once they are known."""
        return self._names or None

    @property
    def is_whole(self) -> bool:
        return self._have is not None and self._missing == 0

    @property
    def is_open(self) -> bool:
        return self._have is not None

    @property
    def holders(self) -> int:
        return len(self._holders)

    @property
    def missing_bytes(self) -> int | None:
        if self.size is None:
            return None
        return self._missing * CHUNK_BYTES if self.is_open else self.size

    def per_ms(self, now: Millis) -> float | None:
        """Bytes a millisecond since chunks have been asked for; None until some have come."""
        if self.received_bytes < 4 * CHUNK_BYTES and not self.is_whole:
            return None
        return self.received_bytes / max(1, now - self._opened_ms)

    @property
    def wake_ms(self) -> Millis | None:
        """When a silent holder's time is over."""
        due: list[int] = []  # in one pass: it is asked with every event, of every fetch
        for holder in self._holders.values():
            if holder.asked:
                due.append(self._due(holder))
            if holder.rests_until_ms:
                due.append(holder.rests_until_ms)
        return Millis(min(due)) if due else None

    def _due(self, holder: _Holder) -> int:
        return max(holder.heard_ms, min(holder.asked.values())) + _PATIENCE_MS

    # Holders

    def on_offer(self, sender: PeerId, offer: BlobOffer, now: Millis) -> None:
        """Raises RemoteError for an offer that does not belong to the root."""
        if sender in self._barred:
            return
        if self.size is None:
            self._check(offer)
            self.size, self._page_ids = offer.size, offer.pages
            self._missing = chunk_count(offer.size)
        elif (offer.size, offer.pages) != (self.size, self._page_ids):
            self._bar(sender)
            raise RemoteError("an offer that does not belong to its root")
        have = None if offer.have is None else Bits(chunk_count(offer.size), offer.have)
        holder = self._holders.get(sender)
        if holder is not None:
            holder.have = have
        elif len(self._holders) < _HOLDERS_MAX:
            self._holders[sender] = _Holder(have, heard_ms=now)
        self._is_order_stale |= have is not None
        self.ask(now)

    def _check(self, offer: BlobOffer) -> None:
        if not 0 < offer.size <= SIZE_MAX or len(offer.pages) != page_count(offer.size):
            raise RemoteError(f"an offer of {offer.size} bytes in {len(offer.pages)} pages")
        if blob_root(offer.size, offer.pages) != self.root:
            raise RemoteError("an offer that does not belong to its root")

    def on_refused(
        self, sender: PeerId, level: Level, numbers: Iterable[int], wait_ms: int, now: Millis
    ) -> None:
        """`sender` has no such pieces (no wait), or wants to be left alone for a while."""
        holder = self._holders.get(sender)
        if holder is None:
            return
        for number in numbers:
            if holder.asked.pop((level, number), None) is not None:
                self._want(level, number)
                if not wait_ms:
                    self._lacks(holder, level, number)
        if wait_ms:
            holder.rests_until_ms = max(holder.rests_until_ms, now + wait_ms)
        elif self._strike(holder):
            self._release(self._holders.pop(sender))
        self.ask(now)

    def _lacks(self, holder: _Holder, level: Level, number: int) -> None:
        if level is Level.CHUNK and self.size is not None:
            if holder.have is None:
                holder.have = Bits.full(chunk_count(self.size))
            holder.have.remove(number)

    @staticmethod
    def _strike(holder: _Holder) -> bool:
        """True once there have been too many: it does not hold what it says."""
        holder.strikes += 1
        return holder.strikes >= _STRIKES_MAX

    def _bar(self, sender: PeerId) -> None:
        self._barred.add(sender)
        holder = self._holders.pop(sender, None)
        if holder is not None:
            self._release(holder)

    def _release(self, holder: _Holder) -> None:
        for level, number in holder.asked:
            self._want(level, number)
        holder.asked.clear()

    def _want(self, level: Level, number: int) -> None:
        if level is Level.CHUNK:
            self._order.appendleft(number)

    def tick(self, now: Millis) -> None:
        """Ask others for what a silent holder was asked for."""
        for holder in self._holders.values():
            if holder.rests_until_ms and now >= holder.rests_until_ms:
                holder.rests_until_ms = 0
            if holder.asked and now >= self._due(holder):
                self._release(holder)
                holder.strikes += 1
                holder.window = _WINDOW_FIRST
                holder.rests_until_ms = now + (_REST_MS << min(holder.strikes - 1, 4))
        for peer in [p for p, h in self._holders.items() if h.strikes >= _SILENCES_MAX]:
            self._release(self._holders.pop(peer))
        self.ask(now)

    # Pieces

    def on_piece(self, sender: PeerId, level: Level, number: int, data: bytes, now: Millis) -> bool:
        """Is it good, and news? Raises RemoteError if it is not what its name says."""
        holder = self._holders.get(sender)
        asked_ms = None if holder is None else holder.asked.pop((level, number), None)
        if self.size is None or (level is Level.CHUNK and not self._names):
            return False  # for an earlier fetch of the same blob: this one cannot tell yet
        if not self._is_named(level, number, data):
            self._bar(sender)
            self._want_again(level, number)
            self.ask(now)
            raise RemoteError(f"{level.name.lower()} {number} is not what its name says")
        if holder is not None:
            holder.heard_ms, holder.strikes, holder.rests_until_ms = now, 0, 0
            if asked_ms is not None:
                self._pace(holder, now - asked_ms)
        news = self._take(level, number, data)
        if news:
            self.moved_ms = now
        self.ask(now)
        return news

    def _want_again(self, level: Level, number: int) -> None:
        have = self._have
        if have is not None and number < have.count and number not in have:
            asked = any((level, number) in h.asked for h in self._holders.values())
            if not asked and number not in self._order:
                self._want(level, number)

    def _is_named(self, level: Level, number: int, data: bytes) -> bool:
        if level is Level.PAGE:
            return number < len(self._page_ids) and page_id(data) == self._page_ids[number]
        name = self._names[number * ID_BYTES : (number + 1) * ID_BYTES]
        return len(name) == ID_BYTES and chunk_id(data) == name

    @staticmethod
    def _pace(holder: _Holder, latency_ms: int) -> None:
        if latency_ms > 2 * _LATENCY_MS:
            holder.window = max(1, holder.window // 2)
        elif latency_ms > _LATENCY_MS:
            holder.window = max(2, holder.window - 1)
        else:
            holder.window = min(ASKED_MAX, holder.window + 1)

    def _take(self, level: Level, number: int, data: bytes) -> bool:
        if level is Level.PAGE:
            is_news = number not in self._pages and not self._names
            if is_news:
                self._pages[number] = data
            if is_news and len(self._pages) == len(self._page_ids):
                self._names = b"".join(self._pages[at] for at in range(len(self._pages)))
                self._pages.clear()
                self._check_names()
            return is_news
        if self._have is None or number in self._have:
            self.repeated += 1
            return False
        self._have.add(number)
        self._missing -= 1
        self.received_bytes += len(data)
        return True

    def _check_names(self) -> None:
        assert self.size is not None
        if len(self._names) != chunk_count(self.size) * ID_BYTES:
            # The root itself is wrong, so nobody who passed it on is to blame.
            self._names = b""
            raise RemoteError("a blob whose pages do not add up")

    def opened(self, have: Bits, now: Millis) -> None:
        """The disk holds these chunks already; their names were checked."""
        self._have = have
        self._missing = have.count - have.total()
        self._opened_ms = self.moved_ms = now
        self._is_order_stale = True
        self.ask(now)

    # Asking

    def ask(self, now: Millis) -> None:
        """Fill every holder's window."""
        if self._is_order_stale and self._have is not None:
            self._sort()
        for peer, holder in self._holders.items():
            if holder.rests_until_ms > now:
                continue
            level, numbers = Level.CHUNK, self._next_chunks(holder)
            if not self._names and self.size is not None:
                level, numbers = Level.PAGE, self._next_pages(holder)
            if numbers:
                holder.asked |= {(level, number): now for number in numbers}
                self._send(peer, PieceRequest(self.root, level, tuple(numbers)))

    def _next_pages(self, holder: _Holder) -> list[int]:
        asked = self._asked(Level.PAGE)
        wanted = (n for n in range(len(self._page_ids)) if n not in self._pages and n not in asked)
        return [number for number, _ in zip(wanted, range(2 - len(holder.asked)), strict=False)]

    def _asked(self, level: Level) -> set[int]:
        """Of anybody."""
        holders = self._holders.values()
        return {number for holder in holders for at, number in holder.asked if at is level}

    def _next_chunks(self, holder: _Holder) -> list[int]:
        room = holder.window - len(holder.asked)
        if self._have is None or room < max(1, holder.window // 4):
            return []  # asked for a few at a time: a request for each would cost as many messages
        chosen: list[int] = []
        passed: list[int] = []
        while self._order and len(chosen) < room:
            number = self._order.popleft()
            if number in self._have:
                continue
            (chosen if holder.holds(number) else passed).append(number)
        self._order.extendleft(reversed(passed))
        return chosen

    def _sort(self) -> None:
        """Rarest first; chance decides among equals, so that newcomers fetch different ones."""
        assert self._have is not None
        self._is_order_stale = False
        asked = self._asked(Level.CHUNK)  # a page of the same number may still be on its way
        wanted = [n for n in range(self._have.count) if n not in self._have and n not in asked]
        maps = [holder.have for holder in self._holders.values() if holder.have is not None]
        counts = {number: sum(number in have for have in maps) for number in wanted} if maps else {}
        mixed = self._dice.shuffled(wanted)
        self._order = deque(sorted(mixed, key=lambda number: counts.get(number, 0)))
