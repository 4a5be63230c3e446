"""Is the sum over peers what it must be, whoever dies in the middle of an exchange? In float64."""

from collections.abc import Sequence

import torch
from torch import Tensor

from node.sim.gossip.crowd import Crowd


class Kept:
    def __init__(self, crowd: Crowd, name: str | None) -> None:
        self._crowd, self._name = crowd, name
        self._wanted = self._buried = torch.zeros(0)
        self.exchanges = 0
        self.worst = 0.0  # of single exchanges, in units of rounding of the largest element
        if name is not None:
            self._wanted = crowd.state[name].double().sum(0)
            self._buried = torch.zeros_like(self._wanted)

    @classmethod
    def of(cls, crowd: Crowd) -> "Kept":
        return cls(crowd, crowd.mixing.conserved)

    def stepped(self, progress: Tensor | None) -> None:
        if self._name is not None and progress is not None:
            self._wanted += progress.double()

    def sum_of(self, rows: Sequence[int]) -> Tensor | None:
        if self._name is None:
            return None
        return self._crowd.state[self._name][list(rows)].double().sum(0)

    def exchanged(self, before: Tensor | None, rows: Sequence[int]) -> None:
        after = self.sum_of(rows)
        if before is None or after is None:
            return
        assert self._name is not None
        largest = float(self._crowd.state[self._name][list(rows)].abs().max())
        unit = max(largest, 2.0**-100) * 2.0**-24
        self.worst = max(self.worst, float((after - before).abs().max()) / unit)
        self.exchanges += 1

    def died(self, row: int) -> None:
        if self._name is not None:
            self._buried += self._crowd.state[self._name][row].double()

    def joined(self, row: int) -> None:
        if self._name is not None:
            self._wanted += self._crowd.state[self._name][row].double()

    def drift(self, rows: Sequence[int]) -> float | None:
        """How far the mean of all is from what it must be; None: the method keeps none."""
        now = self.sum_of(rows)
        if now is None:
            return None
        return float((now + self._buried - self._wanted).abs().max()) / max(1, len(rows))
