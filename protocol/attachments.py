"""Parts of contributions that are too large for the ledger: who needs which, and what waits for it.

A contribution names its attachment. Collectors fetch it before they list the contribution, with
`quorum = "majority"` everybody before it accepts the entry, and everybody before the state moves
on. What is fetched is offered on, so an author's uplink carries its attachment a few times, however
many need it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from protocol.core import Core
from protocol.entries import Attachment, Entry
from protocol.events import Behind, BlobKept, BlobKind, KeepBlob, Proceed
from protocol.ids import Hash, Millis, PeerId
from protocol.transfers import Transfers

_HELD_MAX: Final = 16_384


@dataclass(slots=True)
class _Wait:
    round: int
    holders: tuple[PeerId, ...]
    missing: dict[Hash, Attachment]
    done: Callable[[], None]


class Attachments:
    """`lost` is called when the state cannot move on, because nobody sends what it needs."""

    def __init__(self, core: Core, transfers: Transfers, lost: Callable[[Behind], None]) -> None:
        self._core, self._transfers, self._lost = core, transfers, lost
        # On disk, and the newest round of each, as the disk knows it; some may be gone again.
        self._held: dict[Hash, int] = {}
        self._coming: dict[Hash, int] = {}  # and the round that it was last wanted for
        self._needed: dict[Hash, int] = {}  # those that the state waits for, or soon will
        self._waits: list[_Wait] = []
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
        assert self._stopped is not None
        fetches = (self._transfers.get(one.root) for one in self._stopped.lacking)
        return max([self._stopped_ms, *(fetch.moved_ms for fetch in fetches if fetch is not None)])

    # What is here

    def hold(self, root: Hash, round: int = 0) -> None:
        """It is on disk."""
        self._held[root] = max(round, self._held.pop(root, 0))
        if len(self._held) > _HELD_MAX:
            del self._held[next(iter(self._held))]

    def holds(self, attached: Iterable[Attachment]) -> bool:
        return all(one.root in self._held for one in attached)

    def kept(self, event: BlobKept) -> None:
        root, round = event.root, self._coming.pop(event.root, 0)
        if not event.is_here:
            self._held.pop(root, None)
            self._fetch_again(root)
            return
        self.hold(root, round)
        self._needed.pop(root, None)
        for wait in self._waits:
            wait.missing.pop(root, None)
        ready = [wait for wait in self._waits if not wait.missing]
        self._waits = [wait for wait in self._waits if wait.missing]
        for wait in ready:
            wait.done()

    def _fetch_again(self, root: Hash) -> None:
        """The disk lost it, or collected it for a round long past."""
        for wait in self._waits:
            if root in wait.missing:
                self._fetch(wait.missing[root], wait.round, wait.holders)
        for one in self._stopped.lacking if self._stopped is not None else ():
            if one.root == root:
                self._fetch(one, self._needed.get(root, 0), ())

    # What is wanted

    def want(
        self,
        attached: Iterable[Attachment],
        round: int,
        holders: Iterable[PeerId],
        done: Callable[[], None],
    ) -> None:
        """`done` is called once all are on disk, which may be at once, or never."""
        missing = {one.root: one for one in attached if self._held.get(one.root, -1) < round}
        if not missing:
            done()
            return
        sure = tuple(holders)
        self._waits.append(_Wait(round, sure, missing, done))
        for one in missing.values():
            self._fetch(one, round, sure)

    def _fetch(self, one: Attachment, round: int, holders: Iterable[PeerId]) -> None:
        """Have it kept for as long as `round` may be replayed."""
        root = one.root
        is_new = root not in self._coming
        self._coming[root] = max(round, self._coming.get(root, 0))

        def keep() -> None:
            self._core.out.append(KeepBlob(root, self._coming.get(root, round)))

        if root in self._held:
            keep()  # the same bytes came for an earlier round, and may be gone with that
        elif is_new:
            self._transfers.start(root, keep, holders, BlobKind.ATTACHMENT, one.size)

    def need(self, entry: Entry, seats: tuple[PeerId, ...]) -> None:
        """The state is about to merge this entry."""
        closer = seats[entry.body.closer]
        for line in entry.body.lines:
            one = line.attached
            if one is not None and self._held.get(one.root, -1) < entry.round:
                self._needed[one.root] = entry.round
                self._fetch(one, entry.round, (seats[line.seat], closer))

    def moved(self) -> None:
        """The chain did: what came too late for the round before the last is not worth its way."""
        oldest = self._core.head.round - 1
        self._waits = [wait for wait in self._waits if wait.round >= oldest]
        self._cancel_unwanted()

    def _cancel_unwanted(self) -> None:
        oldest = self._core.head.round - 1
        for root in [root for root, round in self._coming.items() if round < oldest]:
            if root not in self._needed:
                del self._coming[root]
                self._transfers.cancel(root)

    # The state

    def behind(self, event: Behind) -> None:
        """The state moves, or stands still for lack of something."""
        if not event.lacking:
            if self._stopped is not None and event.round > self._stopped.round:
                self._stopped = None
            return
        if self._stopped is None or self._stopped.round != event.round:
            self._stopped_ms = self._core.now
        self._stopped = event
        for one in event.lacking:
            self._held.pop(one.root, None)  # we may have thought so; the disk knows better
            self._needed[one.root] = event.round
            self._fetch(one, event.round, ())

    def stands(self, round: int) -> None:
        """The state came to where `round` is open: it needs nothing older."""
        self._needed = {root: at for root, at in self._needed.items() if at >= round}
        if self._stopped is not None and self._stopped.round < round:
            self._stopped = None
        self._cancel_unwanted()

    def start_over(self) -> None:
        """The state is being rebuilt: it will say what it lacks."""
        self._needed.clear()
        self._stopped = None

    def tick(self) -> None:
        event = self._stopped
        if event is None:
            return
        if self.holds(event.lacking):
            self._stopped = None
            self._core.out.append(Proceed())
        elif self._core.now >= self._moved_ms() + self._patience_ms:
            self._stopped = None
            self._lost(event)
