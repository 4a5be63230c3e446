"""Who holds on to whom: the members with addresses that come after a peer on a ring of hashes."""

from bisect import bisect_left
from collections.abc import Iterator
from functools import lru_cache

from protocol.core import Core
from protocol.ids import PeerId, RunId, digest
from protocol.roster import Roster


@lru_cache(maxsize=8_192)
def anchor_places(run: RunId, peer: PeerId) -> tuple[bytes, ...]:
    """Where a peer stands on the ring of anchors: at eight places, to share the work evenly. What
    it looks for others from is the first one.
    """
    places = digest("anchor", run, peer)
    return tuple(places[at : at + 4] for at in range(0, len(places), 4))


class Ring:
    """Made anew when members or cards change."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._roster: Roster | None = None
        self._version = -1
        self._places: list[tuple[bytes, PeerId]] = []

    def anchors(self, hidden: PeerId, count: int) -> Iterator[PeerId]:
        """Members with addresses that are up, in the order in which `hidden` holds on to them."""
        core, ring = self._core, self._all()
        first = bisect_left(ring, (anchor_places(core.run, hidden)[0], b""))
        passed = {hidden, *core.membership.down()}
        for at in range(len(ring)):
            anchor = ring[(first + at) % len(ring)][1]
            if anchor in passed:
                continue
            yield anchor
            passed.add(anchor)
            count -= 1
            if not count:
                return

    def _all(self) -> list[tuple[bytes, PeerId]]:
        core, roster = self._core, self._core.head.roster
        if roster is not self._roster or self._version != core.cards_version:
            self._roster, self._version = roster, core.cards_version
            listening = [peer for peer in roster.members if core.can_be_dialled(peer)]
            places = ((p, peer) for peer in listening for p in anchor_places(core.run, peer))
            self._places = sorted(places)
        return self._places
