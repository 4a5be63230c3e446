"""What the settings of all methods of inner steps share."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Self

from pydantic import Field

from node.methods.parts.attaching_config import AttachingConfig
from node.methods.parts.header import weigh_header
from node.training.inner_config import InnerConfig


class InnerOuterConfig(AttachingConfig):
    inner: InnerConfig = InnerConfig()
    feedback_decay: Annotated[float, Field(ge=0, le=1)] = 1.0
    """What is left, a round later, of what was not sent, and of what missed its round."""

    fragments: Annotated[int, Field(ge=1, le=256)] = 1
    """Exchange one part of the model each round, in turns, and each part every so many rounds; what
    a peer did to the others stays with it meanwhile. As many times less is on the line at once.
    """

    steps_well: ClassVar[int] = 500
    """The most inner steps that the method's paper reports on."""

    def weigh(self, payload: bytes) -> int:
        return weigh_header(payload, self.inner)

    def cautions(self) -> Sequence[str]:
        most = self.inner.attempts_max
        if most > self.steps_well:
            return [
                f"up to {most} inner steps a round: the paper trains with up to {self.steps_well};"
                " models that stray further from each other average worse"
            ]
        return []

    @property
    def batches_a_round(self) -> int | None:
        return self.inner.steps and self.inner.batches_max

    def with_steps(self, steps: int) -> Self:
        return self.changed(inner={**self.inner.model_dump(), "steps": steps})

    def with_rounds(self, rounds: int) -> Self:
        return self.changed(inner=self.inner.over(rounds).model_dump())
