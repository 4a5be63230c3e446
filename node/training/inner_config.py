"""What all peers agree on about the work that each does alone between two exchanges.

Inner work is one machine's own arithmetic: nobody repeats it, so its rates are plain floats.
"""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from node.training.optimizer_config import AdamWConfig, OptimizerConfig, Table

BATCHES_MAX = 1 << 16  # micro-batches of one peer in one round; bounds what a payload may claim


class InnerSchedule(Table):
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


class InnerConfig(Table):
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

    def over(self, rounds: int) -> Self:
        """The same, with a rate that ends its fall, if it falls, after so many rounds."""
        if not self.schedule.decay_rounds:
            return self
        schedule = self.schedule.model_copy(update={"decay_rounds": rounds})
        return self.model_copy(update={"schedule": schedule})

    @property
    def attempts_max(self) -> int:
        """Steps in a round, those counted that are skipped."""
        return self.steps or self.steps_max

    @property
    def attempts_min(self) -> int:
        """Steps that a round takes, however late it is."""
        return self.steps or 1

    @property
    def batches_max(self) -> int:
        """Micro-batches that one peer may consume in a round."""
        return self.attempts_max * self.accumulation
