"""What the settings of all methods have in common for a comparison (`base.Tunable`)."""

from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict

from node.methods.parts.schedule import Schedule


class TunedConfig(BaseModel):
    """Settings with a rate of everyone's update. What has inner steps says how many."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    learning_rate: Schedule

    rates: ClassVar[tuple[str, ...]] = ()
    from_scratch: ClassVar[bool] = True
    gossips: ClassVar[bool] = False
    sums: ClassVar[bool] = False

    def with_rate(self, rate: str) -> Self:
        return self.changed(learning_rate={"peak": rate})

    def with_rounds(self, rounds: int) -> Self:
        return self

    def changed(self, **changes: Any) -> Self:  # noqa: ANN401 - as a run file may hold them
        """With other values for some keys, checked. Raises ValidationError."""
        return type(self).model_validate({**self.model_dump(), **changes})
