"""Every number that the machine uses, in one place, validated: the same on all peers of a run."""

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Final

from protocol.errors import LocalError


class Quorum(StrEnum):
    """When an entry counts (P5)."""

    ANY = "any"  # once its closer has signed it; cut-off halves fork and heal
    MAJORITY = "majority"  # once most of the round's members have accepted it; a minority waits


@dataclass(frozen=True, slots=True)
class Rules:
    """The agreed constants of a run. Times are in milliseconds."""

    quorum: Quorum = Quorum.ANY

    window_ms: int = 5_000
    """How long a peer works for one round. Longer windows cost less traffic and learn from staler
    weights.
    """

    deadline_floor_ms: int = 500
    """The least time past the window that a closer grants. Below the slowest link's round trip,
    good work is late.
    """

    deadline_ceiling_ms: int = 30_000
    """The most time past the window that a closer grants, and what it grants before it has seen any
    arrivals.
    """

    deadline_mads: int = 4
    """A round's deadline is the median of past arrivals plus this many median absolute deviations.
    """

    takeover_ms: int = 250
    """The least time between one deputy's turn and the next. Below a round trip, deputies talk over
    each other.
    """

    ping_interval_ms: int = 1_000
    ping_timeout_ms: int = 500
    indirect_pings: int = 3
    suspicion_intervals: int = 12
    """A suspect that stays silent is dead after this many ping intervals, times log10 of the
    members (at least 1).
    """

    sync_interval_ms: int = 10_000
    """How often a peer compares its whole view with one other's, dead ones included (how halves
    meet again).
    """

    collectors: int = 3
    """How many peers hear a contribution at once: the closer and its deputies."""

    fanout: int = 8
    """How many peers one peer sends a closed round to. Eight or fewer others hear it from the
    closer itself.
    """

    heldout_every: int = 10
    """Every so many rounds one member, chosen by rank, measures the held-out loss."""

    snapshot_every: int = 50
    """Every so many rounds all peers put the replicated state on disk, as chunks that newcomers
    fetch from many.
    """

    members_max: int = 4_096
    payload_bytes_max: int = 65_536
    attachment_bytes_max: int = 0
    """What a contribution may bring beside its payload, as a blob that peers fetch from each
    other; 0: nothing.
    """
    parts_max: int = 0
    """Into how many parts an attachment is cut, at most, each of which one member sums for all; 0:
    everybody fetches every attachment.
    """
    joins_per_entry_max: int = 256
    locators_max: int = 64

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "quorum":
                continue
            least = _LEAST.get(field.name, 1)
            if not isinstance(value, int) or not least <= value <= _MOST[field.name]:
                raise LocalError(
                    f"rules.{field.name} must be {least} to {_MOST[field.name]}, not {value!r}"
                )
        if self.deadline_floor_ms > self.deadline_ceiling_ms:
            raise LocalError("rules.deadline_floor_ms is above rules.deadline_ceiling_ms")

    def parts(self, members: int) -> int:
        """Of each attachment, in a round of so many members."""
        return min(self.parts_max, members)


_DAY_MS: Final = 86_400_000
_LEAST: Final = {"attachment_bytes_max": 0, "parts_max": 0}  # of all others: 1
_MOST: Final = {
    "window_ms": _DAY_MS,
    "deadline_floor_ms": _DAY_MS,
    "deadline_ceiling_ms": _DAY_MS,
    "deadline_mads": 100,
    "takeover_ms": 3_600_000,
    "ping_interval_ms": 600_000,
    "ping_timeout_ms": 600_000,
    "indirect_pings": 16,
    "suspicion_intervals": 1_000,
    "sync_interval_ms": _DAY_MS,
    "collectors": 16,
    "fanout": 64,
    "heldout_every": 1_000_000,
    "snapshot_every": 1_000_000,
    "members_max": 65_536,
    "payload_bytes_max": 1 << 20,
    "attachment_bytes_max": 64 << 30,
    "parts_max": 1_024,
    "joins_per_entry_max": 4_096,
    "locators_max": 256,
}

# How patient the failure detector is: one machine, one building, the internet.
PRESETS: Final[dict[str, dict[str, int]]] = {
    "local": {"ping_interval_ms": 1_000, "ping_timeout_ms": 400, "takeover_ms": 200},
    "lan": {"ping_interval_ms": 1_000, "ping_timeout_ms": 500, "takeover_ms": 250},
    "wan": {"ping_interval_ms": 3_000, "ping_timeout_ms": 1_500, "takeover_ms": 1_000},
}
