"""The other ranks of a box: they do what rank 0 tells them, until it is gone.

They have no identity, no disk and no sockets but those that torch.distributed opens between the
ranks. Signals are rank 0's business: it tells us, or ends.
"""

import os
import signal
import sys
import threading
import traceback
from itertools import count
from pathlib import Path
from typing import Any, Final, NoReturn

from node.box.group import Group
from node.box.steps import SharedSteps
from node.build import Workshop
from node.config import NodeConfig
from node.errors import UserError
from node.training.data_config import DataConfig
from node.training.inner import InnerReport
from node.training.inner_config import InnerConfig
from node.training.losses import batch_loss
from node.training.model_config import model_config_adapter

_PARENT_S: Final = 2.0


def follow(rank: int, processes: int, file: Path | None) -> NoReturn:
    """Ends the process. `file`: as in `Group`."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    group = Group(rank, processes, file)
    follower = Follower(group)
    while True:
        try:
            order = group.hear()
        except RuntimeError:  # rank 0 is gone, and so is what was shared out
            os._exit(0)
        try:
            follower.obey(order)
        except UserError:
            continue  # rank 0 knows, and says so


class Follower:
    def __init__(self, group: Group) -> None:
        self._group = group
        self._device = ""
        self._workshop: Workshop | None = None
        self._refusal: UserError | None = None
        self._steps: SharedSteps

    def obey(self, order: dict[str, Any]) -> None:
        match order["do"]:
            case "use":
                self._device = str(self._group.use(order["kind"]))
            case "open":
                self._open(order)
            case "trainer":
                self._share(InnerConfig.model_validate(order["inner"]), order["adds_up"])
            case "work":
                before = InnerReport(**order["before"])
                least = order["least"]
                self._steps.take_round(order["round"], count(), _unasked, before, least)
            case "state":
                self._steps.whole_state()
            case "load":
                self._load(order)
            case other:
                raise AssertionError(f"no such order: {other}")

    def _open(self, order: dict[str, Any]) -> None:
        node = NodeConfig.model_validate({**order["node"], "device": self._device})
        model = model_config_adapter.validate_python(order["model"])
        data = DataConfig.model_validate(order["data"])
        try:
            self._workshop = Workshop.open(model, data, node, Path(order["root"]))
        except UserError as error:
            self._refusal = error

    def _share(self, config: InnerConfig, adds_up: bool) -> None:
        if self._workshop is None:
            self._group.agree(self._refusal)
            return
        module, batch = self._workshop.model.module, self._workshop.data.batch
        self._steps = SharedSteps(config, module, batch_loss, batch, self._group, None, adds_up)

    def _load(self, order: dict[str, Any]) -> None:
        try:
            self._steps.load_whole_state(order["described"], {})
        except ValueError:
            return  # rank 0 finds the same, and says so


def _unasked() -> bool:
    raise AssertionError("rank 0 alone knows the time")


def _end_with_input() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def main() -> None:
    file, rank, processes = sys.argv[1:]
    parent = threading.Thread(target=_end_with_input, name="parent", daemon=True)
    parent.start()
    try:
        follow(int(rank), int(processes), Path(file))
    except BaseException:
        parent.join(_PARENT_S)  # if it is gone, that is why, and nobody need be told
        traceback.print_exc()
        os._exit(1)


if __name__ == "__main__":
    main()
