"""What all methods share in which each peer takes inner steps of its own, and then all move alike.

A round's difference, theta before it minus the parameters after it, is added to what waits on this
peer; a method codes what of it is worth sending, and what the round then holds is taken off. How
the weights move by what all sent is the method's to say.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from node.methods.base import Contribution, GoesOn, RoundContext, WorkResult
from node.methods.parts.deviation import Deviation
from node.methods.parts.feed import Feed
from node.methods.parts.feedback import Feedback, Sent
from node.methods.parts.fragments import Fragment, cut
from node.methods.parts.header import Header, decode_header
from node.methods.parts.setup import Setup
from node.methods.parts.shared import SharedWeights
from node.methods.parts.token_weights import token_weights
from node.training.inner import NOTHING, InnerReport, InnerWork
from node.training.inner_config import InnerConfig


class Settings(Protocol):
    @property
    def inner(self) -> InnerConfig: ...

    @property
    def feedback_decay(self) -> float: ...

    @property
    def overlap(self) -> bool: ...

    @property
    def fragments(self) -> int: ...

    def weigh(self, payload: bytes) -> int: ...


C = TypeVar("C", bound=Settings)
U = TypeVar("U")  # an update, decoded and checked


class InnerOuter(ABC, Generic[C, U]):
    def __init__(self, config: C, setup: Setup) -> None:
        self.config = config
        self._kernels = setup.kernels
        self._weights = SharedWeights(setup.model, setup.kernels)
        self._size = self._weights.theta.numel()
        self._feedback = Feedback(self._size, self._weights.device, self._sent_in)
        self._feed = Feed(setup.data, config.overlap)
        self._trainer = self._make_trainer(setup)
        self._fragments = cut(self._weights.sizes, config.fragments)
        stays_away = config.overlap or config.fragments > 1
        self._deviation = Deviation(self._weights) if stays_away else None
        self._checked: dict[tuple[int, bytes], U] = {}  # for the round that is being merged

    # What a method says

    @abstractmethod
    def _encode(self, round: int) -> bytes:
        """What is worth sending of `self._feedback.values`, where it is due."""

    @abstractmethod
    def _decode(self, round: int, attachment: bytes) -> U:
        """Raises ValueError for what no honest peer sends."""

    @abstractmethod
    def _sent(self, round: int, update: U) -> Sent:
        """What an update takes off from what waits on its sender, once `round` holds it."""

    @abstractmethod
    def _move(self, round: RoundContext, updates: Sequence[U], weights: Sequence[int]) -> None:
        """All hold these updates, in this order; each counts in proportion to its weight, at
        least 1.
        """

    def _make_trainer(self, setup: Setup) -> InnerWork:
        return setup.inner(self.config.inner)

    def _add_work(self, round: int, total: Tensor) -> None:
        """total += what the round's own work came to, of what is due."""
        self._weights.add_difference(total, self._due(round).tensors)

    def _outer_state(self) -> dict[str, Tensor]:
        """Replicated, beside the weights: float32 (size,), at most one, live."""
        return {}

    def _outer_integers(self) -> dict[str, Tensor]:
        """Replicated, too: int64, a handful, live."""
        return {}

    # Local work

    def work(self, round: RoundContext) -> WorkResult:
        """The model shows theta before, and after, unless what it did is kept or goes on."""
        ahead = NOTHING if self._deviation is None else self._deviation.resume()
        report = self._steps(round, round.round, ahead, None)
        add_work = partial(self._add_work, round.round)
        where = self._where_due(round.round)
        self._feedback.add(round.round, self.config.feedback_decay, add_work, where)
        if self._deviation is None:
            self._weights.show()
        else:
            self._deviation.leave(self._due(round.round))
        return self._result(round, report)

    def _result(self, round: RoundContext, report: InnerReport) -> WorkResult:
        return WorkResult(Header.of(report).encode(), report.loss, self._encode(round.round))

    def _due(self, round: int) -> Fragment:
        """What of the weights the round exchanges."""
        return self._fragments[round % len(self._fragments)]

    def _where_due(self, round: int) -> slice:
        """The same, of what waits."""
        return slice(None) if len(self._fragments) == 1 else self._due(round).elements

    @property
    def goes_on(self) -> GoesOn:
        return GoesOn.AT_ONCE if self.config.overlap else GoesOn.NEVER

    def overtime(self, round: RoundContext) -> None:
        """The next round's first steps."""
        mine = self._deviation
        if mine is not None and mine.is_away:
            mine.report = self._steps(round, round.round + 1, mine.report, 0)

    def _steps(
        self,
        round: RoundContext,
        work_of: int,  # the round that the steps are for
        before: InnerReport,
        least: int | None,
    ) -> InnerReport:
        slots = self._feed.slots(round, work_of, before.batches)
        report = self._trainer.work(work_of, slots, round.expired, before, least)
        self._feed.used(report.batches - before.batches)
        return report

    def give_back(self, round: int, payload: bytes, attachment: bytes = b"") -> None:
        """What we offered to `round` is not in it, or no longer: it still waits, or does again."""
        self._feedback.returned(round, attachment)

    def settled(self, round: int, payload: bytes, attachment: bytes = b"") -> None:
        """What was computed on no token at all moved nobody, and goes on waiting."""
        if attachment and self._header(payload).tokens:  # old attachments are gone
            self._feedback.committed(round, attachment)

    def _header(self, payload: bytes) -> Header:
        return decode_header(payload, self.config.inner)[0]

    def _sent_in(self, round: int, attachment: bytes) -> Sent:
        return self._sent(round, self._update(round, attachment))

    # The replicated update

    def weigh(self, payload: bytes) -> int:
        return self.config.weigh(payload)

    def check(self, round: int, payload: bytes, attachment: bytes) -> None:
        self._update(round, attachment)

    def _update(self, round: int, attachment: bytes) -> U:
        """What was checked for a round is not checked again when it is merged."""
        known = self._checked.get((round, attachment))
        if known is None:
            known = self._checked[round, attachment] = self._decode(round, attachment)
        return known

    def merge(self, round: RoundContext, contributions: Sequence[Contribution]) -> None:
        self._settle_own(round, contributions)
        moved = [
            (contribution.attachment, weight)
            for contribution, weight in zip(contributions, self._weigh(contributions), strict=True)
            if weight
        ]
        updates = [self._update(round.round, attachment) for attachment, _ in moved]
        self._move(round, updates, [weight for _, weight in moved])
        self._go_on(round, contributions)

    def _settle_own(self, round: RoundContext, contributions: Sequence[Contribution]) -> None:
        """Before the weights move."""
        self._come_home()
        for own in contributions:
            if own.peer == round.peer:
                self.settled(round.round, own.payload, own.attachment)

    def _weigh(self, contributions: Sequence[Contribution]) -> list[int]:
        """How much each counts; 0: not at all."""
        return token_weights([self._header(c.payload).tokens for c in contributions])

    def _go_on(self, round: RoundContext, contributions: Sequence[Contribution]) -> None:
        """Once they have."""
        self._feed.merge(round, {c.peer: self._header(c.payload).batches for c in contributions})
        self._weights.show()
        self._checked.clear()

    def _come_home(self) -> None:
        if self._deviation is not None:
            self._deviation.come_home()

    # State

    def replicated_state(self) -> dict[str, Tensor]:
        return {
            **self._weights.state(),
            **self._outer_state(),
            **self._outer_integers(),
            **self._feed.replicated_state(),
        }

    def load_replicated_state(self, state: Mapping[str, Tensor]) -> None:
        """Raises ValueError, and leaves everything as it was, when the state is not one of ours."""
        queues, outer = self._feed.queues_in(state), self._outer_state() | self._outer_integers()
        for name, tensor in outer.items():
            new = state[name]
            if new.shape != tensor.shape or new.dtype != tensor.dtype:
                raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}")
        self._come_home()
        self._weights.load(state)
        for name, tensor in outer.items():
            tensor.copy_(state[name])
        self._feed.queues = queues

    def state_digest(self, key: int = 0) -> int:
        counts = self._outer_integers() | self._feed.replicated_state()
        flat = [tensor.flatten() for tensor in counts.values()]
        integers = torch.cat(flat).to(self._weights.device)
        total = self._weights.digest(key)
        for tensor in self._outer_state().values():
            total += self._kernels.digest(tensor, self._size, key)
        # Words of 64-bit numbers are counted in pairs: these lie behind both float vectors.
        return (total + self._kernels.digest(integers, self._size, key)) % 2**64

    def local_state(self) -> dict[str, Tensor]:
        mine = self._feedback.state() | self._feed.local_state()
        if self._deviation is not None:
            mine |= self._deviation.state()
        return mine | self._trainer.local_state()

    def load_local_state(self, state: Mapping[str, Tensor]) -> None:
        """Raises ValueError for what is not ours. An optimizer that was changed since starts anew;
        what waits stays.
        """
        self._feedback.load(state)
        self._feed.load_local_state(state)
        if self._deviation is not None:
            self._deviation.load(state)
        self._trainer.load_local_state(state)
