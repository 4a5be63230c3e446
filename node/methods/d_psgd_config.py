"""What a run file says of D-PSGD."""

from typing import Literal

from node.methods.parts.gossip_config import MeetingConfig


class DPsgdConfig(MeetingConfig):
    """Part of the manifest."""

    name: Literal["d-psgd"]
