"""What one peer remembers of its own probes, so that nothing measured is lost and nothing is
committed twice.

Offered probes are kept for a while. When their round turns out not to hold them, they wait and ride
along with a later payload, coded in that round's unit. When any merge shows one of ours, it no
longer waits. After a fork is resolved, the losing side's payloads are given back first and then the
winning rounds are merged, so what the winners already hold drops out again.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum

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


class Fate(IntEnum):
    OPEN = 0
    COMMITTED = 1
    RETURNED = 2


@dataclass(slots=True)
class _Offer:
    """One payload of ours."""

    round: int
    tag: int  # hash of the payload's bytes
    fate: Fate
    probes: dict[Place, Measured]


_WAITING = -1  # stands in the saved table where an offer has its round
_COLUMNS = 8


class Backlog:
    def __init__(self) -> None:
        self._waiting: dict[Place, Measured] = {}
        self._offers: list[_Offer] = []  # in the order they were made
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
        used = {place for offer in self._offers for place in offer.probes} | self._waiting.keys()
        first = max((index for origin, index in used if origin == now), default=-1) + 1
        if first + wanted <= INDEX_MAX:
            return first
        # After very many tries. The directions are used again, so the old tries are given up.
        self._offers = [offer for offer in self._offers if offer.round != now]
        self._waiting = {p: m for p, m in self._waiting.items() if p[0] != now}
        return 0

    def offer(self, now: int, payload: bytes, probes: dict[Place, Measured]) -> None:
        self._offers.append(_Offer(now, _tag(payload), Fate.OPEN, probes))

    def give_back(self, payload: bytes) -> None:
        """What this payload held waits again. One that is too old, or from another life, is
        ignored.

        Tiny payloads of two rounds may have equal bytes. Then the oldest one of unknown fate is
        meant, or after a fork the latest that was committed.
        """
        tag = _tag(payload)
        alike = [o for o in self._offers if o.tag == tag and o.fate is not Fate.RETURNED]
        still_open = [offer for offer in alike if offer.fate is Fate.OPEN]
        for offer in still_open[:1] or alike[-1:]:
            offer.fate = Fate.RETURNED
            self._waiting.update(offer.probes)

    def committed(self, now: int, payload: bytes, places: Iterable[Place]) -> None:
        """Round `now` holds our payload."""
        tag = _tag(payload)
        for offer in self._offers:
            if offer.round == now and offer.tag == tag:
                offer.fate = Fate.COMMITTED
        for place in places:
            self._waiting.pop(place, None)

    def forget_before(self, now: int) -> None:
        """What is too old to be offered again."""
        oldest = now - AGE_MAX
        self._offers = [offer for offer in self._offers if offer.round >= oldest]
        self._waiting = {p: m for p, m in self._waiting.items() if p[0] >= oldest}

    def next_private_slot(self) -> int:
        self._cursor += 1
        return self._cursor - 1

    def state(self) -> dict[str, Tensor]:
        groups = [(_WAITING, 0, Fate.OPEN, self._waiting)]
        groups += [(o.round, o.tag, o.fate, o.probes) for o in self._offers]
        rows = [
            [round, tag, fate, *place, m.value, m.exponent, -1 if m.choice is None else m.choice]
            for round, tag, fate, probes in groups
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
        offers: dict[tuple[int, int], _Offer] = {}
        for round, tag, fate, origin, index, value, exponent, choice in table.tolist():
            if abs(value) > BYTE_MAX or not 0 <= index < INDEX_MAX:
                raise ValueError("spsa.backlog is out of bounds")
            group = waiting
            if round != _WAITING:
                group = offers.setdefault((round, tag), _Offer(round, tag, Fate(fate), {})).probes
            group[origin, index] = Measured(value, exponent, None if choice < 0 else choice)
        self._waiting, self._offers = waiting, list(offers.values())
        self._cursor = int(state["spsa.cursor"])


def _tag(payload: bytes) -> int:
    """63 bits, so that it fits a table of int64."""
    return int.from_bytes(blake3(payload).digest(length=8), "little") >> 1
