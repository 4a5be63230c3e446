"""What was sent as signs, with the magnitudes that did not travel.

The sender takes these off once a round holds them, and puts them back if it turns out that no round
does. They lie here meanwhile, and outlive the process. The newest are kept, as many as fit; of an
older update only what everybody decodes is left.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from node.methods.parts.feedback import KEPT_ROUNDS, tag

_NEWEST = 2  # of updates: kept however large they are
_TABLE, _VALUES = "outgoing.updates", "outgoing.values"

_Name = tuple[int, int]  # a round, and the tag of an update's bytes


class Outgoing:
    def __init__(
        self,
        room: int,  # values that may lie here
    ) -> None:
        self._room = room
        self._sent: dict[_Name, Tensor] = {}  # (n,) float32 each; the oldest first

    def keep(self, round: int, data: bytes, values: Tensor) -> None:
        """`values`: (n,) float32, in the order in which `data` holds their signs."""
        self._sent.pop((round, tag(data)), None)
        self._sent[round, tag(data)] = values
        while self._is_too_much(round):
            del self._sent[next(iter(self._sent))]

    def find(self, round: int, data: bytes) -> Tensor | None:
        return self._sent.get((round, tag(data)))

    def _is_too_much(self, round: int) -> bool:
        if next(iter(self._sent))[0] <= round - KEPT_ROUNDS:
            return True
        total = sum(values.numel() for values in self._sent.values())
        return total > self._room and len(self._sent) > _NEWEST

    def state(self) -> dict[str, Tensor]:
        rows = [(*name, values.numel()) for name, values in self._sent.items()]
        table = torch.tensor(rows, dtype=torch.int64).reshape(-1, 3)
        return {_TABLE: table, _VALUES: torch.cat([torch.zeros(0), *self._cpu()])}

    def _cpu(self) -> list[Tensor]:
        return [values.cpu() for values in self._sent.values()]

    def load(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Raises ValueError, and leaves everything as it was, for what `state` did not write."""
        table, values = state.get(_TABLE), state.get(_VALUES)
        if table is None or table.dtype != torch.int64 or table.dim() != 2 or table.shape[1] != 3:
            raise ValueError(f"{_TABLE} is an int64 table of 3 columns")
        if values is None or values.dtype != torch.float32 or values.dim() != 1:
            raise ValueError(f"{_VALUES} is float32, flat")
        rows = table.tolist()
        counts = [count for _, _, count in rows]
        if min(counts, default=0) < 0 or sum(counts) != values.numel():
            raise ValueError(f"{_VALUES} holds {sum(counts)} values")
        if not bool(values.isfinite().all()):
            raise ValueError(f"{_VALUES} is not finite")
        parts = torch.split(values.to(device, copy=True), counts) if counts else ()
        self._sent = {(r, t): part for (r, t, _), part in zip(rows, parts, strict=True)}
