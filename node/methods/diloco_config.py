"""What a run file says of DiLoCo, and what follows from that alone."""

from collections.abc import Sequence
from fractions import Fraction
from typing import ClassVar, Literal, Self

from pydantic import model_validator

from node.methods.parts.dense_layout import Bits, DenseLayout
from node.methods.parts.inner_outer_config import InnerOuterConfig
from node.methods.parts.schedule import Decimal, Schedule

_MOMENTUM_MIN = Fraction(1, 1000)  # smaller ones do nothing that could be seen


class DilocoConfig(InnerOuterConfig):
    """Part of the manifest. With `inner.optimizer.name = "muon"` it is MuLoCo."""

    name: Literal["diloco"]
    learning_rate: Schedule = Schedule(peak="0.7")
    """Of the outer step."""
    momentum: Decimal = "0.9"
    """Nesterov's, of the outer step; 0: none."""
    value_bits: Bits = 32
    """Of each element that is sent: 32 and 16 are floats, 8 an integer and 4 a power of two, both
    with a scale for each 4096 of them.
    """

    rates: ClassVar[tuple[str, ...]] = ("0.1", "0.3", "0.7")
    """With so much momentum short rounds want less than the paper's 0.7."""

    @model_validator(mode="after")
    def _momentum_is_one(self) -> Self:
        if self.mu and not _MOMENTUM_MIN <= self.mu < 1:
            raise ValueError("`momentum` is 0, or at least 0.001 and less than 1")
        return self

    @property
    def mu(self) -> Fraction:
        return Fraction(self.momentum)

    def layout(
        self,
        sizes: Sequence[int],  # elements of each trainable parameter
    ) -> DenseLayout:
        return DenseLayout(tuple(sizes), self.value_bits)

    def attachment_bytes_max(self, sizes: Sequence[int]) -> int:
        return self.layout(sizes).bytes
