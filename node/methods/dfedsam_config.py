"""What a run file says of DFedSAM, and what follows from that alone."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from node.methods.parts.gossip_config import MeetingConfig


class DFedSamConfig(MeetingConfig):
    """Part of the manifest."""

    name: Literal["dfedsam"]
    radius: Annotated[float, Field(ge=0, le=10)] = 0.05
    """rho: how far away gradients are taken; 0: right here, which is decentralized FedAvg."""
    gossip_steps: Annotated[int, Field(ge=1, le=32)] = 2
    """Q: meetings after each round's steps, one after the other."""

    @property
    def exchanges_a_round(self) -> int:
        return self.gossip_steps

    def cautions(self) -> Sequence[str]:
        if self.radius:
            return ["each step takes two gradients of one batch: twice the time of other methods"]
        return []
