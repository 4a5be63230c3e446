"""What can happen to a peer. What it asks for is in `effects`."""

from dataclasses import dataclass

from protocol.entries import Attachment, Card, Token
from protocol.ids import Hash, PeerId
from protocol.messages import (
    DialBack,
    Echo,
    Way,
)
from protocol.parts import SumName
from protocol.snapshots import SnapshotAt

# Events


@dataclass(frozen=True, slots=True)
class Started:
    """The first event: the process is up and its state is rebuilt as far as the disk knows it."""

    card: Card
    cards: tuple[Card, ...]  # everybody whose address is known, from the disk or from a welcome
    token: Token | None  # to join with, if we are no member yet
    sponsor: PeerId | None = None  # who let us in: the one member that surely knows us by now


@dataclass(frozen=True, slots=True)
class Received:
    source: bytes  # a PeerId that the transport has authenticated, or a guest's handle
    data: bytes
    wall_s: int  # Unix time: only invites' dates are measured against it


@dataclass(frozen=True, slots=True)
class Tick:
    """`wake_ms` has come."""


@dataclass(frozen=True, slots=True)
class WorkDone:
    round: int
    parent: Hash
    state: int  # digest of the replicated state that was worked on
    payload: bytes
    loss: float | None
    heldout: float | None
    snapshot: Hash | None = None  # root of the snapshot whose turn it is, if it is ready
    attached: Attachment | None = None  # on disk already
    parts: tuple[Attachment, ...] = ()  # that it is made of, where parts are summed


@dataclass(frozen=True, slots=True)
class Applied:
    """The replicated state now stands at the place on the chain where `round` is open."""

    round: int
    parent: Hash
    state: int


@dataclass(frozen=True, slots=True)
class StopAsked:
    """Leave in good order."""


@dataclass(frozen=True, slots=True)
class MoveAsked:
    """Our own addresses changed."""

    card: Card


@dataclass(frozen=True, slots=True)
class Ask:
    """Put a question to a member; what comes back is an `Answer`."""

    to: PeerId
    message: DialBack | Echo


@dataclass(frozen=True, slots=True)
class Dialled:
    """What came of `TryDial`."""

    to: PeerId
    sequence: int
    ways: tuple[Way, ...]


@dataclass(frozen=True, slots=True)
class Behind:
    """The replicated state stands at `round`, being brought to `target` entry by entry."""

    round: int
    target: int
    ms_per_round: float | None  # measured lately; None: not yet
    snapshots: tuple[SnapshotAt, ...]  # that the chain names and that are ahead, best first
    # Of the next entry: not on disk, answer with `Proceed`.
    lacking: tuple[Attachment, ...] = ()
    lacking_sums: tuple[SumName, ...] = ()


@dataclass(frozen=True, slots=True)
class BlobOpened:
    """The disk is ready for a blob's chunks and holds these of them already (a map, as in `Bits`);
    their names were checked.
    """

    root: Hash
    have: bytes


@dataclass(frozen=True, slots=True)
class BlobKept:
    """For `KeepBlob`: it is on disk for good, or not all of it is here any more."""

    root: Hash
    is_here: bool


@dataclass(frozen=True, slots=True)
class Summed:
    """For `AddUp`: the sum, on disk; None when a part is not there any more."""

    name: SumName
    sum: Attachment | None


@dataclass(frozen=True, slots=True)
class SumRefused:
    """A sum that was fetched is none. `round`: of its entry."""

    name: SumName
    round: int


@dataclass(frozen=True, slots=True)
class ChecksTaken:
    """For `TakeChecks`: the first 8 bytes of each name of the state's chunks, at that place."""

    round: int
    parent: Hash
    checks: bytes


@dataclass(frozen=True, slots=True)
class Patched:
    """For `Patch`: what differed."""

    round: int
    parent: Hash
    tensors: tuple[str, ...]
    bytes: int


@dataclass(frozen=True, slots=True)
class Crew:
    """A meeting that a peer comes to."""

    peers: tuple[PeerId, ...]  # in the meeting's order, us among them
    is_directed: bool = False  # the first sends to the second, who sends nothing
    is_asked: bool = False  # the first asks, and the second does not know of it yet


@dataclass(frozen=True, slots=True)
class Offering:
    """How large what is exchanged is, the same for all peers of a run."""

    view: bytes  # of the members that meetings are drawn from
    stretches: int  # 1 or more
    stretch_bytes_max: int


@dataclass(frozen=True, slots=True)
class MeetAsked:
    """We have come to the exchange `number`; none before had this number or a higher one. Each of
    its meetings is answered with `CloseExchange`, by itself.
    """

    number: int
    crews: tuple[Crew, ...]
    offering: Offering
    wait_ms: int  # how long others may let us wait, before and during it


@dataclass(frozen=True, slots=True)
class MeetsAnyone:
    """From now on others may ask us for an exchange; None: not any more."""

    offering: Offering | None
    wait_ms: int = 0


@dataclass(frozen=True, slots=True)
class Offered:
    """For `OfferStretch`."""

    session: Hash
    stretch: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Prepared:
    """For `TakeStretch`: we can move by it whenever we are told to, also after a crash; or what
    `spoiler` sent is nothing that an honest peer sends.
    """

    session: Hash
    stretch: int
    spoiler: PeerId | None = None


@dataclass(frozen=True, slots=True)
class Moved:
    """For `MoveStretch`: done, and on the disk."""

    session: Hash
    stretch: int


@dataclass(frozen=True, slots=True)
class Decision:
    """Of our own making: these stretches count. Others may not know it yet."""

    session: Hash
    stretches: bytes  # a map
    others: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class Doubt:
    """These stretches are prepared, and only `decider` knows whether they count."""

    session: Hash
    stretches: bytes  # a map
    decider: PeerId


@dataclass(frozen=True, slots=True)
class Recalled:
    """What the disk knows of earlier exchanges. Comes before the first `MeetAsked`."""

    decisions: tuple[Decision, ...]
    doubts: tuple[Doubt, ...]


@dataclass(frozen=True, slots=True)
class ModelWanted:
    """Ask `peer`, or ourselves, for its model as it is now; answered with `ModelFetched`."""

    peer: PeerId
    sequence: int  # of our own questions
    size: int  # bytes that it must have


@dataclass(frozen=True, slots=True)
class ModelTaken:
    """For `TakeModel`: on the disk, or there is none to give yet."""

    to: PeerId
    sequence: int
    model: Attachment | None
    tokens: int
    number: int
    heldout: float | None


Event = (
    Started
    | Received
    | Tick
    | WorkDone
    | Applied
    | StopAsked
    | MoveAsked
    | Behind
    | BlobOpened
    | BlobKept
    | Summed
    | SumRefused
    | MeetAsked
    | MeetsAnyone
    | Offered
    | Prepared
    | Moved
    | Recalled
    | ModelWanted
    | ModelTaken
    | ChecksTaken
    | Patched
    | Ask
    | Dialled
)
