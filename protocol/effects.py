"""What a peer can ask for: effects, to be performed in the order given. What `Save` asks for is on
disk before the next effect is touched.
"""

from dataclasses import dataclass
from enum import Enum

from protocol.entries import Attachment, Card, Entry
from protocol.events import (
    Crew,
)
from protocol.ids import Hash, PeerId
from protocol.ledger import Write
from protocol.messages import (
    DialledBack,
    Echoed,
    Level,
    Locator,
    Message,
    Sum,
)
from protocol.parts import SumName
from protocol.snapshots import SnapshotAt


@dataclass(frozen=True, slots=True)
class Send:
    to: tuple[bytes, ...]
    message: Message


@dataclass(frozen=True, slots=True)
class Save:
    writes: tuple[Write, ...]


@dataclass(frozen=True, slots=True)
class Connect:
    """Let this peer in, and remember where it can be dialled."""

    card: Card


@dataclass(frozen=True, slots=True)
class Disconnect:
    peer: PeerId


@dataclass(frozen=True, slots=True)
class StartWork:
    """Work for `round`, which opens after `parent`; once its window is over, answer with
    `WorkDone`.
    """

    round: int
    parent: Hash
    seats: tuple[PeerId, ...]
    heldout: bool  # measure the held-out loss too
    late_ms: int = 0  # others began so much earlier: the window is shorter by it


@dataclass(frozen=True, slots=True)
class Apply:
    """Merge an entry into the replicated state, stop work on its round, answer with `Applied`."""

    entry: Entry
    seats: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class Rebuild:
    """Bring the replicated state to the chain's head from what is on disk; answer with `Applied`.

    If the chain `switched`, our own contributions that it does not list are given back then.
    """

    round: int
    parent: Hash
    switched: bool
    from_scratch: bool  # what is on disk beside the ledger is not to be trusted
    reason: str


@dataclass(frozen=True, slots=True)
class StopWork:
    """Answer with `WorkDone` now, with what there is."""


@dataclass(frozen=True, slots=True)
class GiveBack:
    """Our own contribution to `round` missed it: offer what it holds again, if not committed."""

    round: int
    payload: bytes
    attached: Attachment | None = None


@dataclass(frozen=True, slots=True)
class ServeEntries:
    """Send `Entries` from disk: those that follow the first locator which is on our chain, as many
    as fit a frame.
    """

    to: PeerId
    locators: tuple[Locator, ...]


@dataclass(frozen=True, slots=True)
class OfferBlob:
    """Send `BlobOffer` for what the disk has of a blob; nothing if it has none."""

    to: PeerId
    root: Hash


@dataclass(frozen=True, slots=True)
class OfferSum:
    """Send `message`, if its blob is still on the disk."""

    to: PeerId
    message: Sum


@dataclass(frozen=True, slots=True)
class ServePieces:
    """Send each as a `Piece`, or `PieceRefused`, within this machine's caps."""

    to: PeerId
    root: Hash
    level: Level
    numbers: tuple[int, ...]


class BlobKind(Enum):
    """What a blob is for: where it is kept, and until when."""

    SNAPSHOT = "snapshot"
    ATTACHMENT = "attachment"


@dataclass(frozen=True, slots=True)
class OpenBlob:
    """Make room for a blob, keep what is there of it, answer with `BlobOpened`."""

    root: Hash
    size: int
    chunk_ids: bytes
    kind: BlobKind


@dataclass(frozen=True, slots=True)
class StorePiece:
    """Write down a chunk whose name was checked."""

    root: Hash
    number: int
    data: bytes


@dataclass(frozen=True, slots=True)
class KeepBlob:
    """All chunks of an attachment of `round` are here: force them onto the disk, answer with
    `BlobKept`.
    """

    root: Hash
    round: int


@dataclass(frozen=True, slots=True)
class AddUp:
    """Sum one part over an entry's lines, put that on disk, answer with `Summed`."""

    name: SumName
    entry: Entry
    seats: tuple[PeerId, ...]
    parts: tuple[Attachment, ...]  # of those lines that attach something, all on disk
    is_first: bool  # before all other members it is ours to do


@dataclass(frozen=True, slots=True)
class Members:
    """Those of the round that is open are others now."""

    members: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class OpenExchange:
    """All peers of a meeting are there."""

    session: Hash
    number: int
    crew: Crew


@dataclass(frozen=True, slots=True)
class OfferStretch:
    """Answer with `Offered`."""

    session: Hash
    stretch: int


@dataclass(frozen=True, slots=True)
class TakeStretch:
    """What others offer of a stretch: none, if they only receive. Answer with `Prepared`; if we do
    not decide, only once all that a move by it takes is on the disk.
    """

    session: Hash
    stretch: int
    offers: tuple[tuple[PeerId, bytes], ...]
    decider: PeerId


@dataclass(frozen=True, slots=True)
class MoveStretch:
    """It counts. Move by it, put that on the disk, answer with `Moved`. If it is we who decided,
    `others` have to hear of it, and the disk has to know that.
    """

    session: Hash
    stretch: int
    others: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class CloseExchange:
    """A meeting is over, or never began. Of what was prepared, only those in `doubts` may still
    count.
    """

    crew: Crew
    number: int
    session: Hash | None  # None: it never began
    is_whole: bool
    doubts: bytes  # a map
    reason: str
    ahead: int  # the highest number of an exchange that others are at, as far as we know


@dataclass(frozen=True, slots=True)
class DropDoubts:
    """What was in doubt in that session, and was not moved by, does not count."""

    session: Hash
    reason: str


@dataclass(frozen=True, slots=True)
class ForgetDecision:
    """Everybody knows it."""

    session: Hash


@dataclass(frozen=True, slots=True)
class TakeModel:
    """Put our model on the disk, answer with `ModelTaken`."""

    to: PeerId
    sequence: int


@dataclass(frozen=True, slots=True)
class ModelFetched:
    """It is on the disk, kept like an attachment of that round; None: it did not come."""

    peer: PeerId
    sequence: int
    round: int
    model: Attachment | None
    tokens: int
    number: int
    heldout: float | None
    reason: str


Gossip = (
    Members
    | OpenExchange
    | OfferStretch
    | TakeStretch
    | MoveStretch
    | CloseExchange
    | DropDoubts
    | ForgetDecision
    | TakeModel
    | ModelFetched
)
"""What a peer that gossips asks of whoever holds its model."""


@dataclass(frozen=True, slots=True)
class Proceed:
    """What `Behind` said to be lacking is here: go on along the chain."""


@dataclass(frozen=True, slots=True)
class DropBlob:
    """No more of this blob will come; what is there may be wanted again later."""

    root: Hash


@dataclass(frozen=True, slots=True)
class Hold:
    """Stop bringing the state forward entry by entry: a snapshot will be here sooner."""


@dataclass(frozen=True, slots=True)
class Restore:
    """The snapshot's blob is whole: load it, then go on to the chain's head; answer with
    `Applied`.
    """

    snapshot: SnapshotAt


@dataclass(frozen=True, slots=True)
class TakeChecks:
    """Answer with `ChecksTaken`, if the state still stands there."""

    round: int
    parent: Hash


@dataclass(frozen=True, slots=True)
class ServeMend:
    """Send `Mend` with the chunks that differ from `checks`, if the state stands at that place or
    soon comes to it.
    """

    to: PeerId
    round: int
    parent: Hash
    checks: bytes


@dataclass(frozen=True, slots=True)
class Patch:
    """Put these chunks in the state's place, if it still stands there; answer with `Patched` and
    `Applied`.
    """

    round: int
    parent: Hash
    chunks: tuple[tuple[int, bytes], ...]


@dataclass(frozen=True, slots=True)
class TryDial:
    """Open a fresh connection to each address of this card, and say with `Dialled` what worked."""

    to: PeerId
    sequence: int
    card: Card


@dataclass(frozen=True, slots=True)
class EchoBack:
    """Send `Echoed` with the time of day and so many bytes."""

    to: PeerId
    sequence: int
    want: int


@dataclass(frozen=True, slots=True)
class Answer:
    """To what `Ask` asked."""

    source: PeerId
    message: DialledBack | Echoed


@dataclass(frozen=True, slots=True)
class Note:
    """Something that a person or a metric should know."""

    level: str  # debug, info, warning, error
    event: str
    fields: dict[str, object]


@dataclass(frozen=True, slots=True)
class Halt:
    """This peer cannot or should not go on."""

    reason: str
    clean: bool


Effect = (
    Send
    | Save
    | Connect
    | Disconnect
    | StartWork
    | Apply
    | Rebuild
    | StopWork
    | GiveBack
    | ServeEntries
    | OfferBlob
    | OfferSum
    | ServePieces
    | OpenBlob
    | StorePiece
    | KeepBlob
    | AddUp
    | Proceed
    | DropBlob
    | Hold
    | Restore
    | TakeChecks
    | ServeMend
    | Patch
    | TryDial
    | EchoBack
    | Answer
    | Note
    | Halt
    | Gossip
)
