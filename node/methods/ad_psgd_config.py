"""What a run file says of AD-PSGD, and what follows from that alone."""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from node.methods.parts.gossip_config import GossipConfig


class DadaoConfig(BaseModel):
    """DADAO's momentum. Its proof, and the constants that follow from these numbers, are for
    strongly convex and smooth functions and plain gradients: for a linear model, not for a network,
    where there is no `convexity` to write here.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    smoothness: Annotated[float, Field(gt=0, le=1e9)]
    """L: no gradient changes faster than this along any line."""
    convexity: Annotated[float, Field(gt=0, le=1e9)]
    """mu: each function grows at least so fast, quadratically, from its lowest point."""
    connectivity: Annotated[float, Field(ge=0.5, le=1e6)] = 1.0
    """chi: how slowly the graph mixes; about 1 where anybody may meet anybody."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.convexity > self.smoothness:
            raise ValueError("`convexity` is at most `smoothness`")
        return self


class AdPsgdConfig(GossipConfig):
    """Part of the manifest."""

    name: Literal["ad-psgd"]
    clock: Literal["ready", "poisson"] = "ready"
    """When a peer is. `ready`: after its inner steps. `poisson`: after a time that is drawn, with
    the time of its inner steps as the mean; what is right for theory, and no faster.
    """
    dadao: DadaoConfig | None = None
    """Momentum that is proved for strongly convex functions only; left out for networks."""

    @property
    def kind(self) -> None:
        return None

    def cautions(self) -> Sequence[str]:
        if self.dadao is not None:
            return [
                "dadao: its constants are proved for strongly convex, smooth functions; a network"
                " is neither, and inner optimizers other than plain gradients are not used"
            ]
        return []
