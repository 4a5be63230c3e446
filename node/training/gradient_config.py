"""What all peers agree on about the gradient that each computes for a round, where a round is one
step of all.
"""

from typing import Annotated, Literal

from pydantic import Field

from node.training.inner_config import BATCHES_MAX, InnerConfig
from node.training.optimizer_config import Table


class GradientConfig(Table):
    """The `[method.gradient]` table, part of the manifest."""

    batches: Annotated[int, Field(ge=1, le=BATCHES_MAX)] | None = None
    """Exactly so many a round, each a `batch` of [data], however long they take; left out, as many
    as the window allows.
    """
    batches_max: Annotated[int, Field(ge=1, le=BATCHES_MAX)] = 1024
    """At most so many a round, however long the window."""
    clip_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = 1.0
    """A mean gradient that is longer than this is shortened to it, before it joins the momentum, as
    in the paper's runs: in the first rounds a long one would outlast many others there.
    """
    autocast: Literal["bfloat16"] | None = None
    """Multiply in this type. Weights and gradients stay float32."""
    checkpoint_activations: bool = False
    """Compute each layer twice instead of keeping what it computed: less memory, a third more
    time.
    """

    @property
    def inner(self) -> InnerConfig:
        """The same as inner steps that move nothing: one for each batch."""
        return InnerConfig(
            steps=self.batches,
            steps_max=self.batches_max,
            autocast=self.autocast,
            checkpoint_activations=self.checkpoint_activations,
        )
