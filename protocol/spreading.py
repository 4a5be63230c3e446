"""Whose news is still to be told, the least told first. Telling costs the same however many there
are: when half of a thousand members vanish, there is news of five hundred.
"""

import heapq
from typing import Final

from protocol.ids import PeerId

_SLACK: Final = 64


class Spreading:
    def __init__(self) -> None:
        self._times: dict[PeerId, int] = {}  # how often each was told
        self._queue: list[tuple[int, PeerId]] = []  # a heap; what does not agree above is old

    def __bool__(self) -> bool:
        return bool(self._times)

    def add(self, peer: PeerId) -> None:
        """There is something new of `peer`."""
        self._times[peer] = 0
        heapq.heappush(self._queue, (0, peer))
        if len(self._queue) > 4 * len(self._times) + _SLACK:
            self._queue = [(times, peer) for peer, times in self._times.items()]
            heapq.heapify(self._queue)

    def discard(self, peer: PeerId) -> None:
        self._times.pop(peer, None)

    def take(self, count: int, limit: int) -> list[PeerId]:
        """At most `count`, each told once more by this; what was told `limit` times is old news."""
        taken: dict[PeerId, None] = {}
        while self._queue and len(taken) < count:
            times, peer = heapq.heappop(self._queue)
            if self._times.get(peer) == times:
                taken[peer] = None
        for peer in taken:
            self._times[peer] += 1
            if self._times[peer] >= limit:
                del self._times[peer]
            else:
                heapq.heappush(self._queue, (self._times[peer], peer))
        return list(taken)
