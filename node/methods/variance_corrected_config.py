"""What a run file says of variance-corrected averaging, and what follows from that alone."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from node.methods.parts.gossip_config import MeetingConfig


class VarianceCorrectedConfig(MeetingConfig):
    """Part of the manifest."""

    name: Literal["variance-corrected"]
    cap: Annotated[float, Field(ge=1, le=100)] = 1.05
    """The most that an exchange stretches a tensor around its mean."""

    def cautions(self) -> Sequence[str]:
        if self.cap > 1.2:
            return [
                f"cap = {self.cap:g}: where models agree in part, so much amplifies what they"
                " disagree on in every exchange"
            ]
        return []
