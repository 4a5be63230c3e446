"""Which micro-batches does a peer's inner work look at? For methods whose payloads begin with a
header.

Shared data comes from the queue of slots that the ledger determines (`parts/slots.py`): the j-th
micro-batch of a round is in place j * M + m for seat m of M, and a merge takes from the queue what
each listed payload says it consumed. Work that missed its round leaves its slots in the queue, so
somebody sees them again. Private data is each peer's own, and is gone through in its own order.

Who overlaps begins with a round's work before the round before it is merged, when nobody knows yet
what that will take. So two queues take turns: a round's slots come from its own one, which no merge
touches from two rounds before it on. However unequal the peers' pace, they deal out each slot once.
Only where seats change meanwhile, because a peer comes or goes, and where a peer skips a round, are
the slots that were looked at early not all among those that the merge takes.
"""

from collections.abc import Iterator, Mapping
from itertools import count

import torch
from torch import Tensor

from node.methods.base import RoundContext
from node.methods.parts.setup import SlotData
from node.methods.parts.slots import Consumed, SlotQueue

PLACES_MAX = 1 << 22  # that one round takes from the queue; bounds the memory of a merge
_AHEAD = 64  # slots looked up at a time
_SLOTS = ("feed.slots", "feed.slots.odd")  # of rounds in turns
_CURSOR = "feed.cursor"


class Feed:
    def __init__(self, data: SlotData, begins_early: bool = False) -> None:
        """`begins_early`: `slots` are asked for of the round after the one that is open."""
        self._is_private = data.private
        self.queues = [SlotQueue()] * (2 if begins_early else 1)  # replicated
        self._cursor = 0  # next slot of private data; this peer's own

    def slots(self, round: RoundContext, work_of: int, used: int = 0) -> Iterator[int]:
        """The slots of this peer's micro-batches in the round `work_of`, one after the other,
        without end, from the `used`-th on; `round` is the open one, whose seats count.
        """
        if self._is_private:
            return count(self._cursor)
        return self._seat_slots(
            work_of % len(self.queues), round.seats.index(round.peer), len(round.seats), used
        )

    def _seat_slots(self, turn: int, seat: int, seats: int, first: int) -> Iterator[int]:
        queue, turns = self.queues[turn], len(self.queues)
        for at in count(first, _AHEAD):
            yield from (queue.slots(seat, seats, at, _AHEAD) * turns + turn).tolist()

    def used(self, batches: int) -> None:
        """This peer has worked through the next so many of `slots`. Private ones do not come
        again, whether the work is merged or not; shared ones are the merges' business.
        """
        if self._is_private:
            self._cursor += batches

    def merge(
        self,
        round: RoundContext,
        consumed: Mapping[bytes, int],  # micro-batches by peer, as the round's headers say
    ) -> None:
        """Take a round's slots from the queue, on every peer alike. Who has no seat consumed
        nothing.
        """
        if self._is_private:
            return
        seats = len(round.seats)
        most = PLACES_MAX // seats
        taken = [
            Consumed(seat, 0, min(consumed[peer], most))
            for seat, peer in enumerate(round.seats)
            if peer in consumed
        ]
        turn = round.round % len(self.queues)
        self.queues[turn] = self.queues[turn].consume(seats, taken)

    def replicated_state(self) -> dict[str, Tensor]:
        return dict(zip(_SLOTS, (queue.tensor() for queue in self.queues), strict=False))

    def queues_in(self, state: Mapping[str, Tensor]) -> list[SlotQueue]:
        """What to set `queues` to, to go on from a replicated state. Raises ValueError when it is
        not one of ours.
        """
        names = _SLOTS[: len(self.queues)]
        return [SlotQueue.from_tensor(_tensor(state, name)) for name in names]

    def local_state(self) -> dict[str, Tensor]:
        return {_CURSOR: torch.tensor([self._cursor])}

    def load_local_state(self, state: Mapping[str, Tensor]) -> None:
        """Raises ValueError, and leaves everything as it was, when the state is not one of ours."""
        cursor = _tensor(state, _CURSOR)
        if cursor.dtype != torch.int64 or cursor.shape != (1,) or int(cursor) < 0:
            raise ValueError(f"{_CURSOR} is one int64, and not negative")
        self._cursor = int(cursor)


def _tensor(state: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise ValueError(f"{name} is missing")
    return state[name]
