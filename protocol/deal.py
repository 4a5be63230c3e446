"""Who sums which part in one round, and what one peer knows of how far parts have come."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from protocol.blobs import Bits
from protocol.entries import Attachment
from protocol.ids import Hash, Millis, PeerId
from protocol.ledger import Mark
from protocol.messages import Contribute, Part


@dataclass(slots=True)
class Own:
    """Our own contribution, part by part."""

    message: Contribute
    parts: tuple[Attachment, ...]
    offered: list[list[PeerId]] = field(default_factory=list)  # to whom each went, in order
    sent_ms: list[int] = field(default_factory=list)  # when it was offered last
    moved_ms: list[int] = field(default_factory=list)  # or first to this one, or asked for
    kept: set[int] = field(default_factory=set)  # that somebody else has on disk

    def __post_init__(self) -> None:
        self.offered = [[] for _ in self.parts]
        self.sent_ms = [0 for _ in self.parts]
        self.moved_ms = [0 for _ in self.parts]

    def begin_again(self) -> None:
        """Whoever has a part says so once more, and fetches nothing."""
        self.kept.clear()
        for number in range(len(self.parts)):
            self.offered[number].clear()
            self.moved_ms[number] = 0

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
    told: dict[tuple[PeerId, int], bytes] = field(default_factory=dict)  # by whom, of which number
    waiting: dict[PeerId, Callable[[], None]] = field(default_factory=dict)
    mine: Own | None = None
    is_news: bool = False  # something came that the collectors were not told of
    told_ms: int = 0

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

    def is_covered(self, author: PeerId) -> bool:
        return len(self.covered.get(author, ())) == self.count

    def has_all(self, authors: Iterable[PeerId]) -> bool:
        """Of the parts that this peer sums, as far as it was offered any."""
        return all(found.issuperset(authors) for found in self.held.values())
