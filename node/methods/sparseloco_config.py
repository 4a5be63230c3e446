"""What a run file says of SparseLoCo, and what follows from that alone: reading a manifest and
judging entries take neither a model nor compiled loops.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from node.methods.parts.chunks import CHUNK, CHUNK_MAX, KEPT, Layout
from node.methods.parts.header import decode_header
from node.methods.parts.schedule import Schedule
from node.training.inner_config import InnerConfig


class SparseLocoConfig(BaseModel):
    """Part of the manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["sparseloco"]
    inner: InnerConfig = InnerConfig()
    learning_rate: Schedule = Schedule(peak="1")
    """Of the update; 1 moves to the peers' average, as far as it was sent."""
    feedback_decay: Annotated[float, Field(ge=0, le=1)] = 0.95
    """What is left of the feedback after a round. Below 1 it forgets what was never sent."""
    chunk: Annotated[int, Field(ge=1, le=CHUNK_MAX)] = CHUNK
    kept: Annotated[int, Field(ge=1, le=CHUNK_MAX)] = KEPT
    """Values sent of each chunk. The more inner steps, the more of them are worth sending."""
    value_bits: Literal[1, 2] = 2
    average: Literal["peers", "senders"] = "peers"
    """Peers seldom send the same place, so the mean over those who sent one is up to as many times
    larger as there are peers: it wants a smaller rate.
    """

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

    unit_of_work: ClassVar[str] = "batches"

    def weigh(self, payload: bytes) -> int:
        header, rest = decode_header(payload, self.inner)
        if rest:
            raise ValueError("bytes behind the header")
        return header.batches

    def attachment_bytes_max(self, sizes: Sequence[int]) -> int:
        return self.layout(sizes).bytes_max

    @property
    def ledger_bytes(self) -> None:
        return None
