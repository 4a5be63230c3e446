"""What a run file says of NoLoCo, and what follows from that alone."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field

from node.methods.parts.chunks import CHUNK
from node.methods.parts.gossip_config import MeetingConfig


class NoLoCoConfig(MeetingConfig):
    """Part of the manifest."""

    name: Literal["noloco"]
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 0.7
    """alpha, of the mean move of who meets."""
    spring: Annotated[float, Field(ge=0, le=1)] = 0.7
    """gamma, of how far slow weights are apart; the paper's code has the rate's value."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """mu, heavy-ball unless `nesterov`."""

    nesterov: bool = False
    """Nesterov's momentum, as DiLoCo has it, and a spring between where momenta lead, in place of
    the paper's heavy ball and spring.
    """

    kept: Annotated[int, Field(ge=1, le=CHUNK)] | None = None
    """Of each 4096 elements of a move so many are sent, at two bits and their places; what is not
    sent stays in the peer's own model, and in its next move. Left out, all are sent.
    """
    slow_every: Annotated[int, Field(ge=1, le=256)] = 1
    """Slow weights go with a stretch in every so many exchanges, in turns; without them a meeting
    has no spring there. More than 1 wants a small `stretch`.
    """

    coded: ClassVar[int] = 2
    rates: ClassVar[tuple[str, ...]] = ("0.3", "0.5", "0.7", "1")

    @property
    def sparse_kept(self) -> int | None:
        return self.kept

    @property
    def turns(self) -> int:
        return self.slow_every

    def vectors_due(self, stretch: int, turn: int) -> int:
        return 2 if (stretch + turn) % self.slow_every == 0 else 1

    def cautions(self) -> Sequence[str]:
        if not self.spring:
            return ["spring = 0: nothing pulls slow weights together, and they part for good"]
        return []

    def with_rate(self, rate: str) -> Self:
        return self.changed(learning_rate=float(rate))
