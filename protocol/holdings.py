"""What a peer must have on disk before it accepts or merges an entry, and what waits for that.

It is either all that the entry's lines attach, or, where parts of those are summed, the sums. With
`quorum = "majority"` everybody has it before it accepts the entry, and everybody before the state
moves on.
"""

from collections.abc import Callable, Set
from dataclasses import replace

from protocol.attachments import Attachments
from protocol.core import Core
from protocol.effects import Proceed
from protocol.entries import Entry
from protocol.events import Behind
from protocol.gathering import Gathering
from protocol.ids import Hash, Millis, PeerId
from protocol.scattering import Scattering


class Holdings:
    """`lost` is called when the state cannot move on, because nobody sends what it needs."""

    def __init__(
        self,
        core: Core,
        attachments: Attachments,
        scattering: Scattering,
        gathering: Gathering,
        lost: Callable[[Behind], None],
    ) -> None:
        self._core, self._attachments = core, attachments
        self._scattering, self._gathering, self._lost = scattering, gathering, lost
        self._stopped: Behind | None = None  # where the state stands, and what for
        self._stopped_ms = Millis(0)

    @property
    def wake_ms(self) -> Millis | None:
        """When what the state waits for is given up, if nothing comes."""
        return None if self._stopped is None else Millis(self._moved_ms() + self._patience_ms)

    @property
    def _patience_ms(self) -> int:
        return self._core.rules.deadline_ceiling_ms

    def _moved_ms(self) -> int:
        event = self._stopped
        assert event is not None
        roots: list[Hash] = [one.root for one in event.lacking]
        roots += self._gathering.roots(event.lacking_sums)
        return max([self._stopped_ms, *map(self._attachments.moved_ms, roots)])

    # Entries

    def holds(self, entry: Entry, members: int) -> bool:
        if self._scattering.is_on:
            return self._gathering.holds(self._gathering.names(entry, members))
        return self._attachments.holds(entry.body.attachments)

    def want(self, entry: Entry, seats: tuple[PeerId, ...], done: Callable[[], None]) -> None:
        """`done` is called once all is on disk, which may be at once, or never. `seats`: the
        members of the entry's round.
        """
        if self._scattering.is_on:
            self._gathering.want(entry, seats, done)
            return
        holders = [seats[line.seat] for line in entry.body.lines if line.attached is not None]
        holders.append(seats[entry.body.closer])
        self._attachments.want(entry.body.attachments, entry.round, holders, done)

    def is_within_reach(self, author: PeerId, gone: Set[PeerId]) -> bool:
        """Without these, could others still merge what it contributed to the open round?"""
        return self._scattering.is_within_reach(author, gone)

    def want_left(self, entry: Entry, seats: tuple[PeerId, ...], done: Callable[[], None]) -> None:
        """The same of an entry that was left because none of it came."""
        if self._scattering.is_on:
            self._gathering.want(entry, seats, done)
        else:
            self._attachments.want(entry.body.attachments, self._core.head.round, (), done)

    def need(self, entry: Entry, seats: tuple[PeerId, ...]) -> None:
        """The state is about to merge this entry."""
        if self._scattering.is_on:
            self._gathering.need(entry, seats)
            return
        for line in entry.body.lines:
            if line.attached is not None:
                sure = seats[line.seat], seats[entry.body.closer]
                self._attachments.need(line.attached, entry.round, sure)

    def moved(self) -> None:
        """The chain did."""
        self._attachments.moved()
        self._gathering.moved()

    # The state

    def behind(self, event: Behind) -> None:
        """The state moves, or stands still for lack of something."""
        if not event.lacking and not event.lacking_sums:
            if self._stopped is not None and event.round > self._stopped.round:
                self._stopped = None
            return
        if self._stopped is None or self._stopped.round != event.round:
            self._stopped_ms = self._core.now
        self._stopped = event
        for one in event.lacking:
            self._attachments.is_missing(one.root)
            self._attachments.need(one, event.round, ())
        self._gathering.lacking(event.lacking_sums, event.round)

    def stands(self, round: int) -> None:
        """The state came to where `round` is open: it needs nothing older."""
        if self._stopped is not None and self._stopped.round < round:
            self._stopped = None
        self._attachments.stands(round)
        self._gathering.stands(round)

    def start_over(self) -> None:
        """The state is being rebuilt: it will say what it lacks."""
        self._attachments.start_over()
        self._gathering.start_over()
        self._stopped = None

    def tick(self) -> None:
        event = self._stopped
        if event is None:
            return
        if self._is_here(event):
            self._stopped = None
            self._core.out.append(Proceed())
            return
        still = self._gathering.missing(event.lacking_sums)
        if still != event.lacking_sums:
            self._stopped = replace(event, lacking_sums=still)
            self._stopped_ms = self._core.now
        if self._core.now >= self._moved_ms() + self._patience_ms:
            self._stopped = None
            self._lost(event)

    def _is_here(self, event: Behind) -> bool:
        sums = self._gathering.holds(event.lacking_sums)
        return sums and self._attachments.holds(event.lacking)
