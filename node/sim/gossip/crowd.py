"""All peers' vectors as matrices, a row each, and what exchanges do to some of the rows.

Steps are taken lazily. A peer's work begins on a copy of its model, so that others meet it as it
was before; what the work came to is added when it ends. Until one of those at work is needed, more
of them gather, and then all are computed at once: the same numbers, in larger blocks.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from node.errors import ConfigError
from node.gossip.coding import Coder
from node.methods.dadao import Dadao
from node.methods.dfedsam_config import DFedSamConfig
from node.methods.noloco import SLOW
from node.methods.parts.mixing import MODEL, Offer, State
from node.methods.parts.stretches import cut
from node.methods.registry import AnyGossip, build_mixing
from node.methods.variance_corrected import VarianceCorrected
from node.sim.gossip.steps import Ints, Rows
from node.training.data import Data
from node.training.inner import trained_parameters
from node.training.losses import Batch

Offers = Sequence[Offer]  # of one peer, by stretch: (1, n) each, as others decode them


class Crowd:
    def __init__(
        self,
        config: AnyGossip,
        module: nn.Module,
        data: Data | None,  # None: nobody takes steps
        rows: int,
        parts: int = 1,
    ) -> None:
        """Raises ConfigError for a model, data or an optimizer that is not simulated."""
        start = torch.cat([p.detach().reshape(-1).float() for _, p in trained_parameters(module)])
        self.sizes = [p.numel() for _, p in trained_parameters(module)]
        self.size = start.numel()
        self.mixing = build_mixing(config)
        self.stretches = cut(self.sizes, config.stretch)
        self.coder = Coder(config, self.stretches)
        self.state = {MODEL: start.repeat(rows, 1)}
        self.state |= {name: torch.zeros(rows, self.size) for name in self.mixing.vectors}
        self.state |= {
            name: torch.zeros(rows, len(self.stretches), dtype=torch.float64)
            for name in self.mixing.per_stretch
        }
        self.tokens = [0] * rows
        self._start, self._module, self._data = start, module, data
        self._work: Tensor | None = None
        self._pending: dict[int, int] = {}  # rows that are at work, not computed yet -> the round
        self._losses: dict[int, float] = {}
        self._tokens_a_round = 0
        if data is not None:
            if isinstance(self.mixing, Dadao):
                raise ConfigError(
                    "steps with DADAO's momentum are not simulated", "leave out `dadao` in [method]"
                )
            self._work = torch.zeros(rows, self.size)
            radius = config.radius if isinstance(config, DFedSamConfig) else 0.0
            self._rows = Rows(module, data, config.inner, rows, parts, radius)
            each = data.batch(0).targets.numel()
            self._tokens_a_round = config.inner.batches_max * each
        self._all(self.mixing.begin)

    def spread(self, deviation: float, seed: int) -> None:
        """Move all models apart, by normal numbers: for looking at exchanges alone."""
        chance = torch.Generator().manual_seed(seed)
        self.state[MODEL] += deviation * torch.randn(self.state[MODEL].shape, generator=chance)
        self._all(self.mixing.begin)

    def newcomer(self, row: int, like: int | None) -> None:
        """A new peer with the model of another one, or with the first one."""
        model = self._start if like is None else self.state[MODEL][like].clone()
        for vector in self.state.values():
            vector[row] = 0
        self.state[MODEL][row] = model
        part = {name: vector[row : row + 1] for name, vector in self.state.items()}
        self.mixing.begin(part)
        self.tokens[row] = 0
        self._pending.pop(row, None)
        if self._data is not None:
            self._rows.forget(row)

    # Steps

    def begin_work(self, row: int, round: int) -> None:
        if self._work is not None:
            self._work[row] = self.state[MODEL][row]
            self._pending[row] = round

    def end_work(self, row: int) -> float | None:
        """The mean loss of the steps, which count from now on; None: there were none."""
        if self._work is None:
            return None
        if row in self._pending:
            self._compute()
        self.state[MODEL][row] += self._work[row]
        self.tokens[row] += self._tokens_a_round
        return self._losses.pop(row)

    def progress(self, row: int) -> Tensor | None:
        """What `end_work` is going to add; None: nothing."""
        if self._work is None:
            return None
        if row in self._pending:
            self._compute()
        return self._work[row]

    def _compute(self) -> None:
        assert self._work is not None
        by_round: dict[int, list[int]] = {}
        for row, round in self._pending.items():
            by_round.setdefault(round, []).append(row)
        for round, listed in sorted(by_round.items()):
            rows: Ints = np.array(listed, np.int64)
            picked = torch.from_numpy(rows)
            before = self._work[picked]
            losses = self._rows.work(self._work, rows, round)
            self._work[picked] -= before
            self._losses |= dict(zip(listed, losses.tolist(), strict=True))
        self._pending.clear()

    # Exchanges

    def offers(self, row: int, turn: int = 0) -> Offers:
        part = {name: vector[row : row + 1] for name, vector in self.state.items()}
        found = []
        for number in range(len(self.stretches)):
            offer = [one.clone() for one in self.mixing.offer(self._stretch(part, number))]
            found.append(self.coder.rounded(number, offer, turn))
        return found

    def commit(
        self,
        row: int,
        mine: Offers | None,
        others: Sequence[Offers],
        stretches: int,  # that counted, the first so many
    ) -> None:
        """One side of a meeting moves. The rest of its stretches goes on alone."""
        part = {name: vector[row : row + 1] for name, vector in self.state.items()}
        sums: dict[int, Tensor] = {}
        for number in range(len(self.stretches)):
            view = self._stretch(part, number)
            if number >= stretches:
                self.mixing.alone(view)
                continue
            own, theirs = None if mine is None else mine[number], [one[number] for one in others]
            if isinstance(self.mixing, VarianceCorrected):
                self._tally(number, own, theirs, sums)
            self.mixing.apply(view, self.mixing.moves(own, theirs))
        if isinstance(self.mixing, VarianceCorrected) and stretches == len(self.stretches):
            for tensor, values in enumerate(torch.split(part[MODEL], self.sizes, dim=1)):
                self.mixing.correct(values, sums[tensor])

    def alone(self, row: int) -> None:
        self.commit(row, None, [], 0)

    def _tally(
        self, number: int, mine: Offer | None, others: Sequence[Offer], sums: dict[int, Tensor]
    ) -> None:
        assert isinstance(self.mixing, VarianceCorrected)
        stretch = self.stretches[number]
        found = self.mixing.sums(mine, others, stretch.sizes)
        for at, tensor in enumerate(stretch.tensors):
            sums[tensor] = sums[tensor] + found[:, at] if tensor in sums else found[:, at]

    def _stretch(self, part: dict[str, Tensor], number: int) -> dict[str, Tensor]:
        elements, scalars = self.stretches[number].elements, self.mixing.per_stretch
        return {
            name: vector[:, number : number + 1] if name in scalars else vector[:, elements]
            for name, vector in part.items()
        }

    def _all(self, act: Callable[[State], None]) -> None:
        for number in range(len(self.stretches)):
            act(self._stretch(self.state, number))

    # Looking

    @property
    def shown(self) -> Tensor:
        """(rows, size): the vectors in which peers come together."""
        return self.state[SLOW if SLOW in self.state else MODEL]

    def held_out(self, models: Tensor, batches: list[Batch]) -> list[float]:
        """Of each row of (n, size) models."""
        assert self._data is not None
        found: list[float] = self._rows.losses(models, batches).tolist()
        return found
