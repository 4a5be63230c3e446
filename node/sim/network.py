"""Links between simulated peers: delay, loss, duplicates, reordering, rates; bytes counted."""

import random
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from node.sim.reach import Reach
from protocol.ids import PeerId

# Connections share a link packet by packet, so what fits a few packets does not wait for a megabyte
# to somebody else: only for what a modem has in its buffer.
SMALL_BYTES = 4_096
BUFFER_MS = 100.0

# A heavy tail is log-normal with sigma 1: of a hundred messages one waits ten times the median.
TAIL_MAX = 50.0

# Ethernet, IP and TCP headers, and ZeroMQ's CURVE framing, of one small message.
FRAME_OVERHEAD_BYTES = 101


@dataclass(frozen=True, slots=True, eq=False)
class Link:
    """How a message fares on its way. Rates in bytes per millisecond (0: no limit).

    A message between two links takes the mean of their delays, jitters and chances; rates are
    queues, one at each end.
    """

    delay_ms: float = 20.0
    jitter_ms: float = 10.0  # up to so much is added to the delay
    heavy_tail: bool = False  # half of all messages wait longer than `jitter_ms`, a few far longer
    loss: float = 0.0
    duplicate: float = 0.0
    up_bytes_per_ms: float = 0.0
    down_bytes_per_ms: float = 0.0
    nat: bool = False  # cannot be dialled: reached only over connections that it opened itself

    def late_ms(self, chance: random.Random) -> float:
        """What chance adds to the delay of one message."""
        if self.heavy_tail:
            return self.jitter_ms * min(TAIL_MAX, chance.lognormvariate(0.0, 1.0))
        return self.jitter_ms * chance.random()


@lru_cache(maxsize=1024)
def between(one: Link, other: Link) -> Link:
    """The way from one to the other."""
    if one is other:
        return one
    return Link(
        (one.delay_ms + other.delay_ms) / 2,
        (one.jitter_ms + other.jitter_ms) / 2,
        one.heavy_tail or other.heavy_tail,
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
        self.reach = Reach(lambda peer: self.link_of(peer).nat)
        self._up_free: dict[PeerId, float] = {}
        self._down_busy: dict[PeerId, list[tuple[float, float]]] = {}  # from when to when, in order
        self.sent_bytes: dict[PeerId, int] = {}
        self.received_bytes: dict[PeerId, int] = {}
        self.messages = 0

    def link_of(self, peer: PeerId) -> Link:
        return self.own_links.get(peer, self.link)

    def split(self, side: Iterable[PeerId]) -> None:
        """Cut these off from all others; earlier cuts stay."""
        self.reach.split(side)

    def cut(self, senders: Iterable[PeerId], receivers: Iterable[PeerId]) -> None:
        """What these send to those is lost; the other way stays open."""
        self.reach.cut(senders, receivers)

    def heal(self) -> None:
        self.reach.heal()

    def joined(self, one: PeerId, other: PeerId) -> bool:
        """Can the two talk to each other, without a third?"""
        return self.reach.joined(one, other)

    def arrivals(self, sender: PeerId, to: PeerId, size: int, now_ms: float) -> list[float]:
        """When copies of a message of `size` bytes arrive: none, one or two times."""
        chance = self._chance
        way = between(self.link_of(sender), self.link_of(to)) if self.own_links else self.link
        size += FRAME_OVERHEAD_BYTES
        self.messages += 1
        self.sent_bytes[sender] = self.sent_bytes.get(sender, 0) + size
        if not self.reach.passes(sender, to) or (way.loss and chance.random() < way.loss):
            return []
        left = self._pass(self._up_free, sender, size, way.up_bytes_per_ms, now_ms)
        copies = 2 if way.duplicate and chance.random() < way.duplicate else 1
        times = []
        for _ in range(copies):
            arrives = left + way.delay_ms + way.late_ms(chance)
            times.append(self._arrive(to, size, way.down_bytes_per_ms, arrives, now_ms))
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

    def _arrive(self, to: PeerId, size: int, rate: float, at_ms: float, now_ms: float) -> float:
        """When the last byte is through the receiver's queue, if the first gets there at `at_ms`.

        A slow sender's message may be booked long before it gets there. Until then the line is
        free for others: each message takes the time that those booked before it leave.
        """
        if not rate:
            return at_ms
        busy = self._down_busy.setdefault(to, [])
        while busy and busy[0][1] <= now_ms:
            del busy[0]
        first = bisect_left(busy, at_ms, key=lambda booked: booked[1])
        last, starts, ends, left = first, at_ms, at_ms, size / rate
        while last < len(busy) and busy[last][0] < ends + left:
            left -= max(0.0, busy[last][0] - ends)
            starts, ends = min(starts, busy[last][0]), busy[last][1]
            last += 1
        busy[first:last] = [(starts, ends + left)]
        if size <= SMALL_BYTES:
            return min(ends + left, at_ms + BUFFER_MS + size / rate)
        return ends + left
