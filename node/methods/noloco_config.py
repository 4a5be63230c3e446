"""What a run file says of NoLoCo, and what follows from that alone."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Final, Literal, Self

from pydantic import Field

from node.methods.parts.chunks import CHUNK
from node.methods.parts.gossip_config import MeetingConfig

_GAIN_WELL: Final = 2.0


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
    has no spring there. More than 1 wants a small `stretch`, and is of use with `kept`: otherwise a
    peer sends one vector for both, whole.
    """

    rates: ClassVar[tuple[str, ...]] = ("0.3", "0.5", "0.7", "1")

    @property
    def coded(self) -> int:
        """Moves and slow weights are one vector if they are sent alike."""
        return 1 if self.kept is None and self.slow_every == 1 else 2

    @property
    def sparse_kept(self) -> int | None:
        return self.kept

    @property
    def turns(self) -> int:
        return self.slow_every

    def vectors_due(self, stretch: int, turn: int) -> int:
        return self.coded if (stretch + turn) % self.slow_every == 0 else 1

    @property
    def spring_max(self) -> float:
        """With more, slow weights of many peers that meet n by n at random drift apart by the very
        exchanges: then the second moments of (phi, m), which one exchange maps linearly, grow. The
        map is singular less the identity at gamma = 2 n (1 - mu^2) / (n - mu (n - 2)); for pairs,
        2 (1 - mu^2).
        """
        n, mu = self.meeting_size, self.momentum
        return 2 * n * (1 - mu * mu) / (n - mu * (n - 2))

    def cautions(self) -> Sequence[str]:
        found = []
        if not self.spring:
            found.append("spring = 0: nothing pulls slow weights together, and they part for good")
        if self.spring >= self.spring_max:
            found.append(
                f"spring = {self.spring:g} with momentum {self.momentum:g} is too much: exchanges"
                f" themselves drive models apart from {self.spring_max:.2g} on"
            )
        gain = self.learning_rate / (1 - self.momentum)
        if gain > _GAIN_WELL:
            found.append(
                f"rate {self.learning_rate:g} with momentum {self.momentum:g}: in the long run each"
                f" move counts {gain:.1f} times, over some {1 / (1 - self.momentum):.0f} exchanges;"
                " with few of those it overshoots (the paper's 0.7 with 0.5: 1.4 times)"
            )
        return found

    def with_rate(self, rate: str) -> Self:
        return self.changed(learning_rate=float(rate))
