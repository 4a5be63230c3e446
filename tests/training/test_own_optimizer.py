"""An optimizer of the machine's owner: tried out before a run starts."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from node.build import Workshop
from node.config import NodeConfig, RunFile, load_node_config
from node.errors import ConfigError
from node.training.data_config import DataConfig
from node.training.inner import InnerTrainer
from node.training.losses import batch_loss
from node.training.model_config import GptConfig
from node.training.optimizer_config import OwnOptimizer
from node.training.own_optimizer import check_own_optimizer
from tests.training.modules import batch, config, gpt, never, odd, plain_steps, same, slots, weights

HERE = "tests.training.optimizers"


def own(path: str, **options: object) -> OwnOptimizer:
    return OwnOptimizer(path=path, options=options)


@pytest.mark.parametrize(
    "optimizer",
    [
        own("torch.optim.Adagrad", lr=0.1),
        own("torch.optim.Adafactor"),
        own("torch.optim.RMSprop", momentum=0.9),
        own("torch.optim:SGD", lr=0.1, momentum=0.9),
        own("torch.optim.AdamW", fused=True),
        own("torch.optim.ASGD"),
        own("torch.optim.Rprop"),
        own(f"{HERE}:Counting", lr=0.1),
        own(f"{HERE}.grouped", lr=0.1),
    ],
    ids=lambda optimizer: optimizer.path,
)
def test_any_optimizer_will_do(optimizer: OwnOptimizer) -> None:
    check_own_optimizer(optimizer, odd())
    inner = InnerTrainer(config(steps=2), odd(), batch_loss, batch, optimizer)
    assert inner.work(0, slots(), never).steps == 2


def test_it_takes_the_place_of_the_run_s() -> None:
    model, twin = gpt(), gpt()
    adagrad = own("torch.optim.Adagrad", lr=0.05)
    InnerTrainer(config(steps=3), model, batch_loss, batch, adagrad).work(0, slots(), never)
    plain_steps(twin, [torch.optim.Adagrad(twin.parameters(), lr=0.05)], range(3))
    assert same(weights(model), weights(twin))


def test_the_run_s_schedule_applies_to_it() -> None:
    model, twin = gpt(), gpt()
    inner = config(steps=1, schedule={"warmup_steps": 4})
    InnerTrainer(inner, model, batch_loss, batch, own("torch.optim.SGD", lr=0.4)).work(
        0, slots(), never
    )
    plain_steps(twin, [torch.optim.SGD(twin.parameters(), lr=0.1)], range(1))
    assert same(weights(model), weights(twin))


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (own("torch.optim.Nothing"), "cannot be imported"),
        (own("no_such_module:make"), "cannot be imported"),
        (own(f"{HERE}:NOT_CALLABLE"), "is a int"),
        (own(f"{HERE}:not_one"), "made a list"),
        (own("torch.nn.Linear", in_features=1), "cannot be made"),
        (own("torch.optim.SGD", rate=1), "cannot be made"),
        (own("torch.optim.Muon"), "cannot be made"),  # takes matrices only
        (own(f"{HERE}:only_the_first"), "other parameters"),
        (own("torch.optim.LBFGS"), "cannot take a step"),  # needs a closure
        (own("torch.optim.SparseAdam"), "cannot take a step"),
        (own(f"{HERE}:Listing", lr=0.1), "cannot be saved: .* list"),
        (own(f"{HERE}:Growing", lr=0.1), "cannot be saved"),
        (own(f"{HERE}:Aside", lr=0.1), "cannot be saved"),
        (own(f"{HERE}:Hiding", lr=0.1), "goes on differently"),
    ],
    ids=lambda value: value.path if isinstance(value, OwnOptimizer) else "",
)
def test_what_will_not_do_is_said_with_a_hint(optimizer: OwnOptimizer, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        check_own_optimizer(optimizer, odd())
    assert caught.value.hint


def test_a_trial_leaves_the_model_and_chance_alone() -> None:
    model = odd()
    before, chance = weights(model), torch.get_rng_state()
    check_own_optimizer(own("torch.optim.Adagrad"), model)
    assert same(weights(model), before)
    assert torch.equal(torch.get_rng_state(), chance)


def test_muon_will_do_where_everything_is_a_matrix() -> None:
    check_own_optimizer(own("torch.optim.Muon"), nn.Linear(4, 4, bias=False))


@pytest.mark.parametrize("path", ["Adagrad", "os.system()", "../x:y", "a:b:c", "a b.c", ""])
def test_a_path_is_names_and_dots(path: str) -> None:
    with pytest.raises(ValidationError):
        OwnOptimizer(path=path)


def test_only_the_machine_s_own_settings_name_one(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('[node.optimizer]\npath = "torch.optim.Adagrad"\noptions = { lr = 0.1 }\n')
    assert load_node_config(file).optimizer == own("torch.optim.Adagrad", lr=0.1)
    file.write_text('[node.optimizer]\npath = "Adagrad"\n')
    with pytest.raises(ConfigError, match=r"node\.optimizer\.path"):
        load_node_config(file)
    file.write_text('[node.optimizer]\npath = "torch.optim.Adagrad"\noption = {}\n')
    with pytest.raises(ConfigError) as caught:
        load_node_config(file)
    assert "options" in caught.value.hint
    assert "path" in OwnOptimizer.model_fields
    schema = str(RunFile.model_json_schema()["$defs"])
    assert schema.count("#/$defs/OwnOptimizer") == 1  # in [node], and nowhere else


def test_a_workshop_tries_it_out(tmp_path: Path) -> None:
    model = GptConfig(kind="gpt", layers=1, width=8, heads=1, context=8)
    (tmp_path / "text.txt").write_text("some text, again and again; " * 50)
    data = DataConfig(source="text", path=("text.txt",), context=8, batch=2)
    good = NodeConfig(device="cpu", optimizer=own("torch.optim.Adagrad"))
    bad = NodeConfig(device="cpu", optimizer=own("torch.optim.LBFGS"))
    Workshop.open(model, data, good, tmp_path)
    with pytest.raises(ConfigError, match="LBFGS"):
        Workshop.open(model, data, bad, tmp_path)
