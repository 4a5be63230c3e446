"""One frozen dataclass a message. What each means and when it is sent is in README.md; the bytes
are in `codec`.
"""

from dataclasses import dataclass
from enum import IntEnum

from protocol.entries import Attachment, Card, Entry, Line, Token
from protocol.ids import Hash, PeerId


@dataclass(frozen=True, slots=True)
class Head:
    """How far a peer's ledger is: enough to see who is behind, or on another branch."""

    round: int  # the round that is open, so the number of entries
    weight: int  # work committed in all entries
    tip: bytes  # the first 8 bytes of the newest entry's hash


class Health(IntEnum):
    ALIVE = 0
    SUSPECT = 1
    DEAD = 2
    LEFT = 3


@dataclass(frozen=True, slots=True)
class Rumor:
    """What one peer holds of another. A higher incarnation wins; at the same one, the worse health
    wins.
    """

    peer: PeerId
    health: Health
    incarnation: int


# Admission


@dataclass(frozen=True, slots=True)
class Hello:
    """A stranger's first words."""

    card: Card
    token: Token | None


@dataclass(frozen=True, slots=True)
class Welcome:
    """The answer to a good `Hello`."""

    manifest: bytes
    cards: tuple[Card, ...]
    head: Head


@dataclass(frozen=True, slots=True)
class Refused:
    reason: str


@dataclass(frozen=True, slots=True)
class Join:
    """Asks to be listed in the next entry; members pass it on to the round's collectors."""

    card: Card
    token: Token | None


@dataclass(frozen=True, slots=True)
class Introduce:
    """I let this peer in; let it connect to you too, it has chunks to fetch."""

    card: Card
    token: Token | None


@dataclass(frozen=True, slots=True)
class Leave:
    peer: PeerId
    round: int  # the first round that the leaver wants no part in
    signature: bytes


# Membership


@dataclass(frozen=True, slots=True)
class Ping:
    sequence: int
    head: Head
    rumors: tuple[Rumor, ...]


@dataclass(frozen=True, slots=True)
class Ack:
    sequence: int
    head: Head
    rumors: tuple[Rumor, ...]


@dataclass(frozen=True, slots=True)
class PingRequest:
    sequence: int
    target: PeerId
    rumors: tuple[Rumor, ...]


@dataclass(frozen=True, slots=True)
class Nack:
    """I asked your target and have not heard yet; but I am here."""

    sequence: int


@dataclass(frozen=True, slots=True)
class Sync:
    """Compares whole views by hash; an equal one costs no answer."""

    view: bytes  # 8 bytes
    head: Head


@dataclass(frozen=True, slots=True)
class View:
    """Everything that differs from "alive, first incarnation", and the newest cards."""

    rumors: tuple[Rumor, ...]
    cards: tuple[Card, ...]
    wants_reply: bool


# Rounds


@dataclass(frozen=True, slots=True)
class Contribute:
    round: int
    tip: bytes  # beginning of the hash of the entry before
    state: int
    payload: bytes
    loss: float | None
    heldout: float | None
    snapshot: Hash | None
    attached: Attachment | None
    signature: bytes

    def line(self, seat: int) -> Line:
        """As an entry lists it."""
        return Line(seat, self.payload, self.loss, self.heldout, self.snapshot, self.attached)


@dataclass(frozen=True, slots=True)
class Prepare:
    """A deputy takes over: is there an entry for this round, or one that may have been accepted?"""

    round: int
    tip: bytes
    ballot: int


@dataclass(frozen=True, slots=True)
class Promise:
    """None yet (or this one, accepted at that ballot); and nothing of a lower ballot will be
    accepted.
    """

    round: int
    tip: bytes
    ballot: int
    accepted_ballot: int  # 0 when there is no entry
    entry: Entry | None


@dataclass(frozen=True, slots=True)
class Propose:
    """Majority only: accept this entry."""

    ballot: int
    entry: Entry


@dataclass(frozen=True, slots=True)
class Accepted:
    round: int
    ballot: int
    entry: Hash


@dataclass(frozen=True, slots=True)
class Commit:
    """Majority only: most have accepted; apply it."""

    round: int
    ballot: int
    entry: Hash


@dataclass(frozen=True, slots=True)
class Closed:
    """An entry that counts."""

    entry: Entry


# Catching up


@dataclass(frozen=True, slots=True)
class Locator:
    round: int  # the round that was open after `entry`
    entry: Hash


@dataclass(frozen=True, slots=True)
class EntriesRequest:
    """Send what follows the first of these that you have; newest first."""

    locators: tuple[Locator, ...]


@dataclass(frozen=True, slots=True)
class Entries:
    entries: tuple[Entry, ...]
    head: Head


@dataclass(frozen=True, slots=True)
class Evidence:
    """Two seals by one closer for one round and parent."""

    closer: PeerId
    round: int
    parent: Hash
    first: Hash
    first_seal: bytes
    second: Hash
    second_seal: bytes


# Blobs (see `blobs`)


class Level(IntEnum):
    """What a piece is."""

    CHUNK = 0
    PAGE = 1  # names of chunks


@dataclass(frozen=True, slots=True)
class BlobRequest:
    """What do you have of this?"""

    root: Hash


@dataclass(frozen=True, slots=True)
class BlobOffer:
    root: Hash
    size: int
    pages: tuple[Hash, ...]
    have: bytes | None  # a map of chunks; None: all


@dataclass(frozen=True, slots=True)
class PieceRequest:
    root: Hash
    level: Level
    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    root: Hash
    level: Level
    number: int
    data: bytes


@dataclass(frozen=True, slots=True)
class PieceRefused:
    """Not here (no wait); or here, but not now."""

    root: Hash
    level: Level
    numbers: tuple[int, ...]
    wait_ms: int


# Sums


@dataclass(frozen=True, slots=True)
class Part:
    """One part of what `author` attaches to its contribution to this round, for whoever sums it."""

    round: int
    tip: bytes
    author: PeerId
    number: int
    part: Attachment
    path: tuple[Hash, ...]  # beside its way up to the attachment's root


@dataclass(frozen=True, slots=True)
class PartsHeld:
    """Whose parts of this number I have on disk."""

    round: int
    tip: bytes
    number: int
    seats: bytes  # a map, as of chunks


@dataclass(frozen=True, slots=True)
class PartRequest:
    """I sum this part of the round, and lack yours."""

    round: int
    tip: bytes
    number: int


@dataclass(frozen=True, slots=True)
class SumRequest:
    """Tell me the sums of these parts over an entry, once you have them."""

    entry: Hash
    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sum:
    entry: Hash
    number: int
    sum: Attachment


# Meetings of peers that gossip


@dataclass(frozen=True, slots=True)
class Meet:
    """I have come to this meeting; without an answer to it, nothing is sent."""

    topic: Hash  # what all of it can compute: the number, the view, the peers
    number: int  # of the exchange
    view: bytes  # the members that it was drawn from
    epoch: int  # number of the sender's card when its process began
    wants_reply: bool


class Absence(IntEnum):
    """Why a peer does not come to a meeting."""

    PAST = 0  # it is at a later one
    BUSY = 1
    OTHER_VIEW = 2  # it knows other members, and so meets others


@dataclass(frozen=True, slots=True)
class NotMeeting:
    """Do not wait for me there; `number` is of the exchange that I am at."""

    topic: Hash
    number: int
    why: Absence


@dataclass(frozen=True, slots=True)
class StretchRequest:
    """Send these frames of what you offer of a stretch, once you have it."""

    session: Hash
    stretch: int
    frames: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StretchFrame:
    session: Hash
    stretch: int
    frame: int
    frames: int  # of this offer
    data: bytes


@dataclass(frozen=True, slots=True)
class Ready:
    """All that I need of these stretches is on my disk. What became of them?"""

    session: Hash
    stretches: bytes  # a map, as of chunks


@dataclass(frozen=True, slots=True)
class Verdict:
    """These stretches count. Final: no others will."""

    session: Hash
    stretches: bytes
    is_final: bool


@dataclass(frozen=True, slots=True)
class Counted:
    """I have moved by these stretches, and it is on my disk."""

    session: Hash
    stretches: bytes


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """Put your model on your disk as it is now, and say where."""

    sequence: int


@dataclass(frozen=True, slots=True)
class ModelHeld:
    """My model; nothing while there is none."""

    sequence: int
    model: Attachment | None
    tokens: int  # that it was trained on
    number: int  # of the exchange that I am at
    heldout: float | None


# Repairs


@dataclass(frozen=True, slots=True)
class MendRequest:
    """My state at this place is damaged: `checks` holds the first 8 bytes of each chunk's name.
    Send those that differ from yours.
    """

    round: int
    parent: Hash
    checks: bytes


@dataclass(frozen=True, slots=True)
class Mend:
    """Chunks of the state at this place that differ, and how many do in all."""

    round: int
    parent: Hash
    differing: int
    chunks: tuple[tuple[int, bytes], ...]


# Reaching peers that nobody can dial


@dataclass(frozen=True, slots=True)
class Relay:
    """A frame for a member that its origin cannot reach. Goes to a third member, and from it, as it
    is, to the target: one hop, never two.
    """

    origin: PeerId
    target: PeerId
    epoch: int  # sequence number of the origin's card: higher after each start
    count: int  # rises with each relayed frame of one epoch
    frame: bytes
    signature: bytes  # the origin's


class Why(IntEnum):
    """Why a frame was not relayed."""

    NO_WAY = 0
    OVER_CAP = 1
    NO_MEMBER = 2


@dataclass(frozen=True, slots=True)
class Unrelayed:
    """I did not pass on what you sent for this target: try another relay."""

    target: PeerId
    why: Why


# Examining a peer's place in the network


@dataclass(frozen=True, slots=True)
class DialBack:
    """Try the addresses of my card, each with a fresh connection, and say what worked."""

    sequence: int


@dataclass(frozen=True, slots=True)
class Way:
    address: str
    took_ms: int | None  # None: no connection came about


@dataclass(frozen=True, slots=True)
class DialledBack:
    sequence: int
    ways: tuple[Way, ...]


@dataclass(frozen=True, slots=True)
class Echo:
    """Answer with so many bytes: measures round trips, clocks, and rates either way."""

    sequence: int
    want: int
    filler: bytes


@dataclass(frozen=True, slots=True)
class Echoed:
    sequence: int
    wall_ms: int  # Unix time when it was answered
    filler: bytes


Message = (
    Hello
    | Welcome
    | Refused
    | Join
    | Leave
    | Ping
    | Ack
    | PingRequest
    | Nack
    | Sync
    | View
    | Contribute
    | Prepare
    | Promise
    | Propose
    | Accepted
    | Commit
    | Closed
    | EntriesRequest
    | Entries
    | Evidence
    | BlobRequest
    | BlobOffer
    | PieceRequest
    | Piece
    | PieceRefused
    | MendRequest
    | Mend
    | Introduce
    | Relay
    | Unrelayed
    | DialBack
    | DialledBack
    | Echo
    | Echoed
    | Part
    | PartsHeld
    | PartRequest
    | SumRequest
    | Sum
    | Meet
    | NotMeeting
    | StretchRequest
    | StretchFrame
    | Ready
    | Verdict
    | Counted
    | ModelRequest
    | ModelHeld
)
