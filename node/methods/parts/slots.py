"""Which sample does a probe see? Every slot of the data goes to exactly one (round, peer, probe).

A slot is the number of one training batch, counted on and on through the epochs. The queue of slots
is known to all from the ledger: first the leftovers, then everything from the frontier on. In a
round with M seats, probe j of seat m looks at the slot in place j * M + m of the queue. So no two
peers see the same batch, nobody must ask anybody, and a peer can go on for as long as its window
lasts.

After a merge the consumed slots leave the queue. Slots below the last consumed place that nobody
consumed, because their seat was slower or its work missed the round, stay at the front and come
first in the next round.

The queue is a handful of ranges. A stranger who claims probes far apart could make many: past
`RANGES_MAX` the ranges furthest back are forgotten, which skips some samples and harms nothing
else.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

RANGES_MAX = 1 << 16

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Consumed:
    """The probes of one seat that a round merged: indices first .. first + count - 1."""

    seat: int
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class SlotQueue:
    """`leftover` holds half-open ranges (start, end), ascending and apart, all below `frontier`."""

    frontier: int = 0
    leftover: tuple[tuple[int, int], ...] = ()

    def slot(self, seat: int, seats: int, probe: int) -> int:
        """The slot of a seat's probe."""
        place = probe * seats + seat
        for start, end in self.leftover:
            if place < end - start:
                return start + place
            place -= end - start
        return self.frontier + place

    def slots(self, seat: int, seats: int, first: int, count: int) -> Ints:
        """The slots of `count` consecutive probes; one look-up for a whole round."""
        places = np.arange(first, first + count, dtype=np.int64) * seats + seat
        return self._at(places)

    def consume(self, seats: int, consumed: Sequence[Consumed]) -> "SlotQueue":
        """The queue after a round. No two entries of `consumed` may name the same probe."""
        consumed = [c for c in consumed if c.count]
        if not consumed:
            return self
        places = max((c.first + c.count - 1) * seats + c.seat for c in consumed) + 1
        kept = np.ones(places, dtype=np.bool_)
        for c in consumed:
            assert 0 <= c.seat < seats
            start = c.first * seats + c.seat
            kept[start : start + c.count * seats : seats] = False
        return self._without(kept)

    def _without(self, kept: npt.NDArray[np.bool_]) -> "SlotQueue":
        """Drop the places at the front of the queue where `kept` is false; move the frontier past
        the last place.
        """
        waiting = self._size()
        beyond = max(0, len(kept) - waiting)
        passed = self._at(np.flatnonzero(kept))
        untouched = self._at(np.arange(len(kept), waiting, dtype=np.int64))
        ranges = _ranges(np.concatenate([passed, untouched]))
        return SlotQueue(self.frontier + beyond, ranges[:RANGES_MAX])

    def _size(self) -> int:
        return sum(end - start for start, end in self.leftover)

    def _at(self, places: Ints) -> Ints:
        """The slots in `places` of the queue."""
        starts = np.array([s for s, _ in self.leftover] + [self.frontier], dtype=np.int64)
        sizes = np.array([0] + [e - s for s, e in self.leftover], dtype=np.int64)
        before = np.cumsum(sizes)  # places before each range
        which = np.searchsorted(before, places, side="right") - 1
        return starts[which] + (places - before[which])

    def tensor(self) -> Tensor:
        """Replicated state: (1 + ranges, 2) int64, the frontier in the first row."""
        rows = [(self.frontier, 0), *self.leftover]
        return torch.tensor(rows, dtype=torch.int64)

    @staticmethod
    def from_tensor(rows: Tensor) -> "SlotQueue":
        """Raises ValueError for anything that `tensor` cannot have written."""
        if rows.dtype != torch.int64 or rows.dim() != 2 or rows.shape[1] != 2 or not len(rows):
            raise ValueError("a slot queue is an int64 tensor of pairs")
        values = rows.tolist()
        (frontier, zero), ranges = values[0], values[1:]
        at = -1
        for start, end in ranges:
            if not at < start < end:
                raise ValueError("slot ranges are not ascending and apart")
            at = end
        if zero or at > frontier or frontier < 0 or len(ranges) > RANGES_MAX:
            raise ValueError("slot queue is out of bounds")
        return SlotQueue(frontier, tuple((s, e) for s, e in ranges))


def _ranges(slots: Ints) -> tuple[tuple[int, int], ...]:
    """Ascending numbers as half-open ranges."""
    if not len(slots):
        return ()
    breaks = np.flatnonzero(np.diff(slots) != 1)
    starts = slots[np.concatenate([[0], breaks + 1])]
    ends = slots[np.concatenate([breaks, [len(slots) - 1]])] + 1
    return tuple(zip(starts.tolist(), ends.tolist(), strict=True))
