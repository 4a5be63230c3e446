"""DiLoCo: many steps at home, then everybody's moves at once, averaged, with momentum.

*DiLoCo: Distributed Low-Communication Training of Language Models* (2023),
https://arxiv.org/abs/2311.08105, and OpenDiLoCo. Peer r in a round, where H inner steps made
theta_r of theta:

    Delta_r = theta - theta_r

and everyone's update, over the contributions that the round holds:

    Delta = sum_r (w_r / sum w) Delta_r / gap_penalty
    m <- mu * m + Delta                               within +-momentum_clip, if there is one
    theta <- theta - rate * (Delta + mu * m)

The weights w are the tokens that moved theta_r, so peers of different speed count for what they
did. The inner optimizer's state stays with its peer, and is never averaged. With Muon inside it is
MuLoCo. Penalty and clip are CO2's, for steps that go on during the exchange:
*CO2: Efficient Distributed Training with Full Communication-Computation Overlap* (2024),
https://arxiv.org/abs/2401.16265, whose outer momentum is plain, not Nesterov's.

With `fragments` all of this is of one part of the model each round, in turns:
*Streaming DiLoCo with overlapping communication* (2025), https://arxiv.org/abs/2501.18512. What a
peer moved ahead while its part was exchanged stays on top of theta, where that paper mixes both.

Differences from the papers: Delta_r may be sent in 16, 8 or 4 bits; what rounding takes away, and
what missed its round, waits on its peer and is added to the next Delta_r.

Where Delta is summed part by part (reduce-scatter, then all-gather), it is sent in as many bits as
each Delta_r. What that takes away waits on the first peer in the part's order, if it added it up:
times sum w / w_r it comes back with its next Delta_r.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from node.methods.base import Contribution, RoundContext, WorkResult
from node.methods.diloco_config import DilocoConfig
from node.methods.parts.dense_codec import DenseUpdate, decode, encode
from node.methods.parts.dense_layout import DenseLayout
from node.methods.parts.dense_parts import Run, decode_parts, runs, weighted_sum
from node.methods.parts.feedback import Sent, tag
from node.methods.parts.header import Header
from node.methods.parts.inner_outer import InnerOuter
from node.methods.parts.outer_step import outer_step
from node.methods.parts.setup import Setup
from node.training.inner import InnerReport

_MOMENTUM = "outer.momentum"


class Diloco(InnerOuter[DilocoConfig, DenseUpdate]):
    def __init__(self, config: DilocoConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        self._layouts = [config.layout(fragment.sizes) for fragment in self._fragments]
        self._momentum = torch.zeros_like(self._weights.theta) if config.mu else None
        # What coding a sum took away, of those that we added up and nobody merged yet.
        self._rounded: dict[tuple[int, int, int], Tensor] = {}  # by round, part, and whose bytes

    def _encode(self, round: int) -> bytes:
        due = self._due(round)
        waiting = torch.split(self._feedback.values[due.elements], list(due.sizes))
        return encode(self._layout_of(round), waiting)

    def _decode(self, round: int, attachment: bytes) -> DenseUpdate:
        return decode(self._layout_of(round), attachment)

    def _layout_of(self, round: int) -> DenseLayout:
        return self._layouts[round % len(self._layouts)]

    def _sent(self, round: int, update: DenseUpdate) -> Sent:
        return self._due(round).elements, torch.cat(list(update.values(self._weights.device)))

    def _sent_in(self, round: int, attachment: bytes) -> Sent:
        """The whole of it, in however many parts it went."""
        updates = decode_parts(self._layout_of(round), attachment)
        device = self._weights.device
        pieces = [values for update in updates for values in update.values(device)]
        return self._due(round).elements, torch.cat(pieces)

    def _move(
        self, round: RoundContext, updates: Sequence[DenseUpdate], weights: Sequence[int]
    ) -> None:
        config, whole = self.config, sum(weights) * self.config.penalty
        shares = [weight / whole for weight in weights]
        rate = config.learning_rate.rate(round.round)
        due = self._due(round.round).elements
        theta, m = self._weights.theta[due], None if self._momentum is None else self._momentum[due]
        outer_step(theta, m, updates, shares, rate, config.mu, config.limit)

    # Part by part

    def _runs(self, round: RoundContext) -> tuple[Run, ...]:
        return runs(self._layout_of(round.round), round.parts)

    def _result(self, round: RoundContext, report: InnerReport) -> WorkResult:
        if not round.parts:
            return super()._result(round, report)
        waiting = self._feedback.values[self._due(round.round).elements]
        parts = tuple(run.encode(waiting[run.elements]) for run in self._runs(round))
        return WorkResult(Header.of(report).encode(), report.loss, parts=parts)

    def add_up(
        self, round: RoundContext, number: int, contributions: Sequence[Contribution]
    ) -> bytes:
        """What rounding takes away is kept for the case that we are the one who answers for it."""
        weights = self._weigh(contributions)
        parts = [contribution.attachment for contribution in contributions]
        data, rounded = weighted_sum(
            self._runs(round)[number], parts, weights, self._weights.device
        )
        counted = {c.peer: w for c, w in zip(contributions, weights, strict=True) if w}
        if counted and round.answers_for == number:
            whole = sum(counted.values())
            mine = counted.get(
                round.peer, whole / len(counted)
            )  # in a round that we missed: a mean
            self._rounded[round.round, number, tag(data)] = rounded * (whole / mine)
        return data

    def check_sum(self, round: RoundContext, number: int, data: bytes) -> None:
        self._runs(round)[number].decode(data)

    def merge_sums(
        self, round: RoundContext, contributions: Sequence[Contribution], sums: Sequence[bytes]
    ) -> None:
        self._settle_own(round, contributions)
        if any(self._weigh(contributions)):
            for number, (run, data) in enumerate(zip(self._runs(round), sums, strict=True)):
                self._move_part(round.round, number, run, data)
        self._rounded = {key: one for key, one in self._rounded.items() if key[0] > round.round}
        self._go_on(round, contributions)

    def _move_part(self, round: int, number: int, run: Run, data: bytes) -> None:
        due, config = self._due(round).elements, self.config
        rate, share = config.learning_rate.rate(round), 1 / config.penalty
        theta = self._weights.theta[due][run.elements]
        m = None if self._momentum is None else self._momentum[due][run.elements]
        outer_step(theta, m, [run.decode(data)], [share], rate, config.mu, config.limit)
        rounded = self._rounded.get((round, number, tag(data)))
        if rounded is not None:
            self._feedback.values[due][run.elements] += rounded

    def _outer_state(self) -> dict[str, Tensor]:
        return {} if self._momentum is None else {_MOMENTUM: self._momentum}
