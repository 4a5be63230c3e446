"""What a run file says of stochastic gradient push."""

from typing import ClassVar, Literal

from node.methods.parts.gossip_config import GossipConfig, Kind


class PushSumConfig(GossipConfig):
    """Part of the manifest."""

    name: Literal["push-sum"]
    pairing: Literal["exponential", "random"] = "exponential"
    """To whom each sends half of what it has. `exponential`: 1, 2, 4, ... places further in an
    order that the run fixes, in turns. `random`: to one that it draws.
    """

    exact: ClassVar[int] = 1

    @property
    def kind(self) -> Kind:
        return self.pairing
