"""What takes part in a comparison: peers with a method, and synchronous data-parallel training.

Peers that gossip are in `gossip.py`.
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Protocol

import torch
from blake3 import blake3
from torch import nn

from node.build import Workshop
from node.compare.records import Task
from node.compare.supply import Supply
from node.errors import ConfigError, DivergedError
from node.kernels import kernels_for
from node.methods.base import Contribution, Method, RoundContext
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
        kernels = kernels_for(workshop.device, workshop.node.kernels)
        modules = [module, *(copy.deepcopy(module) for _ in self._members[1:])]
        self.methods: list[Method] = [
            build_method(
                config, Setup(each, data.share(seat), batch_loss, kernels, RUN, task.optimizer)
            )
            for seat, each in enumerate(modules)
        ]

    def close(self, round: int) -> Round:
        contexts = [RoundContext(RUN, round, one, self._members, never) for one in self._members]
        pairs = list(zip(self.methods, contexts, strict=True))
        work_s: list[float] = []
        merge_s: list[float] = []
        entry: list[Contribution] = []
        for method, context in pairs:
            with timed(work_s, self._device):
                done = method.work(context)
            entry.append(Contribution(context.peer, done.payload, done.attachment))
        for method, context in pairs:
            with timed(merge_s, self._device):
                for one in entry:
                    method.weigh(one.payload)
                    method.check(context.round, one.payload, one.attachment)
                method.merge(context, entry)
        sent = sum(len(one.payload) + len(one.attachment) for one in entry) / len(entry)
        return Round(sent, sent * (len(entry) - 1), work_s, merge_s)

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
        seconds: list[float] = []
        with timed(seconds, self._device):
            report = self._trainer.work(round, self._slots, never)
        self._skipped = self._skipped + 1 if report.skipped else 0
        if self._skipped == SKIPS_MAX:
            raise DivergedError("the gradient")
        return Round(self._bytes, self._bytes, [seconds[0] / self._peers], [0.0])

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


@contextmanager
def timed(into: list[float], device: torch.device) -> Iterator[None]:
    """Seconds, the device's work included. One thread on a CPU is timed by the core that it keeps
    busy: the clock on the wall would count what else this machine does.
    """
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    now = time.process_time if alone else time.perf_counter
    started = now()
    yield
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    into.append(now() - started)


def never() -> bool:
    return False
