"""What the settings of all methods share that send the largest few of each chunk."""

from collections.abc import Sequence
from math import prod
from typing import Annotated, ClassVar, Final, Literal, Self

from pydantic import Field, model_validator

from node.methods.parts.chunks import CHUNK, CHUNK_MAX, KEPT, Layout
from node.methods.parts.fragments import cut
from node.methods.parts.inner_outer_config import InnerOuterConfig
from node.methods.parts.schedule import Schedule

_DENSE: Final = 2  # a kept value costs some 4 bits there, with the place that it takes


class SparseConfig(InnerOuterConfig):
    learning_rate: Schedule = Schedule(peak="1")
    """Of the update; 1 moves to the peers' average, as far as it was sent."""
    chunk: Annotated[int, Field(ge=1, le=CHUNK_MAX)] = CHUNK
    kept: Annotated[int, Field(ge=1, le=CHUNK_MAX)] = KEPT
    """Values sent of each chunk. The more inner steps, the more of them are worth sending."""
    value_bits: Literal[1, 2] = 2

    steps_well: ClassVar[int] = 100

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.kept > self.chunk:
            raise ValueError("`kept` is at most `chunk`")
        return self

    def cautions(self) -> Sequence[str]:
        found = list(super().cautions())
        if self.kept * _DENSE >= self.chunk:
            found.append(
                f"kept = {self.kept} of {self.chunk}: so much costs as many bytes as `diloco` with"
                " value_bits = 4, which leaves nothing out"
            )
        return found

    def layout(
        self,
        sizes: Sequence[int],  # elements of each trainable parameter
    ) -> Layout:
        return Layout.of(sizes, self.chunk, self.kept, self.value_bits)

    def attachment_bytes_max(self, shapes: Sequence[Sequence[int]]) -> int:
        parts = cut([prod(shape) for shape in shapes], self.fragments)
        return max(self.layout(part.sizes).bytes_max for part in parts)
