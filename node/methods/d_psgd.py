"""D-PSGD: peers step on their own, and average with whom they meet.

*Can Decentralized Algorithms Outperform Centralized Algorithms?* (2017),
https://arxiv.org/abs/1705.09056. After its inner steps peer i holds x_i; with those it meets:

    x_i <- (1/n) sum_j x_j

which is x_i <- sum_j W_ij x_j with a symmetric, doubly stochastic W: the mean over all peers stays.

Differences from the paper: several steps between two exchanges; the graph is a matching, a ring or
groups, another one in each round; each takes its own x_i as it was decoded.
"""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from node.methods.parts.mixing import MODEL, Mixing, Offer, State, toward_mean


class Averaging(Mixing):
    conserved: ClassVar[str | None] = MODEL

    def offer(self, state: State) -> list[Tensor]:
        return [state[MODEL]]

    def moves(self, mine: Offer | None, others: Sequence[Offer]) -> list[Tensor]:
        assert mine is not None, "all send"
        return [toward_mean(mine[0], [theirs[0] for theirs in others])]

    def apply(self, state: State, moves: Sequence[Tensor]) -> None:
        state[MODEL].add_(moves[0])
