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

from node.methods.base import RoundContext
from node.methods.parts.sparse_codec import SparseUpdate
from node.methods.parts.sparse_merge import Term, merge
from node.methods.parts.sparse_method import SparseMethod, usable
from node.methods.parts.token_weights import shares
from node.methods.sparseloco_config import SparseLocoConfig


class SparseLoco(SparseMethod[SparseLocoConfig]):
    def _move(
        self, round: RoundContext, updates: Sequence[SparseUpdate], weights: Sequence[int]
    ) -> None:
        rate = self.config.learning_rate.rate(round.round)
        by_senders = self.config.average == "senders"
        total = sum(weights)
        terms = [
            Term(
                update,
                usable(rate * (share if by_senders else Fraction(weight, total))),
                share if by_senders else 1,
            )
            for update, weight, share in zip(updates, weights, shares(weights), strict=True)
        ]
        merge(self._split(round.round, self._weights.theta), terms, by_senders, 0)
