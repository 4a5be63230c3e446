"""What a run file says of SparseLoCo, and what follows from that alone: reading a manifest and
judging entries take neither a model nor compiled loops.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from node.methods.parts.chunks import CHUNK, CHUNK_MAX, KEPT, Layout
from node.methods.parts.inner_outer_config import InnerOuterConfig
from node.methods.parts.schedule import Schedule


class SparseLocoConfig(InnerOuterConfig):
    """Part of the manifest."""

    name: Literal["sparseloco"]
    learning_rate: Schedule = Schedule(peak="1")
    """Of the update; 1 moves to the peers' average, as far as it was sent."""
    feedback_decay: Annotated[float, Field(ge=0, le=1)] = 0.95
    """As the paper has it: what was never sent is forgotten in the end."""
    chunk: Annotated[int, Field(ge=1, le=CHUNK_MAX)] = CHUNK
    kept: Annotated[int, Field(ge=1, le=CHUNK_MAX)] = KEPT
    """Values sent of each chunk. The more inner steps, the more of them are worth sending."""
    value_bits: Literal[1, 2] = 2
    average: Literal["peers", "senders"] = "peers"
    """Peers seldom send the same place, so the mean over those who sent one is up to as many times
    larger as there are peers: it wants a smaller rate.
    """

    rates: ClassVar[tuple[str, ...]] = ("1", "2", "4")
    """Above 1, because the mean over all peers makes the moves small that few of them sent."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.kept > self.chunk:
            raise ValueError("`kept` is at most `chunk`")
        return self

    def layout(
        self,
        sizes: Sequence[int],  # elements of each trainable parameter
    ) -> Layout:
        return Layout.of(sizes, self.chunk, self.kept, self.value_bits)

    def attachment_bytes_max(self, sizes: Sequence[int]) -> int:
        return self.layout(sizes).bytes_max
