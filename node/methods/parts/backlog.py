"""What one peer remembers of its own probes, so that nothing measured is lost and nothing is
committed twice.

Offered probes are kept for a while. When the round turns out not to hold them, they wait and ride
along with a later payload, coded in that round's unit. When any merge shows one of ours, it no
longer waits. After a fork is resolved, the losing side's payloads are given back first and then the
winning rounds are merged, so what the winners already hold drops out again.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from node.methods.parts.probes import AGE_MAX, BYTE_MAX, INDEX_MAX

Place = tuple[int, int]  # (origin round, probe index)
_COLUMNS = 6  # of the saved table
_WAITING = -1  # in place of the round it was offered to


@dataclass(frozen=True, slots=True)
class Measured:
    """One of our own probes."""

    value: int  # -127..127
    exponent: int  # in units of 2**exponent
    choice: int | None  # pool index; None outside pooled runs


class Backlog:
    def __init__(self) -> None:
        self._waiting: dict[Place, Measured] = {}
        self._offered: dict[int, dict[Place, Measured]] = {}  # by the round they were offered to
        self._cursor = 0  # next slot of private data

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self, now: int, most: int) -> dict[Place, Measured]:
        """The oldest waiting probes that may ride along in round `now`; they wait no longer."""
        ready = [p for p in sorted(self._waiting) if 1 <= now - p[0] <= AGE_MAX][:most]
        return {place: self._waiting.pop(place) for place in ready}

    def reserve(self, now: int, wanted: int) -> tuple[int, int]:
        """(first index, count) for fresh probes: a second try at a round must not use the same
        directions again.
        """
        used = [index for origin, index in self._places() if origin == now]
        first = max(used, default=-1) + 1
        if first + wanted > INDEX_MAX:  # after many tries; then the old ones are given up instead
            self.drop([(now, index) for index in used])
            self._offered.pop(now, None)
            first = 0
        return first, wanted

    def _places(self) -> Iterable[Place]:
        yield from self._waiting
        for offered in self._offered.values():
            yield from offered

    def offer(self, now: int, probes: dict[Place, Measured]) -> None:
        self._offered.setdefault(now, {}).update(probes)

    def give_back(self, round: int) -> None:
        """What was offered to `round` waits again. Unknown rounds are ignored: their probes are too
        old.
        """
        self._waiting.update(self._offered.get(round, {}))

    def drop(self, places: Iterable[Place]) -> None:
        """These are committed."""
        for place in places:
            self._waiting.pop(place, None)

    def forget_before(self, now: int) -> None:
        """What is too old to be offered again."""
        oldest = now - AGE_MAX
        self._offered = {r: p for r, p in self._offered.items() if r >= oldest}
        self._waiting = {p: m for p, m in self._waiting.items() if p[0] >= oldest}

    def next_private_slot(self) -> int:
        self._cursor += 1
        return self._cursor - 1

    def state(self) -> dict[str, Tensor]:
        rows = [
            [round, *place, m.value, m.exponent, -1 if m.choice is None else m.choice]
            for round, probes in [(_WAITING, self._waiting), *self._offered.items()]
            for place, m in probes.items()
        ]
        table = torch.tensor(rows, dtype=torch.int64).reshape(-1, _COLUMNS)
        return {"spsa.backlog": table, "spsa.cursor": torch.tensor([self._cursor])}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Raises ValueError when the table is not one that `state` wrote."""
        table = state["spsa.backlog"]
        if table.dtype != torch.int64 or table.dim() != 2 or table.shape[1] != _COLUMNS:
            raise ValueError("spsa.backlog is an int64 table of six columns")
        waiting: dict[Place, Measured] = {}
        offered: dict[int, dict[Place, Measured]] = {}
        for round, origin, index, value, exponent, choice in table.tolist():
            if abs(value) > BYTE_MAX or not 0 <= index < INDEX_MAX:
                raise ValueError("spsa.backlog is out of bounds")
            measured = Measured(value, exponent, None if choice < 0 else choice)
            group = waiting if round == _WAITING else offered.setdefault(round, {})
            group[origin, index] = measured
        self._waiting, self._offered = waiting, offered
        self._cursor = int(state["spsa.cursor"])
