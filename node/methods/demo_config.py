"""What a run file says of DeMo and its relatives, and what follows from that alone."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from node.methods.parts.attaching_config import AttachingConfig
from node.methods.parts.header import weigh_header
from node.methods.parts.schedule import Decimal, Schedule
from node.methods.parts.tiles import SIDE_MAX, CoefficientLayout, Values
from node.training.gradient_config import GradientConfig
from node.training.inner_config import InnerConfig


class DemoConfig(AttachingConfig):
    """Part of the manifest."""

    name: Literal["demo"]
    learning_rate: Schedule = Schedule(peak="0.002")
    """Of the update. With `update = "sign"` it is how far each weight moves in a round."""
    weight_decay: Decimal = "0"
    """The share of each weight that a round takes away, times the learning rate."""
    momentum: Annotated[float, Field(ge=0, le=1)] = 0.999
    """What is left, a round later, of what was not sent, and of what missed its round."""
    replicator: Literal["dct", "random", "striding", "slicing", "full"] = "dct"
    """What of the momentum is sent: the largest coefficients of each tile's cosine transform; or
    one weight's in `one_in`, as a mask says that all can derive, so that no positions travel; or
    everything.
    """
    tile: Annotated[int, Field(ge=1, le=SIDE_MAX)] = SIDE_MAX
    """The longest side of a tile, for `dct`."""
    kept: Annotated[int, Field(ge=1, le=SIDE_MAX**2)] = 32
    """Coefficients sent of each whole tile, for `dct`."""
    one_in: Annotated[int, Field(ge=1, le=1 << 16)] = 16
    """For `random`, `striding` and `slicing`."""
    values: Values = "sign"
    """What travels of each: a sign, or an integer of 8 bits with a scale for each tensor."""
    update: Literal["sign", "magnitude"] = "sign"
    """Each weight moves by the learning rate, or by the learning rate times the momentum that was
    sent.
    """
    average: Literal["senders", "peers"] = "senders"
    """A coefficient's mean over those who sent it, or over all. Peers seldom send the same ones."""
    gradient: GradientConfig = GradientConfig()

    rates: ClassVar[tuple[str, ...]] = ("0.001", "0.002", "0.004", "0.008")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.kept > self.tile**2:
            raise ValueError("`kept` is at most the square of `tile`")
        if Fraction(self.learning_rate.peak) * Fraction(self.weight_decay) >= 1:
            raise ValueError("`weight_decay` times the learning rate is less than 1")
        return self

    @property
    def inner(self) -> InnerConfig:
        return self.gradient.inner

    @property
    def fragments(self) -> int:
        """A sign of each part in turns would be another method."""
        return 1

    @property
    def feedback_decay(self) -> float:
        """What waits is the momentum."""
        return self.momentum

    def weigh(self, payload: bytes) -> int:
        return weigh_header(payload, self.inner)

    def layout(
        self,
        shapes: Sequence[Sequence[int]],  # of each trainable parameter
    ) -> CoefficientLayout:
        if self.replicator == "dct":
            return CoefficientLayout.tiled(shapes, self.tile, self.kept, self.values)
        one_in = 1 if self.replicator == "full" else self.one_in
        return CoefficientLayout.strided(shapes, one_in, self.values)

    def attachment_bytes_max(self, shapes: Sequence[Sequence[int]]) -> int:
        return self.layout(shapes).bytes_max

    @property
    def batches_a_round(self) -> int | None:
        return self.gradient.batches

    def with_steps(self, steps: int) -> Self:
        """A round is one step, of one batch unless the settings say how many."""
        if self.gradient.batches:
            return self
        return self.changed(gradient={**self.gradient.model_dump(), "batches": 1})
