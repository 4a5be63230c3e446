"""An optimizer's state outlives its process, or is refused whole."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from node.training.inner import InnerTrainer
from node.training.losses import batch_loss
from node.training.optimizer_config import OwnOptimizer
from tests.training.modules import batch, config, gpt, never, odd, same, slots, trainer, weights

OPTIMIZERS: dict[str, dict[str, object]] = {
    "sgd": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
    "adamw": {"name": "adamw", "lr": 1e-2},
    "muon": {"name": "muon", "lr": 0.02},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("make", [gpt, odd])
def test_going_on_equals_never_having_stopped(
    name: str, make: Callable[[], nn.Module], tmp_path: Path
) -> None:
    fields = {
        "optimizer": OPTIMIZERS[name], "steps": 2, "schedule": {"warmup_steps": 3},
    }  # fmt: skip
    model = make()
    inner = trainer(model, **fields)
    inner.work(0, slots(), never)
    save_file(dict(inner.local_state()), tmp_path / "state.safetensors")
    twin = make()
    twin.load_state_dict(model.state_dict())
    again = trainer(twin, **fields)
    again.load_local_state(load_file(tmp_path / "state.safetensors"))
    assert same(again.local_state(), inner.local_state())
    for one in (inner, again):
        one.work(1, slots(2), never)
    assert same(weights(model), weights(twin))
    assert same(again.local_state(), inner.local_state())


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("torch.optim.Adagrad", {"lr": 0.1}),  # has state before its first step
        ("torch.optim.Adafactor", {"lr": 0.01}),  # keeps rows and columns
        ("torch.optim.NAdam", {"lr": 0.01}),
        ("tests.training.optimizers:Counting", {"lr": 0.1}),  # keeps plain numbers, and in a group
    ],
)
def test_so_does_an_optimizer_of_the_owner(path: str, options: dict[str, object]) -> None:
    own = OwnOptimizer(path=path, options=options)
    model = odd()
    inner = InnerTrainer(config(steps=2), model, batch_loss, batch, own)
    inner.work(0, slots(), never)
    state = {name: t.clone() for name, t in inner.local_state().items()}
    twin = odd()
    twin.load_state_dict(model.state_dict())
    again = InnerTrainer(config(steps=2), twin, batch_loss, batch, own)
    again.work(0, slots(7), never)
    again.work(1, slots(9), never)
    twin.load_state_dict(model.state_dict())
    given = {name: t.clone() for name, t in state.items()}
    again.load_local_state(given)
    for one in (inner, again):
        one.work(1, slots(2), never)
    assert same(weights(model), weights(twin))
    assert same(again.local_state(), inner.local_state())
    assert same(given, state)  # it was copied


def test_names_say_what_they_are() -> None:
    """They are written to disk: the next version must read them."""
    model = nn.Sequential(nn.Embedding(256, 4), nn.Linear(4, 256))
    inner = trainer(model, optimizer=OPTIMIZERS["adamw"], steps=1)
    assert set(inner.local_state()) == {"inner.steps"}
    inner.work(0, slots(), never)
    assert set(inner.local_state()) == {"inner.steps"} | {
        f"inner.state.tensor.{key}.{name}"
        for key in ("step", "exp_avg", "exp_avg_sq")
        for name in ("0.weight", "1.weight", "1.bias")
    }


def test_a_state_from_before_the_first_step_starts_anew() -> None:
    model = gpt()
    inner = trainer(model, optimizer=OPTIMIZERS["adamw"], steps=1)
    empty = dict(inner.local_state())
    inner.work(0, slots(), never)
    inner.load_local_state({**empty, "another.part": torch.zeros(3)})
    assert same(inner.local_state(), empty)


def without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {n: t for n, t in state.items() if n != name}


EXP_AVG = "inner.state.tensor.exp_avg.model.norm.weight"
BROKEN: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "no step count": lambda s: without(s, "inner.steps"),
    "a step count of another type": lambda s: {**s, "inner.steps": torch.ones(1)},
    "a negative step count": lambda s: {**s, "inner.steps": torch.tensor([-1])},
    "a shape": lambda s: {**s, EXP_AVG: torch.zeros(15)},
    "a type": lambda s: {**s, EXP_AVG: torch.zeros(16, dtype=torch.float64)},
    "half of a parameter's state": lambda s: without(s, EXP_AVG),
    "a key too many": lambda s: {**s, EXP_AVG.replace("exp_avg", "extra"): torch.zeros(16)},
    "a number for a tensor": lambda s: {
        **without(s, EXP_AVG),
        EXP_AVG.replace("tensor", "number"): torch.tensor(1.0, dtype=torch.float64),
    },
    "a key twice": lambda s: {EXP_AVG.replace("tensor", "number"): torch.tensor(1), **s},
    "an unknown parameter": lambda s: {**s, "inner.state.tensor.exp_avg.nobody": torch.zeros(1)},
    "an unknown kind": lambda s: {**s, EXP_AVG.replace("tensor", "list"): torch.zeros(16)},
    "a name cut short": lambda s: {**s, "inner.state.tensor": torch.zeros(16)},
    "an unknown group": lambda s: {**s, "inner.group.number.0.7.k": torch.tensor(1)},
    "no group": lambda s: {**s, "inner.group.number.x.y.k": torch.tensor(1)},
    "an unknown option": lambda s: {**s, "inner.group.number.0.0.k": torch.tensor(1)},
    "an option that is no number": lambda s: {
        **s,
        "inner.group.number.0.0.eps": torch.zeros(2),
    },
}


@pytest.fixture(scope="module")
def worked() -> tuple[InnerTrainer, dict[str, Tensor]]:
    inner = trainer(gpt(), optimizer=OPTIMIZERS["adamw"], steps=1)
    inner.work(0, slots(), never)
    return inner, {name: t.clone() for name, t in inner.local_state().items()}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_state_changes_nothing(
    what: str, worked: tuple[InnerTrainer, dict[str, Tensor]]
) -> None:
    inner, state = worked
    for name, tensor in state.items():
        if name.startswith("inner.state") and tensor.dim():
            state = {**state, name: tensor + 1}  # so that a part of it would show
    with pytest.raises(ValueError, match=r"\w"):
        inner.load_local_state(BROKEN[what](state))
    assert same(inner.local_state(), worked[1])


def test_the_state_of_another_optimizer_is_refused() -> None:
    one = trainer(gpt(), optimizer=OPTIMIZERS["sgd"], steps=1)
    one.work(0, slots(), never)
    other = trainer(gpt(), optimizer=OPTIMIZERS["adamw"], steps=1)
    with pytest.raises(ValueError, match="exp_avg"):
        other.load_local_state(one.local_state())
