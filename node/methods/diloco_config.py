"""What a run file says of DiLoCo, and what follows from that alone."""

from collections.abc import Sequence
from fractions import Fraction
from math import prod
from typing import ClassVar, Final, Literal, Self

from pydantic import model_validator

from node.methods.parts.dense_layout import CUT_BYTES, Bits, DenseLayout
from node.methods.parts.fragments import cut
from node.methods.parts.inner_outer_config import InnerOuterConfig
from node.methods.parts.schedule import Decimal, Schedule
from protocol.codec import CHUNK_BYTES, PARTS_MAX

_MOMENTUM_MIN = Fraction(1, 1000)  # smaller ones do nothing that could be seen
_LIMIT_MIN = Fraction(1, 10**9)  # far above what `outer_step` takes for nothing

_GAIN_WELL: Final = 10


class DilocoConfig(InnerOuterConfig):
    """Part of the manifest. With `inner.optimizer.name = "muon"` it is MuLoCo."""

    name: Literal["diloco"]
    learning_rate: Schedule = Schedule(peak="0.7")
    """Of the outer step."""
    momentum: Decimal = "0.9"
    """Nesterov's, of the outer step; 0: none."""
    momentum_clip: Decimal = "0"
    """No element of the momentum grows beyond this; 0: no limit."""
    gap_penalty: Decimal = "1"
    """What a round's contributions come to is divided by this before the momentum takes it in.
    Those of peers that overlap do not know of each other's last moves yet.
    """
    value_bits: Bits = 32
    """Of each element that is sent: 32 and 16 are floats, 8 an integer and 4 a power of two, both
    with a scale for each 4096 of them.
    """

    reduce_scatter: bool = True
    """Each part of what is sent is summed by one peer for all, so that a peer's traffic is about
    twice its own contribution, whatever the number of peers. Sums are coded as contributions are.
    Contributions so small that they are one chunk go to everybody all the same.
    """

    rates: ClassVar[tuple[str, ...]] = ("0.1", "0.3", "0.7")
    """With so much momentum short rounds want less than the paper's 0.7."""
    sums: ClassVar[bool] = True

    @model_validator(mode="after")
    def _momentum_is_one(self) -> Self:
        if self.mu and not _MOMENTUM_MIN <= self.mu < 1:
            raise ValueError("`momentum` is 0, or at least 0.001 and less than 1")
        return self

    @model_validator(mode="after")
    def _gap_is_bounded(self) -> Self:
        if self.penalty < 1:
            raise ValueError("`gap_penalty` is at least 1")
        if self.limit is not None and not self.mu:
            raise ValueError("`momentum_clip` is for runs with a momentum")
        if self.limit is not None and self.limit < _LIMIT_MIN:
            raise ValueError("`momentum_clip` is 0, or at least 1e-9")
        return self

    @property
    def limit(self) -> Fraction | None:
        return Fraction(self.momentum_clip) or None

    @property
    def penalty(self) -> Fraction:
        return Fraction(self.gap_penalty)

    @property
    def mu(self) -> Fraction:
        return Fraction(self.momentum)

    def cautions(self) -> Sequence[str]:
        found = list(super().cautions())
        if self.value_bits < 16 and not self.feedback_decay:
            found.append(
                f"feedback_decay = 0 with {self.value_bits} bits: what rounding takes away is lost"
            )
        gain = Fraction(self.learning_rate.peak) / (1 - self.mu)
        if gain > _GAIN_WELL:
            found.append(
                f"rate {self.learning_rate.peak} with momentum {self.momentum}: in the long run"
                f" each move counts {float(gain):.0f} times (the paper's 0.7 with 0.9: 7)"
            )
        return found

    def layout(
        self,
        sizes: Sequence[int],  # elements of each trainable parameter
    ) -> DenseLayout:
        return DenseLayout(tuple(sizes), self.value_bits)

    def attachment_bytes_max(self, shapes: Sequence[Sequence[int]]) -> int:
        return self._bytes_max(shapes) + CUT_BYTES * PARTS_MAX  # a run file may want any number

    def parts_max(self, shapes: Sequence[Sequence[int]]) -> int:
        chunks = -(-self._bytes_max(shapes) // CHUNK_BYTES)
        return min(PARTS_MAX, chunks) if self.reduce_scatter and chunks > 1 else 0

    def _bytes_max(self, shapes: Sequence[Sequence[int]]) -> int:
        fragments = cut([prod(shape) for shape in shapes], self.fragments)
        return max(self.layout(one.sizes).bytes for one in fragments)
