"""What every method promises: bytes out, bytes in, and a state that is the same on every peer.

A method never sees the network. It works on its own machine, hands over a payload, and later merges
the payloads that the ledger lists for a round. What it merges must come out identical, to the bit,
on every peer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, ClassVar, Final, Protocol, Self, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class RoundContext:
    """One round, as one peer sees it."""

    run: bytes  # the run id, 32 bytes
    round: int
    peer: bytes  # this peer's own id, 32 bytes
    seats: tuple[bytes, ...]  # the round's members, sorted; a peer's seat is its index in here
    expired: Callable[
        [], bool
    ]  # true once work must end: the window is over, or the round closed without us
    parts: int = 0  # in which attachments go on their way, to be summed; 0: whole
    answers_for: int | None = None  # the part whose sum is this peer's before all others'


@dataclass(frozen=True, slots=True)
class Contribution:
    """One line of a closed round."""

    peer: bytes
    payload: bytes
    attachment: bytes = b""


@dataclass(frozen=True, slots=True)
class WorkResult:
    """What a round's work came to.

    The payload rides in the ledger, so it is small, and says how much work there is. What is larger
    goes into the attachment, which peers fetch from each other.
    """

    payload: bytes
    loss: float | None  # mean training loss seen while working; None when it was not measured
    attachment: bytes = b""
    parts: tuple[bytes, ...] = ()  # instead, as many as the round wants; at least a byte each


@dataclass(frozen=True, slots=True)
class Attaches:
    """What contributions to a run bring beside their payload."""

    bytes_max: int = 0
    parts_max: int = 0  # see `MethodTable.parts_max`


NOTHING_ATTACHED: Final = Attaches()


class MethodTable(Protocol):
    """What a run's settings tell of a method before a model is loaded, or without one."""

    unit_of_work: ClassVar[str]  # what payloads are weighed in, in the plural
    gossips: ClassVar[bool]  # its peers have no rounds and no state in common
    sums: ClassVar[bool]  # the method is `Summing`: what is attached may be summed part by part

    def weigh(self, payload: bytes) -> int:
        """Units of work in a payload (at least 1). Raises ValueError for bytes that the method
        cannot merge.
        """
        ...

    def attachment_bytes_max(self, shapes: Sequence[Sequence[int]]) -> int:
        """What a contribution brings beside its payload, at most; 0: nothing. `shapes`: of each
        trainable parameter.
        """
        ...

    def parts_max(self, shapes: Sequence[Sequence[int]]) -> int:
        """Into how many parts that is cut at most, each summed by one peer for all; 0: everybody
        gets everybody's.
        """
        ...

    @property
    def ledger_bytes(self) -> int | None:
        """Of a usual round's payload; None when most of a contribution is attached to it."""
        ...

    @property
    def overlaps(self) -> bool:
        """Work goes on while a round is exchanged."""
        ...

    @property
    def takes_gradients(self) -> bool:
        """A gradient of all that is trained lies in memory."""
        ...

    def cautions(self) -> Sequence[str]:
        """Settings that are allowed and known to disappoint, a sentence each, with its source."""
        ...


class GoesOn(Enum):
    """Who has handed in a round's work goes on, for the next round..."""

    NEVER = auto()
    WHEN_OVERDUE = auto()  # ... because the round takes longer than rounds should
    AT_ONCE = auto()  # ... while the round is exchanged, and that time is part of the next window


@runtime_checkable
class Tunable(Protocol):
    """Of a method's settings that can be compared with those of other methods: what a comparison
    turns, whatever a method calls it. Each `with_` gives changed settings.
    """

    rates: ClassVar[tuple[str, ...]]
    """Rates of everyone's update that are worth trying, ascending; none: only its own settings."""
    from_scratch: ClassVar[bool]
    """It can train a model that knows nothing yet."""

    @property
    def batches_a_round(self) -> int | None:
        """Micro-batches that each peer looks at in a round; None: as many as the window allows."""
        ...

    def with_steps(self, steps: int) -> Self:
        """Exactly so many inner steps a round, where the method leaves a choice."""
        ...

    def with_rounds(self, rounds: int) -> Self:
        """What falls in the course of a run reaches its end after so many rounds."""
        ...

    def with_rate(self, rate: str) -> Self:
        """Everyone's update at this rate, in every round."""
        ...


@runtime_checkable
class Overtime(Protocol):
    """Of a method that can go on before the round is closed."""

    @property
    def goes_on(self) -> GoesOn: ...

    def overtime(self, round: RoundContext) -> None:
        """The round's work was handed in, and the state has not moved since: go on until
        `round.expired()`. What comes of it is offered with the next round's. May be called several
        times for one round.
        """
        ...


@runtime_checkable
class Summing(Protocol):
    """Of a method that merges sums of what is attached, so that no peer needs all of anyone's."""

    def add_up(
        self, round: RoundContext, number: int, contributions: Sequence[Contribution]
    ) -> bytes:
        """What the parts of this number come to, the same bytes on every peer; each contribution
        has that part as its attachment. One that cannot be read counts for nothing.
        """
        ...

    def check_sum(self, round: RoundContext, number: int, data: bytes) -> None:
        """Raises ValueError for what `add_up` would not have written."""
        ...

    def merge_sums(
        self, round: RoundContext, contributions: Sequence[Contribution], sums: Sequence[bytes]
    ) -> None:
        """As `merge`, of all sums, checked. Only our own contribution has its attachment, if it is
        still here, all of it.
        """
        ...


class Method(Protocol):
    def work(self, round: RoundContext) -> WorkResult:
        """Compute until `round.expired()` (or the configured amount is done); touches no replicated
        state.
        """
        ...

    def merge(self, round: RoundContext, contributions: Sequence[Contribution]) -> None:
        """The replicated update. `contributions` come sorted by peer; all passed `weigh` and
        `check` before.
        """
        ...

    def give_back(self, round: int, payload: bytes, attachment: bytes = b"") -> None:
        """Our own contribution to `round` missed it: offer what it holds again.

        What a merge has shown to be committed since is not offered twice.
        """
        ...

    def settled(self, round: int, payload: bytes, attachment: bytes = b"") -> None:
        """Our own payload was committed in `round`, whose merge is part of the loaded state. Its
        attachment is empty when it is not on disk any more.
        """
        ...

    def weigh(self, payload: bytes) -> int:
        """Units of work in a payload (at least 1). Raises ValueError for bytes that this method
        cannot merge.
        """
        ...

    def check(self, round: int, payload: bytes, attachment: bytes) -> None:
        """Raises ValueError for an attachment that this method cannot merge with that payload in
        that round: it leaves the contribution out, on every peer alike.
        """
        ...

    def state_digest(self, key: int) -> int:
        """A keyed hash of the replicated state, modulo 2**64."""
        ...

    def replicated_state(self) -> "Mapping[str, Tensor]":
        """Everything a peer needs to go on from this round: live tensors, not copies."""
        ...

    def load_replicated_state(self, state: "Mapping[str, Tensor]") -> None: ...

    def local_state(self) -> "Mapping[str, Tensor]": ...

    def load_local_state(self, state: "Mapping[str, Tensor]") -> None: ...
