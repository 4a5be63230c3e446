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
