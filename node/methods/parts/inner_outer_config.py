"""What the settings of all methods of inner steps share."""

from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from node.methods.parts.header import decode_header
from node.training.inner_config import InnerConfig


class InnerOuterConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    inner: InnerConfig = InnerConfig()
    feedback_decay: Annotated[float, Field(ge=0, le=1)] = 1.0
    """What is left, a round later, of what was not sent, and of what missed its round."""

    overlap: bool = False
    """Go on with the next round's steps while a round is exchanged: no peer waits for a line, and
    what the others did is known one exchange late. Takes one more number a weight.
    """

    unit_of_work: ClassVar[str] = "batches"

    def weigh(self, payload: bytes) -> int:
        header, rest = decode_header(payload, self.inner)
        if rest:
            raise ValueError("bytes behind the header")
        return header.batches

    @property
    def ledger_bytes(self) -> None:
        return None
