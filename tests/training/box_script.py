"""What a peer of two processes does in inner steps, written to a file for `test_box.py`.

Run as `python -m tests.training.box_script FOLDER`: this is rank 0, and starts the other one.
"""

import os
import signal
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from node.box.errors import BoxError
from node.box.leader import Box, BoxTrainer
from node.box.place import Place
from node.build import Workshop
from node.config import NodeConfig
from node.errors import ConfigError
from node.training.data_config import DataConfig
from node.training.gradient import MeanGradient
from node.training.losses import batch_loss
from node.training.model_config import FactoryConfig, GptConfig
from tests.training.modules import After, Odd, config, never, slots, weights

GPT = GptConfig(kind="gpt", layers=2, width=16, heads=2, context=8)
ODD = FactoryConfig(kind="factory", label="odd", trainable=("[!f]*",))  # not `frozen`
SCALAR = FactoryConfig(kind="factory", label="scalar")
NODE = NodeConfig(
    threads=1,
    processes=2,
    factories={
        "odd": "tests.training.box_script:shareable",
        "scalar": "tests.training.modules:odd",
    },
)

SGD = {"name": "sgd", "lr": 0.1}
MOMENTUM = {"name": "sgd", "lr": 0.1, "momentum": 0.9}
ADAMW = {"name": "adamw", "lr": 1e-2, "eps": 1e-3}  # at 1e-8 the first steps amplify rounding
MUON = {"name": "muon", "lr": 0.02, "others": {"lr": 1e-2, "eps": 1e-3}}

CASES: dict[str, dict[str, Any]] = {
    **{
        f"{name}-{accumulation}": {"optimizer": optimizer, "accumulation": accumulation}
        for name, optimizer in (("sgd", SGD), ("adamw", ADAMW))
        for accumulation in (1, 2, 3)
    },
    "momentum": {"optimizer": MOMENTUM, "clip_norm": 0.5},
    "muon": {"optimizer": MUON, "accumulation": 2},
    "layers-twice": {"optimizer": SGD, "checkpoint_activations": True},
    "odd": {"optimizer": MOMENTUM, "accumulation": 3},
}


def shareable() -> nn.Module:
    """`Odd`, without the number that has no dimensions."""
    model = Odd().eval()
    model.gain = nn.Parameter(torch.ones(1))
    return model


def data(folder: Path) -> DataConfig:
    return DataConfig.model_validate(
        {"source": "text", "path": str(folder / "text.txt"), "context": 8, "batch": 3}
    )


class Ranks:
    """Both of them."""

    def __init__(self, folder: Path) -> None:
        self.lost: list[BaseException] = []
        self.box = Box(Place(0, 2, is_torchrun=False), "cpu", self.lost.append)
        self.folder = folder

    def trainer(
        self, model: GptConfig | FactoryConfig, **fields: object
    ) -> tuple[nn.Module, BoxTrainer]:
        shop = Workshop.open(model, data(self.folder), NODE, self.folder, self.box)
        module = shop.model.module
        return module, BoxTrainer(self.box, config(**fields), module, batch_loss, shop.data.batch)

    def kill(self) -> None:
        (other,) = psutil.Process().children()
        other.send_signal(signal.SIGKILL)


def outer_step(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.mul_(0.75)


def ordinary(ranks: Ranks, name: str) -> dict[str, Any]:
    """Two rounds of two steps. In between, everybody's update moves the weights."""
    feed = slots()
    module, inner = ranks.trainer(ODD if name == "odd" else GPT, steps=2, **CASES[name])
    report = inner.work(0, feed, never)
    outer_step(module)
    inner.work(1, feed, never)
    return {"weights": weights(module), "state": inner.local_state(), "report": report}


def added_up(ranks: Ranks) -> dict[str, Any]:
    """Two rounds' mean gradients, for a method that takes no steps; the first is taken away."""
    shop = Workshop.open(GPT, data(ranks.folder), NODE, ranks.folder, ranks.box)
    module, batch = shop.model.module, shop.data.batch
    gradient = MeanGradient(module)
    inner = BoxTrainer(ranks.box, config(steps=3), module, batch_loss, batch, gradient)
    means = []
    for round in range(2):
        inner.work(round, slots(3 * round), never)
        kept = {name: tensor.clone() for name, tensor in inner.local_state().items()}
        means.append(gradient.take(None))
    again = MeanGradient(module)
    again.load(kept)
    return {"means": means, "kept": again.take(None), "weights": weights(module)}


def resumed(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """One process took two steps, and these go on."""
    module, inner = ranks.trainer(GPT, steps=2, optimizer=ADAMW)
    kept = torch.load(folder / "kept.pt")
    module.load_state_dict(kept["model"])
    refused = ""
    try:
        inner.load_local_state({**kept["state"], "inner.state.tensor.step.nobody": torch.ones(1)})
    except ValueError as error:
        refused = str(error)
    inner.load_local_state(kept["state"])
    inner.work(0, slots(2), never)
    return {"weights": weights(module), "refused": refused}


def in_time(ranks: Ranks) -> dict[str, Any]:
    """Time ends in the middle of the third step."""
    module, inner = ranks.trainer(GPT, optimizer=SGD, accumulation=3)
    return {"report": inner.work(0, slots(), After(3)), "weights": weights(module)}


def spoilt(ranks: Ranks) -> dict[str, Any]:
    """Nothing is finite; then all is well again."""
    module, inner = ranks.trainer(GPT, optimizer=SGD, steps=5)
    norm = module.model.norm.weight
    before = norm.detach().clone()
    with torch.no_grad():
        norm.fill_(float("inf"))
    first = inner.work(0, slots(), never)
    with torch.no_grad():
        norm.copy_(before)
    return {"first": first, "second": inner.work(1, slots(), never)}


def refused(ranks: Ranks) -> str:
    try:
        ranks.trainer(SCALAR, optimizer=SGD)
    except ConfigError as error:
        return error.message
    return ""


def killed(ranks: Ranks) -> dict[str, Any]:
    """The other rank is killed in the middle of a step."""
    _, inner = ranks.trainer(GPT, optimizer=SGD, accumulation=4, steps=50)

    def feed() -> Iterator[int]:
        for slot in count():
            if slot == 6:
                ranks.kill()
            yield slot

    said = []
    for act in (lambda: inner.work(0, feed(), never), inner.local_state):
        try:
            act()
        except BoxError as error:
            said.append(error.message)
    return {"said": said, "lost": [str(error) for error in ranks.lost]}


def main(folder: Path) -> None:
    ranks = Ranks(folder)
    found: dict[str, Any] = {name: ordinary(ranks, name) for name in CASES}
    found["added up"] = added_up(ranks)
    found["resumed"] = resumed(ranks, folder)
    found["in time"] = in_time(ranks)
    found["spoilt"] = spoilt(ranks)
    found["refused"] = refused(ranks)
    found["killed"] = killed(ranks)
    ranks.box.close()
    torch.save(found, folder / "found.pt")


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main(Path(sys.argv[1]))
