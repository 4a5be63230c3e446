"""Inner steps: what one peer does on its own machine between two exchanges.

An ordinary training loop, with three differences. It stops when the round's time is up, in the
middle of a step if need be. It never lets a number that is not finite reach the weights. And its
optimizer lives on from round to round, although the exchange overwrites the weights in between: its
state is this peer's own, never averaged and never reset (*DiLoCo*,
https://arxiv.org/abs/2311.08105, section 2).

Gradients of embeddings may be sparse; they are made dense, as all exchanges are. What the peers
hold together are float32 weights; `autocast` is for those who want faster arithmetic.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from node.errors import ConfigError
from node.training.checkpointing import checkpointed, stacked_layers
from node.training.inner_config import InnerConfig
from node.training.inner_optimizer import InnerOptimizer
from node.training.losses import Batch
from node.training.modes import training
from node.training.optimizer_config import OwnOptimizer
from node.training.optimizers import builder
from node.training.own_optimizer import own_builder

SKIPS_MAX = 3  # in a row; then the round's work ends
_STEPS = "inner.steps"


@dataclass(frozen=True, slots=True)
class InnerReport:
    """What a round's inner work came to."""

    steps: int  # that moved the weights
    batches: int  # micro-batches consumed: the first so many slots
    tokens: int  # that moved the weights (texts, where each has one label)
    loss: float | None  # mean over the consumed micro-batches; None when none was finite
    skipped: int  # steps not taken, because their loss or gradient was not finite
    finite: int = 0  # micro-batches with a loss

    @property
    def attempts(self) -> int:
        return self.steps + self.skipped


NOTHING: Final = InnerReport(0, 0, 0, None, 0)


class Stepper(Protocol):
    """What `InnerOptimizer` does."""

    def step(self, share: float) -> None: ...

    def state(self) -> dict[str, Tensor]: ...

    def load(self, state: Mapping[str, Tensor]) -> None: ...


class InnerWork(Protocol):
    """What takes a peer's inner steps: this process alone, or several."""

    def work(
        self,
        round: int,
        slots: Iterator[int],
        expired: Callable[[], bool],
        before: InnerReport = NOTHING,
        least: int | None = None,
    ) -> InnerReport:
        """Inner steps from the weights that the model holds, in place."""
        ...

    def local_state(self) -> dict[str, Tensor]: ...

    def load_local_state(self, state: Mapping[str, Tensor]) -> None: ...


class InnerTrainer:
    def __init__(
        self,
        config: InnerConfig,
        model: nn.Module,  # in eval mode, on its device; steps move it in place
        loss: Callable[[nn.Module, Batch], Tensor],  # scalar: the mean over a micro-batch
        batch: Callable[[int], Batch],  # of a slot
        own: OwnOptimizer | None = None,  # instead of the one in `config`
        optimizer: Stepper | None = None,  # instead of both
    ) -> None:
        """Raises ConfigError when the model cannot be trained so, or `own` makes no optimizer for
        it.
        """
        self.config = config
        self._model, self._loss, self._batch = model, loss, batch
        named = trained_parameters(model)
        self._device = named[0][1].device
        self._layers = stacked_layers(model) if config.checkpoint_activations else []
        if optimizer is None:
            build = builder(config.optimizer, model) if own is None else own_builder(own)
            optimizer = InnerOptimizer(build, named)
        self._optimizer = optimizer
        self._named = named
        self._steps = 0  # taken in all rounds

    def work(
        self,
        round: int,
        slots: Iterator[int],
        expired: Callable[[], bool],
        before: InnerReport = NOTHING,  # of the same round's work, which this goes on with
        least: int | None = None,  # steps, however late it is; None: what the settings say
    ) -> InnerReport:
        """Inner steps from the weights that the model holds, in place; reports them together with
        those `before`.

        It ends when the round has as many as the settings allow, or when `expired()`, which is
        asked before each micro-batch once there are `least`. A step that is not whole then is
        dropped, and its slots are not consumed.
        """
        least = self.config.attempts_min if least is None else least
        tally = _Tally.of(before)
        with self._at_work():
            for attempt in range(before.attempts, self.config.attempts_max):
                seen = self._accumulate(slots, expired if attempt >= least else _never)
                if seen is None:
                    break
                is_usable = seen.is_finite and self._clip()
                if is_usable:
                    self._optimizer.step(self.config.schedule.share(round, self._steps))
                    self._steps += 1
                self._model.zero_grad(set_to_none=True)
                tally.add(seen, is_usable)
                if tally.in_a_row == SKIPS_MAX:
                    break
        return tally.report()

    def local_state(self) -> dict[str, Tensor]:
        """The optimizer's state by parameter name, and the count of steps: live, not copies."""
        return {**self._optimizer.state(), **self.step_count()}

    def step_count(self) -> dict[str, Tensor]:
        """The part of `local_state` that is not the optimizer's."""
        return {_STEPS: torch.tensor([self._steps])}

    def load_local_state(self, state: Mapping[str, Tensor]) -> None:
        """Raises ValueError, and leaves everything as it was, when the state is not of this
        optimizer and this model. Names that do not begin with `inner.` are left alone.
        """
        steps = state.get(_STEPS)
        if steps is None or steps.dtype != torch.int64 or steps.shape != (1,) or int(steps) < 0:
            raise ValueError(f"{_STEPS} is one int64, and not negative")
        self._optimizer.load(state)
        self._steps = int(steps)

    # One step

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        with training(self._model), checkpointed(self._layers):
            yield

    def _accumulate(self, slots: Iterator[int], expired: Callable[[], bool]) -> "Seen | None":
        """Gradients of one step. None when time or slots ran out before it was whole; cut short by
        a loss that is not finite.
        """
        seen = Seen()
        for _ in range(self.config.accumulation):
            if expired():
                return None
            slot = next(slots, None)
            if slot is None:
                return None
            seen.add(*self._backward(self._batch(slot).to(self._device)))
            if not seen.is_finite:
                break
        return seen

    def _backward(self, batch: Batch) -> tuple[float, int]:
        """A micro-batch' loss and tokens. Reading the loss waits for the device: without that, the
        loop would run ahead of it, and of the window.
        """
        with torch.autocast(self._device.type, torch.bfloat16, self.config.autocast is not None):
            loss = self._loss(self._model, batch)
        (loss / self.config.accumulation).backward()  # type: ignore[no-untyped-call]
        return float(loss.detach()), batch.targets.numel()

    def _clip(self) -> bool:
        """Make the gradient dense and not too long. False when it is not finite."""
        parameters = [p for _, p in self._named]
        for parameter in parameters:
            if parameter.grad is not None and parameter.grad.is_sparse:
                parameter.grad = parameter.grad.to_dense()
        norm = self._norm()
        if not math.isfinite(norm):
            return False
        if self.config.clip_norm is not None:
            clip_grads_with_norm_(parameters, self.config.clip_norm, norm)
        return True

    def _norm(self) -> Tensor:
        return get_total_norm([p.grad for _, p in self._named if p.grad is not None])


def trained_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """What inner steps move, by name; tied ones once, empty ones not at all.

    Raises ConfigError when there is none, or when small steps would be lost in its type.
    """
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad and p.numel()]
    if not named:
        raise ConfigError("no parameter is trainable", "widen `trainable` in [model]")
    for name, parameter in named:
        if parameter.dtype not in (torch.float32, torch.float64):
            raise ConfigError(
                f"{name} is {parameter.dtype}, in which small steps are lost",
                'set dtype = "fp32" in [model], and autocast = "bfloat16" in [method.inner]',
            )
    return named


def _never() -> bool:
    return False


@dataclass(slots=True)
class Seen:
    """The micro-batches of one step."""

    batches: int = 0
    tokens: int = 0
    finite: int = 0  # micro-batches whose loss is
    loss: float = 0.0  # the sum over those

    @property
    def is_finite(self) -> bool:
        return self.finite == self.batches

    def add(self, loss: float, tokens: int) -> None:
        self.batches += 1
        self.tokens += tokens
        if math.isfinite(loss):
            self.finite += 1
            self.loss += loss


@dataclass(slots=True)
class _Tally:
    """The steps of one round."""

    steps: int = 0
    batches: int = 0
    tokens: int = 0
    skipped: int = 0
    in_a_row: int = 0  # skipped
    _loss: float = 0.0
    _finite: int = 0  # micro-batches

    def add(self, seen: Seen, is_usable: bool) -> None:
        self.batches += seen.batches
        self._loss += seen.loss
        self._finite += seen.finite
        if is_usable:
            self.steps += 1
            self.tokens += seen.tokens
            self.in_a_row = 0
        else:
            self.skipped += 1
            self.in_a_row += 1

    @classmethod
    def of(cls, before: InnerReport) -> "_Tally":
        loss = 0.0 if before.loss is None else before.loss * before.finite
        counts = before.steps, before.batches, before.tokens, before.skipped
        return cls(*counts, _loss=loss, _finite=before.finite)

    def report(self) -> InnerReport:
        loss = self._loss / self._finite if self._finite else None
        return InnerReport(self.steps, self.batches, self.tokens, loss, self.skipped, self._finite)
