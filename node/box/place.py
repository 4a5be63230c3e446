"""Which of a peer's processes is this, and who started the others?

Either a person started one process, and it starts the others itself; or torchrun started them all
and says so in their environment. Both ways lead to the same ranks, which know nothing of the
difference.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from node.config import NodeConfig
from node.errors import ConfigError

_DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True, slots=True)
class Place:
    rank: int
    processes: int
    is_torchrun: bool


def place_of(node: NodeConfig, environment: Mapping[str, str] = os.environ) -> Place:
    """Raises ConfigError for settings that suit one process only, or contradict torchrun."""
    if "TORCHELASTIC_RUN_ID" not in environment:
        place = Place(0, node.processes, is_torchrun=False)
    else:
        place = Place(int(environment["RANK"]), int(environment["WORLD_SIZE"]), is_torchrun=True)
        _check_torchrun(node, place, int(environment["LOCAL_WORLD_SIZE"]))
    if place.processes > 1:
        _check(node)
    return place


def _check_torchrun(node: NodeConfig, place: Place, here: int) -> None:
    if here != place.processes:
        raise ConfigError(
            f"torchrun spread this peer's {place.processes} processes over several machines",
            "a peer is one machine: start one on each, with --nnodes 1",
        )
    if node.processes not in (1, place.processes):
        raise ConfigError(
            f"torchrun started {place.processes} processes, and node.processes is {node.processes}",
            "leave out `processes`, or torchrun",
        )


def _check(node: NodeConfig) -> None:
    if node.device not in _DEVICES:
        raise ConfigError(
            f"several processes cannot share the device {node.device!r}",
            "device is cpu, or cuda: then each process takes a GPU of its own",
        )
    if node.optimizer is not None:
        raise ConfigError(
            "an optimizer of this machine's own works with one process only: it may look at whole"
            " tensors, and each process has a share of them",
            "leave out [node.optimizer], or `processes`",
        )
