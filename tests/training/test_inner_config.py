"""What a run file may say about inner work, and how rates rise and fall."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from node.training.inner_config import BATCHES_MAX, InnerConfig, InnerSchedule
from node.training.optimizers import builder, muon_scales
from tests.training.modules import config, gpt


@pytest.mark.parametrize(("step", "share"), [(0, 0.25), (1, 0.5), (3, 1.0), (4, 1.0), (10**9, 1.0)])
def test_the_rate_rises_by_steps(step: int, share: float) -> None:
    assert InnerSchedule(warmup_steps=4).share(0, step) == share


@pytest.mark.parametrize(
    ("decay", "round", "share"),
    [
        ("linear", 0, 1.0),
        ("linear", 5, 0.6),
        ("linear", 10, 0.2),
        ("linear", 99, 0.2),
        ("cosine", 0, 1.0),
        ("cosine", 5, 0.6),
        ("cosine", 2, 0.2 + 0.8 * (1 + math.cos(math.pi / 5)) / 2),
        ("cosine", 10, 0.2),
        ("cosine", 99, 0.2),
    ],
)
def test_the_rate_falls_by_rounds(decay: str, round: int, share: float) -> None:
    schedule = InnerSchedule.model_validate(
        {"decay": decay, "decay_rounds": 10, "final_share": 0.2}
    )
    assert schedule.share(round, 0) == pytest.approx(share, abs=1e-12)


def test_rise_and_fall_multiply() -> None:
    schedule = InnerSchedule(warmup_steps=4, decay="linear", decay_rounds=10, final_share=0.0)
    assert schedule.share(5, 1) == 0.25
    assert InnerSchedule().share(10**6, 0) == 1.0


@pytest.mark.parametrize(
    "fields",
    [
        {"optimizer": {"name": "adagrad"}},
        {"optimizer": {"name": "sgd"}},  # without a rate
        {"optimizer": {"name": "adamw", "lr": 0}},
        {"optimizer": {"name": "adamw", "lr": math.inf}},
        {"optimizer": {"name": "adamw", "lr": math.nan}},
        {"optimizer": {"name": "adamw", "betas": [0.9, 1.0]}},
        {"optimizer": {"name": "adamw", "momentum": 0.9}},
        {"optimizer": {"name": "muon", "ns_steps": 0}},
        {"schedule": {"final_share": 1.5}},
        {"schedule": {"decay": "sudden"}},
        {"steps": 0},
        {"steps_max": 0},
        {"accumulation": 0},
        {"clip_norm": 0.0},
        {"autocast": "float16"},
        {"steps": 1000, "accumulation": 66},
        {"steps_max": BATCHES_MAX, "accumulation": 2},
        {"own": "torch.optim.Adagrad"},
    ],
)
def test_what_cannot_be_meant_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        InnerConfig.model_validate(fields)


def test_a_table_survives_the_manifest() -> None:
    full = config(
        optimizer={"name": "muon", "lr": 0.01}, steps=30, accumulation=4, clip_norm=1.0,
        autocast="bfloat16", schedule={"warmup_steps": 100, "decay_rounds": 1000},
    )  # fmt: skip
    assert InnerConfig.model_validate_json(full.model_dump_json()) == full
    assert full.batches_max == 120
    assert config(steps_max=7).batches_max == 7


def test_muon_moves_the_matrices_of_hidden_layers() -> None:
    """Embeddings, heads, vectors and kernels go by AdamW."""
    model = nn.ModuleDict(
        {
            "tokens": nn.Embedding(50, 4),
            "up": nn.Linear(4, 16),
            "down": nn.Linear(16, 4),
            "kernel": nn.Conv1d(4, 4, 3),
            "lm_head": nn.Linear(4, 50),
            "head": nn.Linear(4, 2),
        }
    )
    scales = muon_scales(model, config(optimizer={"name": "muon"}).optimizer.not_hidden)  # type: ignore[union-attr]
    assert scales == {"up.weight": 2.0, "down.weight": 0.5}
    assert muon_scales(model, ["*"]) == {}
    tied = muon_scales(gpt(), [])
    assert "model.embed_tokens.weight" not in tied
    assert "lm_head.weight" not in tied
    assert len(tied) == 2 * 7


def test_a_linear_layer_that_keeps_its_weight_turned() -> None:
    """transformers' `Conv1D` of GPT-2: (in, out)."""

    class Conv1D(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(4, 16))

    assert muon_scales(Conv1D(), []) == {"weight": 2.0}


def test_each_parameter_has_one_optimizer() -> None:
    model = gpt()
    for name in ("adamw", "muon"):
        named = list(model.named_parameters())
        made = builder(config(optimizer={"name": name}).optimizer, model)(named)
        moved = [id(p) for o in made for group in o.param_groups for p in group["params"]]
        assert sorted(moved) == sorted(id(p) for _, p in named)


def test_muon_moves_by_the_root_of_the_fans() -> None:
    """A nearly orthogonal update: its singular values are all about rate * sqrt(out / in). The
    decay does not depend on the shape.
    """
    for fan_out, fan_in in ((32, 8), (8, 32), (16, 16)):
        layer = nn.Linear(fan_in, fan_out, bias=False)
        model = nn.ModuleDict({"layer": layer})
        optimizer = config(optimizer={"name": "muon", "lr": 0.5, "weight_decay": 0.0}).optimizer
        (muon,) = builder(optimizer, model)(list(model.named_parameters()))
        before = layer.weight.detach().clone()
        torch.manual_seed(0)
        layer.weight.grad = torch.randn(fan_out, fan_in)
        muon.step()
        values = torch.linalg.svdvals(layer.weight.detach() - before)
        expected = 0.5 * math.sqrt(fan_out / fan_in)
        assert float(values.mean()) == pytest.approx(expected, rel=0.2)

        decaying = config(optimizer={"name": "muon", "lr": 0.5, "weight_decay": 0.1}).optimizer
        (muon,) = builder(decaying, model)(list(model.named_parameters()))
        before = layer.weight.detach().clone()
        layer.weight.grad = torch.zeros(fan_out, fan_in)
        muon.step()
        torch.testing.assert_close(layer.weight.detach(), before * 0.95)
