"""A replica that differs from the others' (a flipped bit, a bad disk): find where, and mend it.

Members agree on a digest of the state each round. Whoever differs sends the names of its chunks to
one that agrees with most, which answers with those chunks that are not the same, while both stand
at the same place. An update never moves damage from one element to another, so what was damaged in
one round is the same few chunks in the next, and a try that came too late is made again there.
"""

from typing import Any, Final

from protocol.core import Core
from protocol.effects import Patch, Rebuild, ServeMend, TakeChecks
from protocol.entries import Entry
from protocol.errors import RemoteError
from protocol.events import ChecksTaken, Patched
from protocol.ids import Hash, PeerId
from protocol.messages import Mend, MendRequest

CHECK_BYTES: Final = 8  # of a chunk's name: a chance, not a foe, is what is looked for
_TRIES: Final = 5
_WITNESSES: Final = 2  # members that must agree with each other before we believe them
_DIFFERING_MAX: Final = 32  # chunks; more than that is no flipped bit
_STATES_KEPT: Final = 64

Place = tuple[int, Hash]


class Mending:
    def __init__(self, core: Core) -> None:
        self._core = core
        self._states: dict[Place, int] = {}  # our state digests
        self._claims: dict[Place, tuple[Entry, tuple[PeerId, ...]]] = {}  # say what they should be
        self._donors: tuple[PeerId, ...] = ()  # stood on the state that most share
        self._is_damaged = False
        self._is_patched = False  # and the next entry will say whether that was all
        self._tries = 0
        self._asked: tuple[Place, PeerId] | None = None
        self._stands: Place | None = None

    def claim(self, entry: Entry, seats: tuple[PeerId, ...]) -> None:
        """It says on what state its contributions stood; `seats` are its round's members."""
        place = entry.round, entry.body.parent
        self._claims[place] = entry, seats
        _trim(self._claims)
        self._compare(place)

    def _compare(self, place: Place) -> None:
        """P1, checked: most of a round's contributors stood on this state, and so must we."""
        if place not in self._states or place not in self._claims:
            return
        mine, (entry, seats) = self._states[place], self._claims[place]
        if mine == entry.body.state:
            self._agrees()
            return
        self._core.note(
            "error",
            "digest-mismatch",
            round=place[0],
            mine=f"{mine:016x}",
            theirs=f"{entry.body.state:016x}",
        )
        self._differs(entry, seats)

    def _differs(self, entry: Entry, seats: tuple[PeerId, ...]) -> None:
        """Our state at the opening of `entry`'s round was not the one that its lines stood on."""
        me = self._core.me
        lines = entry.body.lines
        self._donors = tuple(seats[line.seat] for line in lines if seats[line.seat] != me)
        self._is_damaged, self._is_patched = True, False
        self._tries += 1
        if len(self._donors) < _WITNESSES:
            # One against one: nobody can say who is right, but the ledger can.
            self._start_over("one other member's state differs from ours")
        elif self._tries > _TRIES:
            self._start_over("the state could not be repaired")
        elif self._stands is not None:
            self._begin(self._stands)

    def _agrees(self) -> None:
        """Our state is the one that most stand on."""
        self._is_damaged = self._is_patched = False
        self._tries, self._asked = 0, None

    def stands(self, place: Place, state: int) -> None:
        """The state came to a new place, with this digest."""
        self._states[place] = state
        _trim(self._states)
        self._stands = place
        if self._is_damaged and not self._is_patched:
            self._begin(place)
        self._compare(place)

    def _begin(self, place: Place) -> None:
        if place == (self._core.head.round, self._core.head.hash):
            self._core.out.append(TakeChecks(*place))

    def taken(self, event: ChecksTaken) -> None:
        core = self._core
        if not self._is_damaged or not self._donors:
            return
        down = core.membership.down()
        up = [peer for peer in self._donors if peer not in down and core.can_fetch_from(peer)]
        donor = core.dice.pick(up or self._donors)[0]
        self._asked = ((event.round, event.parent), donor)
        core.send(donor, MendRequest(event.round, event.parent, event.checks))

    def on_request(self, sender: PeerId, message: MendRequest) -> None:
        core = self._core
        if len(message.checks) % CHECK_BYTES:
            raise RemoteError("checks that are not 8 bytes each")
        if message.round > core.head.round + 1 or message.round + 1 < core.head.round:
            return  # it will ask again from where it stands then
        if sender in core.head.roster and core.may_answer(sender) and not self._is_damaged:
            core.out.append(ServeMend(sender, message.round, message.parent, message.checks))

    def on_mend(self, sender: PeerId, message: Mend) -> None:
        place = message.round, message.parent
        if self._asked != (place, sender) or not self._is_damaged:
            return  # it came too late
        self._asked = None
        if len({number for number, _ in message.chunks}) != len(message.chunks):
            raise RemoteError("a chunk twice")
        if message.differing > _DIFFERING_MAX:
            self._start_over(f"{message.differing} chunks of the state differ")
            return
        self._core.out.append(Patch(message.round, message.parent, message.chunks))

    def patched(self, event: Patched) -> None:
        if self._is_patched and not event.tensors:
            return  # the same damage was seen in two rounds, and looked into twice
        self._is_patched = True
        self._core.note(
            "error",
            "repaired",
            round=event.round,
            tensors=", ".join(event.tensors) or "none: what follows from them was wrong",
            bytes=event.bytes,
        )

    def _start_over(self, why: str) -> None:
        core = self._core
        self._agrees()
        # The ledger decides. A claim that it does not bear out, of an entry that was left perhaps,
        # must not make us start over again and again.
        self._claims.clear()
        core.out.append(
            Rebuild(core.head.round, core.head.hash, switched=False, from_scratch=True, reason=why)
        )


def _trim(table: dict[Place, Any]) -> None:
    while len(table) > _STATES_KEPT:
        del table[next(iter(table))]
