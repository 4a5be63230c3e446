"""The method that a gossip run has for the ledger: checkpoints, and no weights.

Rounds go on at the run's window beside training and exchanges. A contribution says what its peer
did since the last one. What all hold in common follows from these alone: the queue of training
slots, and a few counts. Nobody's steps wait for a round.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Final

import torch
from torch import Tensor

from node.gossip import consensus
from node.gossip.checkpoint import Checkpoint, decode_checkpoint, weigh_checkpoint
from node.gossip.party import Party
from node.gossip.tally import Tally
from node.methods.base import Contribution, RoundContext, WorkResult
from node.methods.parts.feed import Feed
from node.methods.parts.mixing import MODEL
from node.methods.parts.setup import Setup
from node.methods.registry import AnyGossip

_COUNTS: Final = "gossip.counts"
_LOOK_S: Final = 0.02
_LOOKS: Final = 32  # distances that are remembered


class Checkpoints:
    def __init__(self, config: AnyGossip, setup: Setup) -> None:
        """Raises ConfigError when the model cannot be trained so."""
        self.party = Party(config, setup)
        self.tally = Tally()
        self.newest: dict[bytes, Checkpoint] = {}  # of the round that was merged last, by peer
        self.distances: list[tuple[int, float]] = []  # consensus, by round
        self._run, self._kernels = setup.run, setup.kernels
        self._feed = Feed(setup.data, begins_early=True)
        self._counts = torch.zeros(4, dtype=torch.int64)  # batches, tokens, done, highest number

    # This peer's own

    def work(self, round: RoundContext) -> WorkResult:
        """What was done in the round's window."""
        tally = self.tally
        if not tally.holds(round.round, round.seats):
            self._lease(round, round.round)
        while not round.expired():
            time.sleep(_LOOK_S)
        counts, drawn = tally.take()
        self._feed.used(drawn)
        self._lease(round, round.round + 1)  # steps go on while the round is closed
        model = self.party.state[MODEL]
        places = consensus.coordinates(model.numel(), self._run, round.round)
        found = Checkpoint(
            drawn,
            counts.steps,
            counts.tokens,
            counts.number,
            counts.done,
            counts.given_up,
            counts.heldout,
            consensus.sketch(model, places),
        )
        return WorkResult(found.encode(), counts.loss)

    def told_heldout(self) -> float:
        """This peer's own held-out loss, as it was measured last; a NaN if it was not."""
        heldout = self.tally.now().heldout
        return math.nan if heldout is None else heldout

    def _lease(self, round: RoundContext, work_of: int) -> None:
        slots = self._feed.slots(round, work_of)
        self.tally.lease(work_of, round.seats, _begun(slots))

    def give_back(self, round: int, payload: bytes, attachment: bytes = b"") -> None:
        """Nothing in it is worth offering again: the steps are in the model."""

    def settled(self, round: int, payload: bytes, attachment: bytes = b"") -> None:
        pass

    # What all do alike

    def weigh(self, payload: bytes) -> int:
        return weigh_checkpoint(payload)

    def check(self, round: int, payload: bytes, attachment: bytes) -> None:
        if attachment:
            raise ValueError("a checkpoint has no attachment")

    def merge(self, round: RoundContext, contributions: Sequence[Contribution]) -> None:
        found = {one.peer: decode_checkpoint(one.payload) for one in contributions}
        self._feed.merge(round, {peer: one.batches for peer, one in found.items()})
        self._counts[0] += sum(one.batches for one in found.values())
        self._counts[1] += sum(one.tokens for one in found.values())
        self._counts[2] = sum(one.done for one in found.values())
        highest = max(one.number for one in found.values())
        self._counts[3] = max(highest, int(self._counts[3]))
        self.newest = found
        self._look(round.round)

    def _look(self, round: int) -> None:
        """How far the models of those who contributed are apart."""
        size = self.party.state[MODEL].numel()
        places = min(consensus.COORDINATES, size)
        sketches = []
        for one in self.newest.values():
            try:
                sketches.append(consensus.read_sketch(one.sketch, places))
            except ValueError:
                continue  # it says nothing, or what is not finite
        if len(sketches) > 1:
            self.distances.append((round, consensus.estimate(sketches, size)))
            del self.distances[:-_LOOKS]

    # State

    def replicated_state(self) -> dict[str, Tensor]:
        return {_COUNTS: self._counts, **self._feed.replicated_state()}

    def load_replicated_state(self, state: Mapping[str, Tensor]) -> None:
        """Raises ValueError, and leaves everything as it was, when the state is not one of ours."""
        queues, counts = self._feed.queues_in(state), state.get(_COUNTS)
        if counts is None or counts.dtype != torch.int64 or counts.shape != (4,):
            raise ValueError(f"{_COUNTS} is four int64")
        self._counts.copy_(counts)
        self._feed.queues = queues

    def state_digest(self, key: int) -> int:
        flat = [tensor.flatten() for tensor in self.replicated_state().values()]
        integers = torch.cat(flat).to(self.party.device)
        return self._kernels.digest(integers, 0, key) % 2**64

    def local_state(self) -> dict[str, Tensor]:
        """The model is kept by whoever trains it (`journal`)."""
        return self._feed.local_state()

    def load_local_state(self, state: Mapping[str, Tensor]) -> None:
        self._feed.load_local_state(state)


def _begun(slots: Iterator[int]) -> Iterator[int]:
    """The queue may be another by the time that somebody asks: it is looked up now."""
    return chain([next(slots)], slots)
