"""Learning rates as exact fractions of the round number: every peer computes the same one."""

from fractions import Fraction
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def _as_text(value: object) -> object:
    return repr(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _decimal(value: str) -> str:
    exact = Fraction(value)
    if not 0 <= exact <= 1000 or 0 < exact < Fraction(1, 10**15):
        raise ValueError("should be 0, or lie between 1e-15 and 1000")
    return value


Decimal = Annotated[str, BeforeValidator(_as_text), AfterValidator(_decimal)]
"""A number that means exactly what is written: 0.1 is one tenth. Kept as text."""


class Schedule(BaseModel):
    """Constant, or a linear rise and a linear fall."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    peak: Decimal
    warmup_rounds: Annotated[int, Field(ge=0)] = 0
    decay_rounds: Annotated[int, Field(ge=0)] = 0
    """From the end of the warm-up; 0 keeps the peak for good."""
    final_share: Decimal = "0"
    """Of the peak, after the decay."""

    @model_validator(mode="after")
    def _positive(self) -> Self:
        if not Fraction(self.peak):
            raise ValueError("a learning rate is above 0")
        if Fraction(self.final_share) > 1:
            raise ValueError("`final_share` is at most 1")
        return self

    def rate(self, round: int) -> Fraction:
        peak = Fraction(self.peak)
        if round < self.warmup_rounds:
            return peak * (round + 1) / self.warmup_rounds
        if not self.decay_rounds:
            return peak
        done = min(Fraction(1), Fraction(round - self.warmup_rounds, self.decay_rounds))
        return peak * (1 - done * (1 - Fraction(self.final_share)))
