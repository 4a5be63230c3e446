"""Who holds on to whom: the members with addresses that come after a peer on a ring of hashes.

Where members with addresses are few, those that were members count too, after them: if the last one
that can be dialled leaves and returns, the others cannot let it in before they reach each other.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from functools import lru_cache

from protocol.core import Core
from protocol.ids import PeerId, RunId, digest
from protocol.roster import Roster

_Places = list[tuple[bytes, PeerId]]


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
        self._members: _Places = []
        self._former: _Places = []

    def anchors(self, hidden: PeerId, count: int) -> Iterator[PeerId]:
        """Members with addresses that are up, in the order in which `hidden` holds on to them; if
        they are fewer, then former ones.
        """
        core = self._core
        place = anchor_places(core.run, hidden)[0], b""
        passed = {hidden, *core.membership.down()}
        for ring in self._rings():
            first = bisect_left(ring, place)
            for at in range(len(ring)):
                anchor = ring[(first + at) % len(ring)][1]
                if anchor in passed:
                    continue
                yield anchor
                passed.add(anchor)
                count -= 1
                if not count:
                    return

    def _rings(self) -> tuple[_Places, _Places]:
        core, roster = self._core, self._core.head.roster
        if roster is not self._roster or self._version != core.cards_version:
            self._roster, self._version = roster, core.cards_version
            self._members, self._former = self._ring(roster.members), self._ring(roster.alumni)
        return self._members, self._former

    def _ring(self, peers: Iterable[PeerId]) -> _Places:
        core = self._core
        listening = [peer for peer in peers if core.can_be_dialled(peer)]
        return sorted((p, peer) for peer in listening for p in anchor_places(core.run, peer))
