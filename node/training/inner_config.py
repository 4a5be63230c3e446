"""What all peers agree on about the work that each does alone between two exchanges.

Inner work is one machine's own arithmetic: nobody repeats it, so its rates are plain floats.
"""

import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

BATCHES_MAX = 1 << 16  # micro-batches of one peer in one round; bounds what a payload may claim

Rate = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]
Decay = Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)]
Momentum = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class AdamWConfig(_Table):
    """*Decoupled Weight Decay Regularization*, https://arxiv.org/abs/1711.05101."""

    name: Literal["adamw"] = "adamw"
    lr: Rate = 4e-4
    betas: tuple[Momentum, Momentum] = (0.9, 0.95)
    eps: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 1e-8
    weight_decay: Decay = 0.1
    """Shrinks a weight by `lr * weight_decay` of itself a step."""


class SgdConfig(_Table):
    name: Literal["sgd"]
    lr: Rate
    momentum: Momentum = 0.0


class MuonConfig(_Table):
    """*Muon: An optimizer for hidden layers in neural networks*, https://kellerjordan.github.io/posts/muon/.

    It moves the matrices of hidden layers, by `lr * sqrt(fan_out / fan_in)` times an orthogonal
    matrix. Embeddings, output layers and everything that is not a matrix go by AdamW.
    """

    name: Literal["muon"]
    lr: Rate = 0.02
    momentum: Momentum = 0.95
    weight_decay: Decay = 0.01
    """Shrinks a weight by `lr * weight_decay` of itself a step, whatever its matrix' shape."""
    ns_steps: Annotated[int, Field(ge=1, le=20)] = 5
    """Newton-Schulz iterations: how nearly orthogonal an update is."""
    others: AdamWConfig = AdamWConfig()
    """For what Muon does not move."""
    not_hidden: tuple[str, ...] = ("*embed*", "*lm_head.*", "*score.*", "*classifier.*", "head.*")
    """Name patterns of matrices that go by AdamW, too. Embedding layers need not be named."""


OptimizerConfig = AdamWConfig | SgdConfig | MuonConfig


class InnerSchedule(_Table):
    """A share of the optimizer's learning rate: a linear rise by steps, times a fall by rounds.

    The rise counts this peer's own steps, because a newcomer's optimizer starts empty however old
    the run is. The fall counts rounds, so that all peers are equally far, however fast they are.
    """

    warmup_steps: Annotated[int, Field(ge=0, le=1 << 32)] = 0
    decay: Literal["cosine", "linear"] = "cosine"
    decay_rounds: Annotated[int, Field(ge=0, le=1 << 32)] = 0
    """From round 0; 0 keeps the rate for good."""
    final_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    """After the decay."""

    def share(
        self,
        round: int,
        step: int,  # steps that this peer has taken before, in all rounds
    ) -> float:
        rise = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        return rise * self._fall(round)

    def _fall(self, round: int) -> float:
        if not self.decay_rounds:
            return 1.0
        done = min(1.0, round / self.decay_rounds)
        left = (1 + math.cos(math.pi * done)) / 2 if self.decay == "cosine" else 1 - done
        return self.final_share + (1 - self.final_share) * left


class InnerConfig(_Table):
    """The `[method.inner]` table, part of the manifest."""

    optimizer: Annotated[OptimizerConfig, Field(discriminator="name")] = AdamWConfig()
    schedule: InnerSchedule = InnerSchedule()
    steps: Annotated[int, Field(ge=1, le=BATCHES_MAX)] | None = None
    """H: exactly so many a round, however long they take; left out, as many as the window
    allows.
    """
    steps_max: Annotated[int, Field(ge=1, le=BATCHES_MAX)] = 500
    """At most so many a round, however long the window. Models that stray further from each other
    average worse.
    """
    accumulation: Annotated[int, Field(ge=1, le=BATCHES_MAX)] = 1
    """Micro-batches in a step; one is a `batch` of [data]."""
    clip_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """A gradient that is longer than this is shortened to it; left out, none is."""
    autocast: Literal["bfloat16"] | None = None
    """Multiply in this type. Weights, gradients and the optimizer's state stay float32."""
    checkpoint_activations: bool = False
    """Compute each layer twice instead of keeping what it computed: less memory, a third more
    time.
    """

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.batches_max > BATCHES_MAX:
            raise ValueError(
                f"a round has at most {BATCHES_MAX} micro-batches, and this would be"
                f" {self.batches_max}: lower `accumulation`, or the steps"
            )
        return self

    @property
    def attempts_max(self) -> int:
        """Steps in a round, those counted that are skipped."""
        return self.steps or self.steps_max

    @property
    def batches_max(self) -> int:
        """Micro-batches that one peer may consume in a round."""
        return self.attempts_max * self.accumulation
