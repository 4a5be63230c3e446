"""Links between simulated peers: delay, loss, duplicates, reordering, splits; bytes counted."""

import random
from collections.abc import Iterable
from dataclasses import dataclass

from protocol.ids import PeerId

# Connections share a link packet by packet, so what fits a few packets does not wait for a megabyte
# to somebody else: only for what a modem has in its buffer.
SMALL_BYTES = 4_096
BUFFER_MS = 100.0

# Ethernet, IP and TCP headers, and ZeroMQ's CURVE framing, of one small message.
FRAME_OVERHEAD_BYTES = 101


@dataclass(frozen=True, slots=True)
class Link:
    """How a message fares on its way. Rates in bytes per millisecond (0: no limit).

    A message between two links takes the mean of their delays, jitters and chances; rates are
    queues, one at each end.
    """

    delay_ms: float = 20.0
    jitter_ms: float = 10.0  # up to so much is added to the delay
    loss: float = 0.0
    duplicate: float = 0.0
    up_bytes_per_ms: float = 0.0
    down_bytes_per_ms: float = 0.0


def between(one: Link, other: Link) -> Link:
    """The way from one to the other."""
    if one is other:
        return one
    return Link(
        (one.delay_ms + other.delay_ms) / 2,
        (one.jitter_ms + other.jitter_ms) / 2,
        (one.loss + other.loss) / 2,
        (one.duplicate + other.duplicate) / 2,
        one.up_bytes_per_ms,
        other.down_bytes_per_ms,
    )


class Network:
    """Decides when, and how often, a message arrives. `link` is everybody's that has no own."""

    def __init__(self, link: Link, chance: random.Random) -> None:
        self.link = link
        self.own_links: dict[PeerId, Link] = {}
        self._chance = chance
        self._sides: dict[PeerId, int] = {}
        self._up_free: dict[PeerId, float] = {}
        self._down_free: dict[PeerId, float] = {}
        self.sent_bytes: dict[PeerId, int] = {}
        self.received_bytes: dict[PeerId, int] = {}
        self.messages = 0

    def link_of(self, peer: PeerId) -> Link:
        return self.own_links.get(peer, self.link)

    def split(self, side: Iterable[PeerId]) -> None:
        """Cut these off from all others; earlier cuts stay."""
        number = 1 + max(self._sides.values(), default=0)
        for peer in side:
            self._sides[peer] = number

    def heal(self) -> None:
        self._sides.clear()

    def joined(self, one: PeerId, other: PeerId) -> bool:
        return self._sides.get(one, 0) == self._sides.get(other, 0)

    def arrivals(self, sender: PeerId, to: PeerId, size: int, now_ms: float) -> list[float]:
        """When copies of a message of `size` bytes arrive: none, one or two times."""
        chance = self._chance
        way = between(self.link_of(sender), self.link_of(to)) if self.own_links else self.link
        size += FRAME_OVERHEAD_BYTES
        self.messages += 1
        self.sent_bytes[sender] = self.sent_bytes.get(sender, 0) + size
        if not self.joined(sender, to) or (way.loss and chance.random() < way.loss):
            return []
        left = self._pass(self._up_free, sender, size, way.up_bytes_per_ms, now_ms)
        copies = 2 if way.duplicate and chance.random() < way.duplicate else 1
        times = []
        for _ in range(copies):
            arrives = left + way.delay_ms + way.jitter_ms * chance.random()
            times.append(self._pass(self._down_free, to, size, way.down_bytes_per_ms, arrives))
            self.received_bytes[to] = self.received_bytes.get(to, 0) + size
        return times

    @staticmethod
    def _pass(
        free: dict[PeerId, float], peer: PeerId, size: int, rate: float, now_ms: float
    ) -> float:
        """When the last byte is through a queue of this rate."""
        if not rate:
            return now_ms
        starts = max(now_ms, free.get(peer, 0.0))
        free[peer] = starts + size / rate
        if size <= SMALL_BYTES:
            starts = min(starts, now_ms + BUFFER_MS)
        return starts + size / rate
