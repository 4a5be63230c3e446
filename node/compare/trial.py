"""One cell, from the starting weights to the end, and what is measured on the way."""

import math
import statistics

import torch
from torch import nn

from node.build import Workshop
from node.compare.contenders import Contender, Round, Swarm, Synchronous, Tell
from node.compare.gossip import Gossip
from node.compare.records import Cell, Outcome, Task
from node.compare.supply import Supply
from node.errors import DivergedError
from node.methods.parts.gossip_config import GossipConfig
from node.methods.registry import MethodConfig
from node.training.evaluate import held_out_loss
from node.training.inner import trained_parameters

EVALUATIONS = 10  # points of a curve, at most


def train(task: Task, cell: Cell, workshop: Workshop, tell: Tell) -> Outcome:
    """Training that diverges is an outcome, too. So is training that left out batches because
    gradients were not finite: its loss is not one at equal tokens.
    """
    torch.manual_seed(cell.seed)  # for models with dropout
    supply = Supply(workshop.data, cell.seed, task.parts)
    model = workshop.another_model(cell.seed)
    contender = contender_for(task, cell.method, cell.rounds, workshop, model.module, supply)
    batches, marks = workshop.data.held_out(), _marks(cell.rounds)
    curve: list[tuple[int, float]] = []
    rounds: list[Round] = []
    try:
        for number in range(cell.rounds):
            rounds.append(contender.close(number))
            tell(cell.interval * task.peers)
            if number + 1 in marks:
                contender.show()
                loss = held_out_loss(model.module, batches)
                if not math.isfinite(loss):
                    raise DivergedError("the held-out loss")
                curve.append(((number + 1) * cell.interval, loss))
    except DivergedError:
        tell((cell.rounds - len(rounds)) * cell.interval * task.peers)  # nothing is left to do
    is_whole = supply.batches >= cell.rounds * cell.interval * task.peers
    return Outcome(
        loss=curve[-1][1] if is_whole and len(curve) == len(marks) else None,
        curve=tuple(curve),
        tokens=supply.tokens,
        parameters=sum(p.numel() for _, p in trained_parameters(model.module)),
        sent_bytes=_mean([one.sent_bytes for one in rounds]),
        received_bytes=_mean([one.received_bytes for one in rounds]),
        work_s=_median([seconds for one in rounds for seconds in one.work_s]),
        merge_s=_median([seconds for one in rounds for seconds in one.merge_s]),
        digests=contender.digests(),
        own_losses=contender.own_losses(batches),
    )


def contender_for(
    task: Task,
    method: MethodConfig | None,
    steps: int,  # of the baseline, in all
    workshop: Workshop,
    module: nn.Module,
    supply: Supply,
) -> Contender:
    """Raises ConfigError when the model cannot be trained so."""
    if method is None:
        return Synchronous(task, steps, workshop, module, supply)
    if isinstance(method, GossipConfig):
        return Gossip(task, method, workshop, module, supply)
    return Swarm(task, method, workshop, module, supply)


def _marks(rounds: int) -> set[int]:
    """After how many rounds the held-out loss is measured: the last one is among them."""
    return {-(-rounds * i // EVALUATIONS) for i in range(1, EVALUATIONS + 1)}


def _mean(values: list[float]) -> float:
    return statistics.fmean(values) if values else 0.0


def _median(values: list[float]) -> float:
    return statistics.median(values) if values else 0.0
