"""What takes part in a comparison: peers with a method, and synchronous data-parallel training.

Peers that gossip are in `gossip.py`.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Protocol

from blake3 import blake3
from torch import nn

from node.build import Workshop
from node.compare.exchange import Seat, by_parts, whole
from node.compare.records import Task
from node.compare.supply import Supply
from node.compare.timing import Clock
from node.errors import ConfigError, DivergedError
from node.kernels import kernels_for
from node.methods.base import Method, RoundContext
from node.methods.parts.setup import Setup
from node.methods.registry import MethodConfig, build_method
from node.training.inner import SKIPS_MAX, InnerTrainer, trained_parameters
from node.training.inner_config import BATCHES_MAX, InnerConfig
from node.training.losses import Batch, batch_loss

Tell = Callable[[int], None]
"""Called with the micro-batches that all peers have gone through since it was called last."""

RUN = blake3(b"comparison").digest()


@dataclass(frozen=True, slots=True)
class Round:
    """What one round took, of one peer; times of each."""

    sent_bytes: float
    received_bytes: float
    work_s: Sequence[float]
    merge_s: Sequence[float]


class Contender(Protocol):
    """Trains the module that it was given, in place."""

    def close(self, round: int) -> Round:
        """Raises DivergedError when numbers are not finite any more."""
        ...

    def show(self) -> None:
        """The module becomes what is to be judged."""
        ...

    def digests(self) -> tuple[str, ...]:
        """Of each replica."""
        ...

    def own_losses(self, batches: Sequence[Batch]) -> tuple[float, ...]:
        """Held out, of each peer's own model, where they are not replicas."""
        ...


class Shared:
    """What contenders with one model have in common."""

    def show(self) -> None:
        """It is the module's already."""

    def own_losses(self, batches: Sequence[Batch]) -> tuple[float, ...]:
        return ()


class Swarm(Shared):
    """Peers that share this process: real ones in all but the network. Each has a model, an
    optimizer and a replica of its own, and a round's contributions go from one method to the others
    as bytes. Everybody contributes, and nobody misses a round.
    """

    def __init__(
        self, task: Task, config: MethodConfig, workshop: Workshop, module: nn.Module, data: Supply
    ) -> None:
        """Raises ConfigError when the model cannot be trained so."""
        self._members = tuple(number.to_bytes(32, "big") for number in range(task.peers))
        self._device = workshop.device
        shapes = [parameter.shape for _, parameter in trained_parameters(module)]
        self._parts = min(config.parts_max(shapes), task.peers)
        kernels = kernels_for(workshop.device, workshop.node.kernels)
        modules = [module, *(copy.deepcopy(module) for _ in self._members[1:])]
        self.methods: list[Method] = [
            build_method(
                config, Setup(each, data.share(seat), batch_loss, kernels, RUN, task.optimizer)
            )
            for seat, each in enumerate(modules)
        ]

    def close(self, round: int) -> Round:
        work, merge = Clock(self._device), Clock(self._device)
        seats: list[Seat] = []
        for method, member in zip(self.methods, self._members, strict=True):
            context = RoundContext(RUN, round, member, self._members, never, self._parts)
            with work.timed():
                done = method.work(context)
            seats.append(Seat(method, context, done))
        traffic = (by_parts if self._parts else whole)(seats, merge)
        # Who adds up does so for all: each peer's share of that is part of its merge.
        each = [sum(merge.seconds) / len(seats)] if self._parts else merge.seconds
        return Round(traffic.sent, traffic.received, work.seconds, each)

    def digests(self) -> tuple[str, ...]:
        return tuple(f"{method.state_digest(0):016x}" for method in self.methods)


class Synchronous(Shared):
    """Data-parallel training: each step by the mean gradient over all peers' micro-batches.

    That is one trainer that accumulates over all of them. The micro-batches that the peers of a
    method go through at the same time lie side by side in the queue of slots, so this one sees what
    they see, in their order.
    """

    def __init__(
        self, task: Task, steps: int, workshop: Workshop, module: nn.Module, data: Supply
    ) -> None:
        """Raises ConfigError when the model cannot be trained so."""
        self._peers, self._device = task.peers, workshop.device
        self._trainer = InnerTrainer(
            _settings(task, steps), module, batch_loss, data.batch, task.optimizer
        )
        self._slots = count()
        self._skipped = 0  # steps in a row
        gradient_bytes = 4 * sum(p.numel() for _, p in trained_parameters(module))
        # Of a ring all-reduce of float32 gradients: no way of summing them sends less.
        self._bytes = 2 * (task.peers - 1) / task.peers * gradient_bytes

    def close(self, round: int) -> Round:
        """One step."""
        clock = Clock(self._device)
        with clock.timed():
            report = self._trainer.work(round, self._slots, never)
        self._skipped = self._skipped + 1 if report.skipped else 0
        if self._skipped == SKIPS_MAX:
            raise DivergedError("the gradient")
        return Round(self._bytes, self._bytes, [clock.seconds[0] / self._peers], [0.0])

    def digests(self) -> tuple[str, ...]:
        return ()


def _settings(task: Task, steps: int) -> InnerConfig:
    inner = task.inner.over(steps)
    batches = inner.accumulation * task.peers
    if batches > BATCHES_MAX:
        raise ConfigError(
            f"{batches} micro-batches for one synchronous step are more than {BATCHES_MAX}",
            "compare fewer --peers, or lower `accumulation`",
        )
    return inner.model_copy(update={"steps": 1, "accumulation": batches})


def never() -> bool:
    return False
