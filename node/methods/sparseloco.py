"""SparseLoCo: many steps at home, then the largest few of the moves, at two bits each.

*Communication Efficient LLM Pre-training with SparseLoCo* (2025). Peer r in a round, where H inner
steps made theta_r of theta:

    Delta_r = theta - theta_r
    e_r <- decay * e_r + Delta_r
    sent_r = Q(top-k of each chunk of e_r)
    e_r <- e_r - sent_r                                      once the round holds it

and everyone's update, over the contributions that the round holds:

    theta <- theta - rate * sum_r (w_r / sum w) sent_r       `average = "peers"`
    theta_i <- theta_i - rate * mean of those who sent i     `average = "senders"`

The weights w are the tokens that moved theta_r, so peers of different speed count for what they
did. There is no outer momentum: the feedback is one. The rate is applied once, to the update, and
never to e.

Differences from the paper: what was sent is taken off when it is committed, not when it is sent; a
value is a sign and one of two magnitudes of its tensor instead of one of four bins around the mean,
two of which stay empty when only the largest are sent; chunks are runs of the flat tensor, so no
shape is sent whole.
"""

from collections.abc import Sequence
from fractions import Fraction

import torch

from node.methods.parts.feedback import Sent
from node.methods.parts.inner_outer import InnerOuter
from node.methods.parts.setup import Setup
from node.methods.parts.sparse_codec import SparseUpdate, decode, encode, values_of
from node.methods.parts.sparse_merge import COEFFICIENT_MIN, Term, merge
from node.methods.parts.sparsify import select
from node.methods.parts.token_weights import shares
from node.methods.sparseloco_config import SparseLocoConfig


class SparseLoco(InnerOuter[SparseLocoConfig, SparseUpdate]):
    def __init__(self, config: SparseLocoConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        self._layout = config.layout(self._weights.sizes)

    def _encode(self, round: int) -> bytes:
        parts = zip(
            self._weights.names,
            torch.split(self._feedback.values, self._weights.sizes),
            self._layout.tensors,
            strict=True,
        )
        chosen = [select(*part, self.config.value_bits) for part in parts]
        return encode(self._layout, chosen)

    def _decode(self, attachment: bytes) -> SparseUpdate:
        return decode(self._layout, attachment)

    def _sent(self, round: int, update: SparseUpdate) -> Sent:
        return values_of(update, self._weights.device)

    def _move(self, round: int, updates: Sequence[SparseUpdate], weights: Sequence[int]) -> None:
        rate = self.config.learning_rate.rate(round)
        by_senders = self.config.average == "senders"
        total = sum(weights)
        terms = [
            Term(
                update,
                _usable(rate * (share if by_senders else Fraction(weight, total))),
                share if by_senders else 1,
            )
            for update, weight, share in zip(updates, weights, shares(weights), strict=True)
        ]
        merge(torch.split(self._weights.theta, self._weights.sizes), terms, by_senders, 0)


def _usable(coefficient: Fraction) -> float:
    """0 for what no weight could feel."""
    return 0.0 if coefficient < Fraction(COEFFICIENT_MIN) else float(coefficient)
