"""Peers that gossip, in a comparison: each has a model of its own, and what is judged is their
mean.

They share this process, and all but the network is real: offers go from one to the other as bytes.
Everybody is as fast as everybody else. Asynchronous methods offer before a round's steps what
arrives after them, so that every move is as old as those steps.
"""

import copy
from collections.abc import Sequence
from itertools import count

from torch import nn

from node.build import Workshop
from node.compare.contenders import RUN, Round, never
from node.compare.records import Task
from node.compare.supply import Supply
from node.compare.timing import Clock
from node.gossip.merge import merged, work_weights
from node.gossip.pairings import View
from node.gossip.party import Party, flatten
from node.gossip.together import Together, hold, meetings_of
from node.kernels import kernels_for
from node.methods.parts.mixing import MODEL
from node.methods.parts.setup import Setup
from node.methods.registry import AnyGossip
from node.training.evaluate import held_out_loss
from node.training.losses import Batch, batch_loss


class Gossip:
    def __init__(
        self, task: Task, config: AnyGossip, workshop: Workshop, module: nn.Module, data: Supply
    ) -> None:
        """Raises ConfigError when the model cannot be trained so."""
        self._config, self._device = config, workshop.device
        self._view = View.of(RUN, [number.to_bytes(32, "big") for number in range(task.peers)])
        kernels = kernels_for(workshop.device, workshop.node.kernels)
        self.parties = {
            member: Party(
                config,
                Setup(
                    copy.deepcopy(module),
                    data.share(seat),
                    batch_loss,
                    kernels,
                    RUN,
                    task.optimizer,
                ),
            )
            for seat, member in enumerate(self._view.members)
        }
        self._is_split = data.is_split
        self._merged = flatten(module)
        self._used = 0  # micro-batches of each peer

    def close(self, round: int) -> Round:
        config, view = self._config, self._view
        work, merge = Clock(self._device), Clock(self._device)
        early = Together(self.parties, meetings_of(config, view, round))
        if config.kind is None:
            with merge.timed():
                early.open()
        batches = [self._work(round, seat, work) for seat in range(len(view.members))]
        self._used += max(batches)
        sent = 0
        with merge.timed():
            if config.kind is None:
                early.finish()
                sent = early.sent_bytes
            else:
                for step in range(config.exchanges_a_round):
                    sent += hold(self.parties, meetings_of(config, view, round, step))
        peers = len(self.parties)
        return Round(sent / peers, sent / peers, work.seconds, [sum(merge.seconds) / peers])

    def _work(self, round: int, seat: int, clock: Clock) -> int:
        seats = len(self._view.members)
        mine = (self._used, 1) if self._is_split else (self._used * seats + seat, seats)
        with clock.timed():
            report = self.parties[self._view.members[seat]].work(round, count(*mine), never)
        return report.batches

    def show(self) -> None:
        """The module becomes the mean of all members, by their work."""
        parties = list(self.parties.values())
        weights = work_weights([party.tokens for party in parties])
        self._merged.copy_(merged((party.state[MODEL] for party in parties), weights))

    def digests(self) -> tuple[str, ...]:
        return ()

    def own_losses(self, batches: Sequence[Batch]) -> tuple[float, ...]:
        return tuple(held_out_loss(party.model, batches) for party in self.parties.values())
