"""How far a peer's own model is away from theta, where it does not come back each round.

Exchange takes as long as the line needs, and who waits for it is idle. So steps for the next round
are taken meanwhile, from where this peer's own led, its own move applied at once:

    local = theta - D                      after a round's own steps, which moved D
    local = theta - D - A                  after those that followed, for the next round
    local = theta' - A                     once the round has moved theta to theta'

*CO2: Efficient Distributed Training with Full Communication-Computation Overlap* (2024) and
*Eager Updates for Overlapped Communication and Computation in DiLoCo* (2025) have the idea. A moves
in full to the new theta, and is part of the next round's difference. What the others did in a round
is known one exchange late; nothing is sent twice, and nothing is lost.

Where a round exchanges one fragment of the model, that holds for the fragment. In all others D is
kept, too, until their turn comes: what a peer did there is its own.

One vector holds the D that the round takes along while the model is away, and what is kept while it
shows theta.
"""

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from node.methods.parts.fragments import Fragment
from node.methods.parts.shared import SharedWeights
from node.training.inner import NOTHING, InnerReport

_KEPT, _COUNTS, _LOSS = "deviation.kept", "deviation.counts", "deviation.loss"
_COUNTED: Final = 5


class Deviation:
    """One peer's own. `report` is of the steps that A holds, for the round to come."""

    def __init__(self, weights: SharedWeights) -> None:
        self._weights = weights
        self._vector = torch.zeros_like(weights.theta)
        self._is_kept = False  # there is something in it, while the model shows theta
        self._is_away = False
        self.report: InnerReport = NOTHING

    @property
    def is_away(self) -> bool:
        """The model's parameters are where the next round's steps led, not theta."""
        return self._is_away

    def resume(self) -> InnerReport:
        """The model shows theta: it goes on from where this peer's own steps led. Returns the
        report of those ahead, and forgets them: the round's difference will hold them.
        """
        self.come_home()
        if self._is_kept:
            self._weights.show(self._vector)
        report, self.report = self.report, NOTHING
        return report

    def leave(self, due: Fragment) -> None:
        """A round's steps are done, and it takes along what moved `due`: the model stays where they
        led.
        """
        self._vector.zero_()
        self._weights.add_difference(self._vector[due.elements], due.tensors)
        self._is_away = True

    def come_home(self) -> None:
        """Before theta changes, or is to be looked at. What was moved ahead stays."""
        if not self._is_away:
            return
        self._is_away, self._is_kept = False, True
        self._vector.neg_()
        self._weights.add_difference(self._vector)
        self._weights.show()

    # On disk

    def state(self) -> dict[str, Tensor]:
        self.come_home()
        report = self.report
        counts = [report.steps, report.batches, report.tokens, report.skipped, report.finite]
        loss = torch.tensor([report.loss or 0.0], dtype=torch.float64)
        return {_KEPT: self._vector, _COUNTS: torch.tensor(counts), _LOSS: loss}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Nothing was kept, if nothing is said of it. Raises ValueError, and leaves everything as
        it was, for what `state` did not write.
        """
        if _KEPT not in state:
            return
        kept, counts, loss = (state.get(name) for name in (_KEPT, _COUNTS, _LOSS))
        vector = self._vector
        if kept is None or kept.dtype != vector.dtype or kept.shape != vector.shape:
            raise ValueError(f"{_KEPT} is float32 {tuple(vector.shape)}")
        if not bool(kept.isfinite().all()):
            raise ValueError(f"{_KEPT} is not finite")
        if counts is None or counts.dtype != torch.int64 or counts.shape != (_COUNTED,):
            raise ValueError(f"{_COUNTS} is {_COUNTED} int64")
        if loss is None or loss.dtype != torch.float64 or loss.shape != (1,):
            raise ValueError(f"{_LOSS} is one float64")
        vector.copy_(kept)
        self._is_kept = True
        steps, batches, tokens, skipped, finite = counts.tolist()
        self.report = InnerReport(
            steps, batches, tokens, float(loss) if finite else None, skipped, finite
        )
