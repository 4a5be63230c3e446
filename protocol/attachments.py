"""What of contributions is too large for the ledger: which of it is on disk, and which is wanted.

What is fetched is offered on, so an author's uplink carries its attachment a few times, however
many need it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from protocol.core import Core
from protocol.effects import BlobKind, KeepBlob
from protocol.entries import Attachment
from protocol.events import BlobKept
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
    def __init__(self, core: Core, transfers: Transfers) -> None:
        self._core, self._transfers = core, transfers
        # On disk, and the newest round of each, as the disk knows it; some may be gone again.
        self._held: dict[Hash, int] = {}
        self._coming: dict[Hash, int] = {}  # and the round that it was last wanted for
        self._needed: dict[Hash, int] = {}  # those that the state waits for, or soon will
        self._waits: list[_Wait] = []

    # What is here

    def hold(self, root: Hash, round: int = 0) -> None:
        """It is on disk."""
        self._held[root] = max(round, self._held.pop(root, 0))
        if len(self._held) > _HELD_MAX:
            del self._held[next(iter(self._held))]

    def holds(self, attached: Iterable[Attachment]) -> bool:
        return all(one.root in self._held for one in attached)

    def is_coming(self, root: Hash) -> bool:
        return root in self._coming

    def is_missing(self, root: Hash) -> None:
        """We may have thought that it was here; the disk knows better."""
        self._held.pop(root, None)

    def moved_ms(self, root: Hash) -> Millis:
        """When something last came of it, if it is on its way."""
        fetch = self._transfers.get(root)
        return Millis(0) if fetch is None or not fetch.is_open else fetch.moved_ms

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

    # What is wanted

    def want(
        self,
        attached: Iterable[Attachment],
        round: int,
        holders: Iterable[PeerId],
        done: Callable[[], None],
        *,
        is_needed: bool = False,
    ) -> None:
        """`done` is called once all are on disk, which may be at once, or never: that of a round
        long past is given up, unless the state needs it.
        """
        missing = {one.root: one for one in attached if self._held.get(one.root, -1) < round}
        if not missing:
            done()
            return
        sure = tuple(holders)
        self._waits.append(_Wait(round, sure, missing, done))
        for one in missing.values():
            if is_needed:
                self._needed[one.root] = round
            self._fetch(one, round, sure)

    def need(self, one: Attachment, round: int, holders: Iterable[PeerId]) -> None:
        """The state is about to merge it."""
        if self._held.get(one.root, -1) < round:
            self._needed[one.root] = round
            self._fetch(one, round, holders)

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

    def unneeded(self, root: Hash) -> None:
        """It was not what it was taken for."""
        self._needed.pop(root, None)
        self._waits = [wait for wait in self._waits if root not in wait.missing]
        if self._coming.pop(root, None) is not None:
            self._transfers.cancel(root)

    def moved(self) -> None:
        """The chain did: what came too late for the round before the last is not worth its way."""
        oldest = self._core.head.round - 1
        self._waits = [
            wait
            for wait in self._waits
            if wait.round >= oldest or not self._needed.keys().isdisjoint(wait.missing)
        ]
        self._cancel_unwanted()

    def _cancel_unwanted(self) -> None:
        oldest = self._core.head.round - 1
        for root in [root for root, round in self._coming.items() if round < oldest]:
            if root not in self._needed:
                del self._coming[root]
                self._transfers.cancel(root)

    def stands(self, round: int) -> None:
        """The state came to where `round` is open: it needs nothing older."""
        self._needed = {root: at for root, at in self._needed.items() if at >= round}
        self._cancel_unwanted()

    def start_over(self) -> None:
        """The state is being rebuilt: it will say what it lacks."""
        self._needed.clear()
