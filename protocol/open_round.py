"""The open round, as one peer knows it: what it holds, what it promised, whether it leads."""

from collections.abc import Set
from dataclasses import dataclass, field

from protocol.core import Core
from protocol.entries import Entry, Line
from protocol.ids import Hash, Millis, PeerId
from protocol.ledger import Mark
from protocol.messages import Contribute, Promise


@dataclass(slots=True)
class Held:
    line: Line
    state: int
    signature: bytes


@dataclass(slots=True)
class Lead:
    """Our own attempt to close the round."""

    ballot: int
    until_ms: int  # promises are waited for until then
    promises: dict[PeerId, Promise] = field(default_factory=dict)
    chosen: Entry | None = None  # once there are enough of them
    entry: Entry | None = None  # once proposed, when all that it lists is here
    accepts: set[PeerId] = field(default_factory=set)
    # Who gave no sign of life: nothing that we spread may depend on them to pass it on.
    quiet: Set[PeerId] = frozenset()


@dataclass(slots=True)
class OpenRound:
    mark: Mark
    opened_ms: Millis  # for the others, should we have come to it late
    deadline_ms: Millis  # on our clock
    # Members that were down or only just let in when it opened: they cannot have worked a whole
    # window, so nobody waits for them. What they send in time is listed all the same.
    excused: frozenset[PeerId] = frozenset()
    called_ms: Millis | None = None  # when we asked everybody for a sign of life
    silent: set[PeerId] | None = None  # who had given none when that began to count
    held: dict[PeerId, Held] = field(default_factory=dict)
    awaited: set[PeerId] = field(default_factory=set)  # whose attachment is on its way
    mine: Contribute | None = None
    sent_to: set[PeerId] = field(default_factory=set)
    hurry_ms: int = 0  # by how much turns come sooner than our clock says: others' are further
    next_ballot: int = 1
    next_turn: tuple[tuple[int, int], int] = ((-1, 0), 0)  # (next_ballot, hurry_ms), its turn
    tried_ballot: int = -1  # a ballot is led once: two values under one ballot would break the vote
    promised: int = 0
    accepted: tuple[int, Entry] | None = None
    passed_on: tuple[int, Hash] | None = None  # the newest proposal that went down its tree
    awaited_entry: tuple[int, Hash] | None = None  # the newest proposal whose attachments come
    lead: Lead | None = None


@dataclass(slots=True)
class Vote:
    """What this peer bound itself to in a round, from the disk: it must not say otherwise after a
    crash.
    """

    promised: int = 0
    accepted: tuple[int, Entry] | None = None


def silence_counts_ms(core: Core, round: OpenRound) -> int:
    """From when on nobody waits for those who did not answer the roll call."""
    return 0 if round.called_ms is None else round.called_ms + core.rules.ping_timeout_ms


def silent(core: Core, round: OpenRound) -> set[PeerId]:
    """Who gave no sign of life since the roll call, once that counts."""
    called_ms = round.called_ms
    if called_ms is None or core.now < silence_counts_ms(core, round):
        return set()
    if round.silent is None:  # looked up once among all; only those can be silent still
        round.silent = set(core.membership.unheard_since(called_ms, core.head.roster.members))
    return set(core.membership.unheard_since(called_ms, round.silent))
