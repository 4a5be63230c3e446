"""Rank 0's side of a box: it tells the others what to do, and does it with them."""

import copy
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from node.box.errors import BoxError
from node.box.group import Group
from node.box.launch import Launcher
from node.box.place import Place
from node.box.steps import SharedSteps
from node.config import NodeConfig
from node.errors import ConfigError
from node.training.data_config import DataConfig
from node.training.inner import NOTHING, InnerReport, Stepper
from node.training.inner_config import InnerConfig
from node.training.losses import Batch
from node.training.model_config import AnyModel

_LOSS_S: Final = 5.0  # a broken connection is noticed a little before the process that broke it
_STATE: Final = "inner."


class Box:
    """`device`: rank 0's own."""

    def __init__(self, place: Place, kind: str, lost: Callable[[BaseException], None]) -> None:
        """Starts the others, unless torchrun has, and waits for them. `kind`: `cpu` or `cuda`;
        `lost` is called on a thread when one of them ends before `close`. Raises ConfigError.
        """
        if kind == "cuda" and torch.cuda.device_count() < place.processes:
            raise ConfigError(
                f"this machine has {torch.cuda.device_count()} GPUs for {place.processes}"
                " processes",
                "set `processes` in [node] to the number of GPUs",
            )
        self.processes = place.processes
        self._lock = threading.Lock()  # the others do one thing after the other
        self._launcher = None if place.is_torchrun else Launcher(place.processes, lost)
        try:
            self.group = self._meet(place)
            with self.together():
                self.group.tell({"do": "use", "kind": kind})
                self.device = self.group.use(kind)
        except BaseException:
            self.close()
            raise

    def _meet(self, place: Place) -> Group:
        file = None if self._launcher is None else self._launcher.file
        with self.together():
            return Group(0, place.processes, file, self._check_others)

    def _check_others(self) -> None:
        loss = None if self._launcher is None else self._launcher.loss(0)
        if loss is not None:
            raise loss

    @contextmanager
    def together(self) -> Iterator[None]:
        """Inside, all ranks are at work. Raises BoxError when one of them ended."""
        try:
            with self._lock:
                yield
        except RuntimeError as error:
            loss = None if self._launcher is None else self._launcher.loss(_LOSS_S)
            if loss is not None:
                raise loss from error
            is_lost = isinstance(error, dist.DistError) or "gloo" in str(error)
            if self._launcher is None and is_lost:
                raise BoxError.unreachable(error) from error
            raise

    def open(self, model: AnyModel, data: DataConfig, node: NodeConfig, root: Path) -> None:
        """The others begin to load model and data."""
        order = {
            "do": "open",
            "model": model.model_dump(mode="json"),
            "data": data.model_dump(mode="json"),
            "node": node.model_dump(mode="json"),
            "root": str(root.resolve()),
        }
        with self.together():
            self.group.tell(order)

    def trainer(
        self,
        config: InnerConfig,
        model: nn.Module,
        loss: Callable[[nn.Module, Batch], Tensor],
        batch: Callable[[int], Batch],
        gradient: Stepper | None = None,
    ) -> "BoxTrainer":
        """Of one method; a box has one."""
        return BoxTrainer(self, config, model, loss, batch, gradient)

    def close(self) -> None:
        """The others end. Those of torchrun do when this process does."""
        if self._launcher is not None:
            self._launcher.close()


class BoxTrainer:
    """An `InnerTrainer` of all ranks.

    The model that it is given stays whole, on rank 0: from it the shares are filled before a
    round's steps, and it takes what they came to after them. The replicated state is whole on rank
    0 in any case; so the held-out loss and `peer generate` need none of the others.

    A method that wants gradients instead of steps gives what adds them up, `MeanGradient`: each
    rank has one of its own for its shares, and the method's has what they came to.
    """

    def __init__(
        self,
        box: Box,
        config: InnerConfig,
        model: nn.Module,
        loss: Callable[[nn.Module, Batch], Tensor],
        batch: Callable[[int], Batch],
        gradient: Stepper | None = None,
    ) -> None:
        self.config, self._box, self._gradient = config, box, gradient
        try:
            twin = copy.deepcopy(model)
        except Exception as error:
            raise ConfigError(
                f"the model cannot be copied, so it cannot be shared out: {error}",
                "leave out `processes` in [node]: one process can train it",
            ) from error
        with box.together():
            inner, adds_up = config.model_dump(mode="json"), gradient is not None
            box.group.tell({"do": "trainer", "inner": inner, "adds_up": adds_up})
            self._steps = SharedSteps(config, twin, loss, batch, box.group, model, adds_up)

    def work(
        self,
        round: int,
        slots: Iterator[int],
        expired: Callable[[], bool],
        before: InnerReport = NOTHING,
        least: int | None = None,
    ) -> InnerReport:
        order = {"do": "work", "round": round, "before": asdict(before), "least": least}
        if self._gradient is not None:
            self._share(self.local_state())  # what was taken of it, the others do not have any more
        with self._box.together():
            self._box.group.tell(order)
            report = self._steps.take_round(round, slots, expired, before, least)
        if self._gradient is not None:
            self._gradient.load(self._whole_state())
        return report

    def local_state(self) -> dict[str, Tensor]:
        """Whole, so that a start with another number of processes takes it as well."""
        if self._gradient is None:
            return self._whole_state()
        return {**self._gradient.state(), **self._steps.step_count()}

    def load_local_state(self, state: Mapping[str, Tensor]) -> None:
        self._share(state)
        if self._gradient is not None:
            self._gradient.load(state)

    def _whole_state(self) -> dict[str, Tensor]:
        with self._box.together():
            self._box.group.tell({"do": "state"})
            return self._steps.whole_state()

    def _share(self, state: Mapping[str, Tensor]) -> None:
        described = [
            (name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape))
            for name, tensor in state.items()
            if name.startswith(_STATE)
        ]
        with self._box.together():
            self._box.group.tell({"do": "load", "described": described})
            self._steps.load_whole_state(described, state)
