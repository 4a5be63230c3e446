"""What the settings of all methods of inner steps share."""

from typing import Annotated, ClassVar, Self

from pydantic import Field

from node.methods.parts.header import decode_header
from node.methods.parts.tuned import TunedConfig
from node.training.inner_config import InnerConfig


class InnerOuterConfig(TunedConfig):
    inner: InnerConfig = InnerConfig()
    feedback_decay: Annotated[float, Field(ge=0, le=1)] = 1.0
    """What is left, a round later, of what was not sent, and of what missed its round."""

    unit_of_work: ClassVar[str] = "batches"

    def weigh(self, payload: bytes) -> int:
        header, rest = decode_header(payload, self.inner)
        if rest:
            raise ValueError("bytes behind the header")
        return header.batches

    @property
    def ledger_bytes(self) -> None:
        return None

    @property
    def batches_a_round(self) -> int | None:
        return self.inner.steps and self.inner.batches_max

    def with_steps(self, steps: int) -> Self:
        return self.changed(inner={**self.inner.model_dump(), "steps": steps})

    def with_rounds(self, rounds: int) -> Self:
        return self.changed(inner=self.inner.over(rounds).model_dump())
