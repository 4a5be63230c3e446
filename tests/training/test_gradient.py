"""A mean gradient is that of all micro-batches as one."""

import pytest
import torch
from torch import Tensor, nn

from node.training.gradient import MeanGradient
from node.training.gradient_config import GradientConfig
from node.training.inner import InnerTrainer
from node.training.inner_config import BATCHES_MAX
from node.training.losses import Batch, batch_loss
from tests.training.modules import batch, gpt, joined, never, odd, slots


def taken(model: nn.Module, clip_norm: float | None = None, batches: int = 3) -> list[Tensor]:
    mean = MeanGradient(model)
    config = GradientConfig(batches=batches)
    before = [p.detach().clone() for p in model.parameters()]
    report = InnerTrainer(config.inner, model, batch_loss, batch, None, mean).work(
        0, slots(), never
    )
    assert (report.steps, report.batches) == (batches, batches)
    assert all(map(torch.equal, before, model.parameters())), "nothing has moved"
    found = mean.take(clip_norm)
    assert mean.take(clip_norm) == [], "the next mean begins with nothing"
    return found


def test_it_is_the_gradient_of_all_as_one() -> None:
    found, model = taken(gpt()), gpt()
    batch_loss(model, joined(range(3))).backward()
    for ours, parameter in zip(found, model.parameters(), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(ours, parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("share", [0.5, 2.0])
def test_a_mean_that_is_too_long_is_shortened(share: float) -> None:
    """The mean, not each micro-batch' own."""
    plain = torch.cat([g.flatten() for g in taken(gpt())])
    norm = float(plain.norm())
    found = torch.cat([g.flatten() for g in taken(gpt(), clip_norm=share * norm)])
    torch.testing.assert_close(found, plain * min(1.0, share), rtol=1e-5, atol=1e-8)


def test_every_kind_of_parameter() -> None:
    model = odd()
    found = taken(model)
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad and p.numel()]
    assert [g.shape for g in found] == [p.shape for _, p in named]
    assert not any(g.is_sparse for g in found)
    by_name = {name: g for (name, _), g in zip(named, found, strict=True)}
    assert not by_name["unused"].any()
    assert all(g.any() for name, g in by_name.items() if name != "unused")


def test_micro_batches_that_are_not_finite_do_not_count() -> None:
    model, mean = gpt(), MeanGradient(gpt())
    mean = MeanGradient(model)

    def broken_once(model: nn.Module, batch: Batch) -> Tensor:
        calls.append(1)
        return batch_loss(model, batch) * (torch.nan if len(calls) == 2 else 1.0)

    calls: list[int] = []
    config = GradientConfig(batches=3)
    report = InnerTrainer(config.inner, model, broken_once, batch, None, mean).work(
        0, slots(), never
    )
    assert (report.steps, report.batches, report.skipped) == (2, 3, 1)
    found, other = mean.take(None), gpt()
    batch_loss(other, joined(range(0, 3, 2))).backward()
    for ours, parameter in zip(found, other.parameters(), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(ours, parameter.grad, rtol=1e-4, atol=1e-6)


def test_its_settings_bound_a_payload_as_inner_steps_do() -> None:
    assert GradientConfig(batches=7).inner.batches_max == 7
    assert GradientConfig().inner.batches_max == 1024
    with pytest.raises(ValueError, match="batches_max"):
        GradientConfig(batches_max=BATCHES_MAX + 1)
