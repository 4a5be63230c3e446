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

from collections.abc import Mapping, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from node.methods.base import Contribution, RoundContext, WorkResult
from node.methods.parts.feed import Feed
from node.methods.parts.feedback import Feedback
from node.methods.parts.header import Header, decode_header
from node.methods.parts.setup import Setup
from node.methods.parts.shared import SharedWeights
from node.methods.parts.sparse_codec import (
    SparseUpdate,
    decode,
    encode,
    values_of,
)
from node.methods.parts.sparse_merge import COEFFICIENT_MIN, Term, merge
from node.methods.parts.sparsify import select
from node.methods.parts.token_weights import shares, token_weights
from node.methods.sparseloco_config import SparseLocoConfig


class SparseLoco:
    def __init__(self, config: SparseLocoConfig, setup: Setup) -> None:
        self.config = config
        self._kernels = setup.kernels
        self._weights = SharedWeights(setup.model, setup.kernels)
        self._layout = config.layout(self._weights.sizes)
        self._feedback = Feedback(self._layout.size, self._weights.device, self._sent)
        self._feed = Feed(setup.data)
        self._trainer = setup.inner(config.inner)
        self._checked: dict[bytes, SparseUpdate] = {}  # for the round that is being merged

    # Local work.

    def work(self, round: RoundContext) -> WorkResult:
        """Inner steps from theta; then what of them, and of all that waits, is worth sending. The
        model shows theta before and after.
        """
        report = self._trainer.work(round.round, self._feed.slots(round), round.expired)
        self._feed.used(report.batches)
        self._feedback.add(round.round, self.config.feedback_decay, self._weights.add_difference)
        self._weights.show()
        return WorkResult(Header.of(report).encode(), report.loss, self._encode())

    def _encode(self) -> bytes:
        parts = zip(
            self._weights.names,
            torch.split(self._feedback.values, self._weights.sizes),
            self._layout.tensors,
            strict=True,
        )
        chosen = [select(*part, self.config.value_bits) for part in parts]
        return encode(self._layout, chosen)

    def give_back(self, round: int, payload: bytes, attachment: bytes = b"") -> None:
        """What we offered to `round` is not in it, or no longer: it is still in the feedback, or
        comes back to it.
        """
        self._feedback.returned(round, attachment)

    def settled(self, round: int, payload: bytes, attachment: bytes = b"") -> None:
        if attachment:  # else it is gone, as old ones are
            self._feedback.committed(round, attachment)

    def _sent(self, attachment: bytes) -> tuple[Tensor, Tensor]:
        return values_of(self._update(attachment), self._weights.device)

    # The replicated update.

    def weigh(self, payload: bytes) -> int:
        return self.config.weigh(payload)

    def check(self, payload: bytes, attachment: bytes) -> None:
        self._update(attachment)

    def _update(self, attachment: bytes) -> SparseUpdate:
        """What was checked for a round is not checked again when it is merged."""
        known = self._checked.get(attachment)
        if known is None:
            known = self._checked[attachment] = decode(self._layout, attachment)
        return known

    def merge(self, round: RoundContext, contributions: Sequence[Contribution]) -> None:
        for own in contributions:
            if own.peer == round.peer:
                self.settled(round.round, own.payload, own.attachment)
        headers = [decode_header(c.payload, self.config.inner)[0] for c in contributions]
        self._move(round, contributions, token_weights([header.tokens for header in headers]))
        self._feed.merge(
            round,
            {c.peer: header.batches for c, header in zip(contributions, headers, strict=True)},
        )
        self._weights.show()
        self._checked.clear()

    def _move(
        self, round: RoundContext, contributions: Sequence[Contribution], weights: Sequence[int]
    ) -> None:
        rate = self.config.learning_rate.rate(round.round)
        by_senders = self.config.average == "senders"
        total = sum(weights)
        terms = [
            Term(
                self._update(contribution.attachment),
                _usable(rate * (share if by_senders else Fraction(weight, total))),
                share if by_senders else 1,
            )
            for contribution, weight, share in zip(
                contributions, weights, shares(weights), strict=True
            )
            if weight
        ]
        merge(torch.split(self._weights.theta, self._weights.sizes), terms, by_senders, 0)

    # State.

    def replicated_state(self) -> dict[str, Tensor]:
        return {**self._weights.state(), **self._feed.replicated_state()}

    def load_replicated_state(self, state: Mapping[str, Tensor]) -> None:
        """Raises ValueError, and leaves everything as it was, when the state is not one of ours."""
        queue = Feed.queue_in(state)
        self._weights.load(state)
        self._feed.queue = queue

    def state_digest(self, key: int = 0) -> int:
        slots = [tensor.flatten() for tensor in self._feed.replicated_state().values()]
        integers = torch.cat(slots).to(self._weights.device)
        total = self._weights.digest(key)
        return (total + self._kernels.digest(integers, self._layout.size, key)) % 2**64

    def local_state(self) -> dict[str, Tensor]:
        mine = self._feedback.state() | self._feed.local_state()
        return mine | self._trainer.local_state()

    def load_local_state(self, state: Mapping[str, Tensor]) -> None:
        """Raises ValueError for what is not ours. An optimizer that was changed since starts anew;
        the feedback stays.
        """
        self._feedback.load(state)
        self._feed.load_local_state(state)
        self._trainer.load_local_state(state)


def _usable(coefficient: Fraction) -> float:
    """0 for what no weight could feel."""
    return 0.0 if coefficient < Fraction(COEFFICIENT_MIN) else float(coefficient)
