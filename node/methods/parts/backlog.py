"""What one peer remembers of its own probes, so that nothing measured is lost and nothing is
committed twice.

Offered probes are kept for a while. When their round turns out not to hold them, they wait and ride
along with a later payload, coded in that round's unit. When any merge shows one of ours, it no
longer waits. After a fork is resolved, the losing side's payloads are given back first and then the
winning rounds are merged, so what the winners already hold drops out again.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from blake3 import blake3
from torch import Tensor

from node.methods.parts.probes import AGE_MAX, BYTE_MAX, INDEX_MAX

Place = tuple[int, int]  # (origin round, probe index)


@dataclass(frozen=True, slots=True)
class Measured:
    """One of our own probes."""

    value: int  # -127..127
    exponent: int  # in units of 2**exponent
    choice: int | None  # pool index; None outside pooled runs


_WAITING = -1  # stands in the saved table where an offer has its round
_COLUMNS = 7


class Backlog:
    def __init__(self) -> None:
        self._waiting: dict[Place, Measured] = {}
        # What each payload held, by the round it was for and a hash of its bytes.
        self._offers: dict[tuple[int, int], dict[Place, Measured]] = {}
        self._cursor = 0  # next slot of private data

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self, now: int, most: int) -> dict[Place, Measured]:
        """The oldest waiting probes that may ride along in round `now`; they wait no longer."""
        ready = [p for p in sorted(self._waiting) if 1 <= now - p[0] <= AGE_MAX][:most]
        return {place: self._waiting.pop(place) for place in ready}

    def first_index(self, now: int, wanted: int) -> int:
        """Where fresh probes start: a second try at a round must not use the same directions
        again.
        """
        used = {place for probes in self._offers.values() for place in probes}
        used |= self._waiting.keys()
        first = max((index for origin, index in used if origin == now), default=-1) + 1
        if first + wanted <= INDEX_MAX:
            return first
        # After very many tries. The directions are used again, so the old tries are given up.
        self._offers = {o: probes for o, probes in self._offers.items() if o[0] != now}
        self._waiting = {p: m for p, m in self._waiting.items() if p[0] != now}
        return 0

    def offer(self, now: int, payload: bytes, probes: dict[Place, Measured]) -> None:
        self._offers[now, _tag(payload)] = probes

    def give_back(self, round: int, payload: bytes) -> bool:
        """What this payload held waits again. False for one that is not known (any more)."""
        probes = self._offers.get((round, _tag(payload)))
        self._waiting.update(probes or {})
        return probes is not None

    def wait(self, place: Place, probe: Measured) -> None:
        """Keep for a later round what was offered to none."""
        self._waiting[place] = probe

    def committed(self, places: Iterable[Place]) -> None:
        """A round holds these."""
        for place in places:
            self._waiting.pop(place, None)

    def forget_before(self, now: int) -> None:
        """What is too old to be offered again."""
        oldest = now - AGE_MAX
        self._offers = {o: probes for o, probes in self._offers.items() if o[0] >= oldest}
        self._waiting = {p: m for p, m in self._waiting.items() if p[0] >= oldest}

    def next_private_slot(self) -> int:
        self._cursor += 1
        return self._cursor - 1

    def state(self) -> dict[str, Tensor]:
        groups = [((_WAITING, 0), self._waiting), *self._offers.items()]
        rows = [
            [*offer, *place, m.value, m.exponent, -1 if m.choice is None else m.choice]
            for offer, probes in groups
            for place, m in probes.items()
        ]
        table = torch.tensor(rows, dtype=torch.int64).reshape(-1, _COLUMNS)
        return {"spsa.backlog": table, "spsa.cursor": torch.tensor([self._cursor])}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Raises ValueError when the table is not one that `state` wrote."""
        table = state["spsa.backlog"]
        if table.dtype != torch.int64 or table.dim() != 2 or table.shape[1] != _COLUMNS:
            raise ValueError(f"spsa.backlog is an int64 table of {_COLUMNS} columns")
        waiting: dict[Place, Measured] = {}
        offers: dict[tuple[int, int], dict[Place, Measured]] = {}
        for round, tag, origin, index, value, exponent, choice in table.tolist():
            if abs(value) > BYTE_MAX or not 0 <= index < INDEX_MAX:
                raise ValueError("spsa.backlog is out of bounds")
            group = waiting if round == _WAITING else offers.setdefault((round, tag), {})
            group[origin, index] = Measured(value, exponent, None if choice < 0 else choice)
        self._waiting, self._offers = waiting, offers
        self._cursor = int(state["spsa.cursor"])


def _tag(payload: bytes) -> int:
    """63 bits, so that it fits a table of int64."""
    return int.from_bytes(blake3(payload).digest(length=8), "little") >> 1
