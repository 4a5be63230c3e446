"""Who is a member: a value that follows from the ledger, and from nothing else.

A round's roster is fixed by the entry before it. It holds the members sorted by id (a member's
index is its *seat*), and remembers those who left, so that they may come back without an invite,
and those who lied, so that they may not.
"""

from collections.abc import Iterable
from functools import cached_property
from typing import Final

from protocol.entries import Admission, Body, Cause
from protocol.ids import Hash, PeerId, digest

LEAVE_VALID_ROUNDS: Final = 64  # a notice of leaving is listed within so many rounds, or lapses
ALUMNI_MAX: Final = 4_096
BANNED_MAX: Final = 4_096


class Roster:
    """Immutable. Equal rosters hash equal: what is computed from one is found for another."""

    __slots__ = ("__dict__", "alumni", "banned", "members", "newcomers")

    def __init__(
        self,
        members: Iterable[PeerId],
        alumni: tuple[PeerId, ...] = (),  # oldest first
        banned: tuple[PeerId, ...] = (),
        newcomers: tuple[tuple[PeerId, int], ...] = (),  # who joined lately, and its first round
    ) -> None:
        self.members: tuple[PeerId, ...] = tuple(sorted(members))
        self.alumni = alumni
        self.banned = banned
        self.newcomers = newcomers

    def __len__(self) -> int:
        return len(self.members)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Roster) and self.hash == other.hash)

    def __hash__(self) -> int:
        return hash(self.hash)

    def __contains__(self, peer: object) -> bool:
        return peer in self._seats

    @cached_property
    def _seats(self) -> dict[PeerId, int]:
        return {peer: seat for seat, peer in enumerate(self.members)}

    @cached_property
    def hash(self) -> Hash:
        return digest("roster", *map(b"".join, self._parts))

    @property
    def _parts(self) -> tuple[tuple[bytes, ...], ...]:
        newcomers = tuple(peer + first.to_bytes(8, "big") for peer, first in self.newcomers)
        return self.members, self.alumni, self.banned, newcomers

    @property
    def majority(self) -> int:
        return len(self.members) // 2 + 1

    def seat(self, peer: PeerId) -> int | None:
        return self._seats.get(peer)

    def knows(self, peer: PeerId) -> bool:
        """A member now or before: somebody whose word on an invite counts."""
        return peer in self._seats or peer in self.alumni

    def after(self, body: Body) -> "Roster":
        """The roster of the round that follows `body`."""
        if not body.admissions and not body.departures:
            return self
        gone = {self.members[departure.seat] for departure in body.departures}
        liars = {
            self.members[departure.seat]
            for departure in body.departures
            if departure.cause is Cause.EQUIVOCATED
        }
        new = [admission.card.peer for admission in body.admissions]
        oldest = body.round - LEAVE_VALID_ROUNDS
        newcomers = [(p, first) for p, first in self.newcomers if first > oldest and p not in gone]
        newcomers += [(peer, body.round + 1) for peer in new]
        alumni = [peer for peer in self.alumni if peer not in new]
        alumni += sorted(gone - liars)
        return Roster(
            [peer for peer in self.members if peer not in gone] + new,
            tuple(alumni[-ALUMNI_MAX:]),
            (*self.banned, *sorted(liars))[-BANNED_MAX:],
            tuple(newcomers),
        )

    def joined_at(self, peer: PeerId) -> int:
        """The first round of a member's present membership, as far as it matters: else 0."""
        return next((first for newcomer, first in self.newcomers if newcomer == peer), 0)

    def may_leave(self, peer: PeerId, notice: int, round: int) -> bool:
        """Does a notice that names round `notice` end a membership at `round`? Old ones lapse, and
        none outlives the membership that it was given in.
        """
        return max(self.joined_at(peer), round - LEAVE_VALID_ROUNDS + 1) <= notice

    def may_join(self, admission: Admission) -> bool:
        """By the ledger alone: signatures and dates are checked elsewhere."""
        peer = admission.card.peer
        if peer in self or peer in self.banned:
            return False
        return (
            peer in self.alumni if admission.token is None else self.knows(admission.token.minter)
        )

    def encode(self) -> bytes:
        counts = (len(part).to_bytes(4, "big") for part in self._parts)
        return b"".join(counts) + b"".join(b"".join(part) for part in self._parts)

    @classmethod
    def decode(cls, raw: bytes) -> "Roster":
        """What `encode` made; this is our own disk, not the wire."""
        counts = [int.from_bytes(raw[at : at + 4], "big") for at in (0, 4, 8, 12)]
        assert len(raw) == 16 + 32 * sum(counts[:3]) + 40 * counts[3], "a damaged roster"
        end = len(raw) - 40 * counts[3]
        peers = [PeerId(raw[at : at + 32]) for at in range(16, end, 32)]
        late = [raw[at : at + 40] for at in range(end, len(raw), 40)]
        first, second = counts[0], counts[0] + counts[1]
        return cls(
            peers[:first],
            tuple(peers[first:second]),
            tuple(peers[second:]),
            tuple((PeerId(item[:32]), int.from_bytes(item[32:], "big")) for item in late),
        )
