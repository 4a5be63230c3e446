"""How much of what is costly to answer one source gets: some at once, then so much a second.

A request for entries is a hundred bytes and its answer a megabyte; whoever repeats it must not be
able to fill our uplink. Memory is bounded: the longest quiet are forgotten, and start afresh.
"""

from dataclasses import dataclass, field
from typing import Final

from protocol.ids import Millis

SOURCES_MAX: Final = 4_096


@dataclass(slots=True)
class Ration:
    """`burst` answers at once to each source, then one every `every_ms`."""

    burst: int
    every_ms: int
    # When the bucket is full again, by source. Least recently served first.
    _full_at_ms: dict[bytes, int] = field(default_factory=dict)

    def take(self, source: bytes, now: Millis) -> bool:
        full_at = max(now, self._full_at_ms.pop(source, 0))
        granted = full_at - now <= (self.burst - 1) * self.every_ms
        self._full_at_ms[source] = full_at + self.every_ms if granted else full_at
        while len(self._full_at_ms) > SOURCES_MAX:
            del self._full_at_ms[next(iter(self._full_at_ms))]
        return granted


@dataclass(slots=True)
class ByteBucket:
    """So many bytes a second; unused, they add up to `burst_ms` worth."""

    bytes_per_s: int
    burst_ms: int
    _full_at_ms: int = 0  # when all that may be saved up is there again

    def has_room(self, size: int, now: Millis) -> bool:
        if not self.bytes_per_s:
            return False
        return max(now, self._full_at_ms) + self._ms(size) <= now + self.burst_ms

    def take(self, size: int, now: Millis) -> None:
        self._full_at_ms = max(now, self._full_at_ms) + self._ms(size)

    def _ms(self, size: int) -> int:
        return -(-size * 1_000 // self.bytes_per_s)


@dataclass(slots=True)
class ByteRations:
    """A bucket for each source. Memory is bounded: the longest quiet start afresh."""

    bytes_per_s: int
    burst_ms: int
    _buckets: dict[bytes, ByteBucket] = field(default_factory=dict)

    def of(self, source: bytes) -> ByteBucket:
        bucket = self._buckets.pop(source, None) or ByteBucket(self.bytes_per_s, self.burst_ms)
        self._buckets[source] = bucket
        while len(self._buckets) > SOURCES_MAX:
            del self._buckets[next(iter(self._buckets))]
        return bucket
