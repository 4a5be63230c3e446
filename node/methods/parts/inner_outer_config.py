"""What the settings of all methods of inner steps share."""

from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from node.methods.parts.header import weigh_header
from node.training.inner_config import InnerConfig


class InnerOuterConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    inner: InnerConfig = InnerConfig()
    feedback_decay: Annotated[float, Field(ge=0, le=1)] = 1.0
    """What is left, a round later, of what was not sent, and of what missed its round."""

    unit_of_work: ClassVar[str] = "batches"

    def weigh(self, payload: bytes) -> int:
        return weigh_header(payload, self.inner)

    @property
    def ledger_bytes(self) -> None:
        return None
