"""Who sums which part in one round, and what one peer knows of how far parts have come."""

from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, field

from protocol.blobs import Bits
from protocol.codec import decode_attachments, encode_attachments
from protocol.entries import Attachment
from protocol.ids import Hash, Millis, PeerId
from protocol.ledger import Mark, round_key
from protocol.messages import Contribute, Part


@dataclass(frozen=True, slots=True)
class PartKept:
    """The record of a part on disk: who said so once still knows it after a restart (P3)."""

    round: int
    parent: Hash
    author: PeerId
    number: int
    whole: Attachment
    part: Attachment

    @property
    def key(self) -> bytes:
        return dealt_key(self.round, self.parent, self.author, self.number)

    @property
    def value(self) -> bytes:
        return encode_attachments((self.whole, self.part))


def dealt_key(round: int, parent: Hash, author: PeerId, number: int) -> bytes:
    """By round."""
    return round_key(round) + parent + author + number.to_bytes(2, "big")


def read_dealt(key: bytes, raw: bytes) -> PartKept:
    whole, part = decode_attachments(raw)
    round, number = int.from_bytes(key[:8], "big"), int.from_bytes(key[72:], "big")
    return PartKept(round, Hash(key[8:40]), PeerId(key[40:72]), number, whole, part)


@dataclass(slots=True)
class Own:
    """Our own contribution, part by part."""

    message: Contribute
    parts: tuple[Attachment, ...]
    offered: list[list[PeerId]] = field(default_factory=list)  # to whom each went, in order
    sent_ms: list[int] = field(default_factory=list)  # when it was offered last
    moved_ms: list[int] = field(default_factory=list)  # or first to this one, or asked for
    still: list[int] = field(default_factory=list)  # that nobody else has on disk, ascending

    def __post_init__(self) -> None:
        self.sent_ms = [0 for _ in self.parts]
        self.begin_again()

    def begin_again(self) -> None:
        """Whoever has a part says so once more, and fetches nothing."""
        self.still = list(range(len(self.parts)))
        self.offered = [[] for _ in self.parts]
        self.moved_ms = [0 for _ in self.parts]

    def is_kept(self, number: int) -> None:
        """By somebody else."""
        if number in self.still:
            self.still.remove(number)

    def is_unheard(self, number: int) -> bool:
        """Has nobody asked for it since it was offered?"""
        return self.moved_ms[number] <= self.sent_ms[number]

    def asked_for(self, root: Hash, now: Millis) -> None:
        for number, part in enumerate(self.parts):
            if part.root == root:
                self.moved_ms[number] = now


@dataclass(slots=True)
class Deal:
    mark: Mark  # the round's place, and its members
    ranked: tuple[PeerId, ...]
    count: int  # parts of each contribution
    due_ms: int  # when contributions should be in
    wholes: dict[PeerId, Attachment] = field(default_factory=dict)  # as contributions name them
    parts: dict[tuple[PeerId, int], Attachment] = field(default_factory=dict)  # that belong there
    unproved: dict[tuple[PeerId, int], Part] = field(default_factory=dict)  # whole not known yet
    held: dict[int, set[PeerId]] = field(default_factory=dict)  # on our disk: whose, by number
    covered: dict[PeerId, set[int]] = field(default_factory=dict)  # on disks of others than its own
    told: dict[int, dict[PeerId, bytes]] = field(default_factory=dict)  # of each number, by whom
    waiting: dict[PeerId, Callable[[], None]] = field(default_factory=dict)
    mine: Own | None = None
    is_news: bool = False  # something came that the collectors were not told of
    told_ms: int = 0

    @property
    def place(self) -> tuple[int, bytes]:
        """As messages name the round: its number, and the tip before it."""
        return self.mark.round, self.mark.hash[:8]

    def order(self, number: int) -> tuple[PeerId, ...]:
        """Who sums a part: the first of these that can."""
        at = number % len(self.ranked)
        return self.ranked[at:] + self.ranked[:at]

    def hold(self, author: PeerId, number: int, me: PeerId) -> None:
        self.held.setdefault(number, set()).add(author)
        if author != me:
            self.covered.setdefault(author, set()).add(number)
        self.is_news = True

    def holds(self, author: PeerId, number: int) -> bool:
        return author in self.held.get(number, ())

    def seats_held(self, number: int) -> bytes:
        """As a map."""
        bits = Bits(len(self.mark.roster))
        for author in self.held.get(number, ()):
            seat = self.mark.roster.seat(author)
            if seat is not None:
                bits.add(seat)
        return bits.encode()

    def hear(self, holder: PeerId, number: int, seats: Bits) -> None:
        """`holder` has these on disk; its own word for its own parts does not count."""
        members = self.mark.roster.members
        for seat in seats:
            if members[seat] != holder:
                self.covered.setdefault(members[seat], set()).add(number)

    def has_holder(self, author: PeerId, number: int, gone: Set[PeerId]) -> bool:
        """Is this part here, or with somebody who is not gone, as its author is?"""
        seat = self.mark.roster.seat(author)
        if seat is None or self.holds(author, number):
            return seat is not None
        size, told = len(self.mark.roster), self.told.get(number, {})
        return any(by not in gone and seat in Bits(size, raw) for by, raw in told.items())

    def forget(self, author: PeerId) -> list[int]:
        """What it handed over, and to whom. Returns of which parts we know."""
        known = [number for by, number in self.parts if by == author]
        for number in known:
            del self.parts[author, number]
            self.held.get(number, set()).discard(author)
        return known

    def is_covered(self, author: PeerId) -> bool:
        return len(self.covered.get(author, ())) == self.count

    def has_all(self, authors: Iterable[PeerId]) -> bool:
        """Of the parts that this peer sums, as far as it was offered any."""
        wanted = set(authors)
        return all(found >= wanted for found in self.held.values())
