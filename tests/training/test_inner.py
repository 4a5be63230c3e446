"""Inner steps are ordinary training, as long as time and numbers allow."""

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from node.errors import ConfigError
from node.training.inner import SKIPS_MAX, InnerReport, InnerTrainer
from node.training.losses import Batch, batch_loss
from tests.training.modules import (
    After,
    batch,
    config,
    gpt,
    joined,
    never,
    odd,
    plain_steps,
    same,
    slots,
    trainer,
    weights,
)

SGD = {"name": "sgd", "lr": 0.1}
MOMENTUM = {"name": "sgd", "lr": 0.1, "momentum": 0.9}
ADAMW = {"name": "adamw", "lr": 1e-2}
MUON = {"name": "muon", "lr": 0.02, "others": {"lr": 1e-2}}

MakeOptimizers = Callable[[nn.Module], list[torch.optim.Optimizer]]


def plain_sgd(model: nn.Module) -> list[torch.optim.Optimizer]:
    return [torch.optim.SGD(model.parameters(), lr=0.1)]


def plain_momentum(model: nn.Module) -> list[torch.optim.Optimizer]:
    return [torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)]


def plain_adamw(model: nn.Module) -> list[torch.optim.Optimizer]:
    return [torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)]


class TallMuon(torch.optim.Muon):
    """Scales by sqrt(rows / columns), whatever the shape."""

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            rows, columns = group["params"][0].shape
            factor = math.sqrt(rows / columns) / math.sqrt(max(1, rows / columns))
            group["lr"], group["weight_decay"] = 0.02 * factor, 0.01 / factor
        super().step()


def plain_muon(model: nn.Module) -> list[torch.optim.Optimizer]:
    hidden = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.dim() != 2 or "embed" in n]
    groups = [{"params": [p]} for p in hidden]
    return [
        TallMuon(groups, momentum=0.95),
        torch.optim.AdamW(others, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1),
    ]


@pytest.mark.parametrize(
    ("fields", "plain"),
    [(SGD, plain_sgd), (MOMENTUM, plain_momentum), (ADAMW, plain_adamw), (MUON, plain_muon)],
    ids=["sgd", "momentum", "adamw", "muon"],
)
def test_steps_are_those_of_plain_torch(fields: dict[str, object], plain: MakeOptimizers) -> None:
    """Bit for bit, over two rounds, with clipping."""
    ours, theirs = gpt(), gpt()
    plain_steps(theirs, plain(theirs), range(6), clip=0.5)
    inner = trainer(ours, optimizer=fields, steps=3, clip_norm=0.5)
    feed = slots()
    reports = [inner.work(round, feed, never) for round in range(2)]
    assert same(weights(ours), weights(theirs))
    assert [(r.steps, r.batches, r.tokens, r.skipped) for r in reports] == [(3, 3, 48, 0)] * 2


def test_the_loss_is_the_mean_of_what_was_seen() -> None:
    model = gpt()
    with torch.no_grad():
        before = [float(batch_loss(model, batch(slot))) for slot in range(4)]
    report = trainer(model, optimizer={"name": "sgd", "lr": 1e-9}, steps=2, accumulation=2).work(
        0, slots(), never
    )
    assert report.loss == pytest.approx(sum(before) / 4, rel=1e-6)


def test_accumulation_is_one_large_batch() -> None:
    ours, theirs = gpt(), gpt()
    report = trainer(ours, optimizer=SGD, steps=1, accumulation=4).work(0, slots(), never)
    batch_loss(theirs, joined(range(4))).backward()
    plain_sgd(theirs)[0].step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    assert (report.steps, report.batches, report.tokens) == (1, 4, 64)


def test_a_long_gradient_is_shortened_to_the_norm() -> None:
    model = gpt()
    before = weights(model)
    trainer(model, optimizer={"name": "sgd", "lr": 1.0}, steps=1, clip_norm=0.25).work(
        0, slots(), never
    )
    moved = torch.cat([(p - before[n]).flatten() for n, p in model.named_parameters()])
    assert float(moved.detach().norm()) == pytest.approx(0.25, rel=1e-4)


def test_the_rate_follows_the_schedule() -> None:
    """One peer's third and fourth step of a warm-up of four, in round 5 of 10."""
    fall = {"warmup_steps": 4, "decay": "linear", "decay_rounds": 10, "final_share": 0.0}
    model = gpt()
    inner = trainer(model, optimizer={"name": "sgd", "lr": 1.0}, schedule=fall, steps=2)
    inner.work(0, slots(), never)
    twin = gpt()
    twin.load_state_dict(model.state_dict())
    inner.work(5, slots(2), never)
    for slot, share in ((2, 3 / 4 * 0.5), (3, 4 / 4 * 0.5)):
        plain_steps(twin, [torch.optim.SGD(twin.parameters(), lr=share)], range(slot, slot + 1))
    assert same(weights(model), weights(twin))


def test_autocast_multiplies_in_bfloat16_and_keeps_float32() -> None:
    seen: list[torch.dtype] = []
    model, twin = gpt(), gpt()
    model.model.layers[0].mlp.down_proj.register_forward_hook(  # type: ignore[union-attr, index]
        lambda module, args, out: seen.append(out.dtype)
    )
    inner = trainer(model, optimizer=SGD, steps=2, autocast="bfloat16")
    inner.work(0, slots(), never)
    assert seen == [torch.bfloat16] * 2
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    trainer(twin, optimizer=SGD, steps=2).work(0, slots(), never)
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.005)
    assert not same(weights(model), weights(twin))
    model.eval()
    assert model(batch(0).inputs).dtype == torch.float32


@pytest.mark.parametrize("make", [gpt, lambda: odd(0.5)], ids=["gpt", "odd"])
def test_checkpointed_activations_give_the_same_bits(make: Callable[[], nn.Module]) -> None:
    ends = []
    for fields in ({}, {"checkpoint_activations": True}):
        model = make()
        torch.manual_seed(1)
        trainer(model, optimizer=ADAMW, steps=3, **fields).work(0, slots(), never)
        assert all("forward" not in module.__dict__ for module in model.modules())
        ends.append(weights(model))
    assert same(*ends)


def test_checkpointing_computes_each_layer_twice() -> None:
    model = nn.Sequential(nn.Embedding(256, 4), _Counting(), nn.Linear(4, 256))
    trainer(model, optimizer=SGD, steps=1, checkpoint_activations=True).work(0, slots(), never)
    counting = model[1]
    assert isinstance(counting, _Counting)
    assert counting.calls == 2
    trainer(model, optimizer=SGD, steps=1).work(0, slots(), never)
    assert counting.calls == 3


def test_a_layer_may_have_a_forward_of_its_own() -> None:
    model = nn.Sequential(nn.Embedding(256, 4), nn.Linear(4, 256))
    own = model[1].forward
    model[1].forward = own  # as hooks of other libraries do
    trainer(model, optimizer=SGD, steps=1, checkpoint_activations=True).work(0, slots(), never)
    assert model[1].__dict__["forward"] is own
    assert "forward" not in model[0].__dict__


class _Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.calls = nn.Linear(4, 4), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        out: Tensor = torch.tanh(self.inner(x))
        return out


# Time


def test_as_many_steps_as_the_time_allows() -> None:
    """The first step is free; then time is asked for before each micro-batch."""
    model, twin = gpt(), gpt()
    report = trainer(model, optimizer=ADAMW).work(0, slots(), After(4))
    assert (report.steps, report.batches) == (5, 5)
    plain_steps(twin, plain_adamw(twin), range(5))
    assert same(weights(model), weights(twin))


def test_one_step_is_done_even_when_the_time_is_over() -> None:
    report = trainer(gpt(), optimizer=SGD, accumulation=3).work(0, slots(), After(0))
    assert (report.steps, report.batches) == (1, 3)


def test_a_step_that_is_not_whole_is_dropped() -> None:
    """Time ends after the second step's second micro-batch of three."""
    model, twin = gpt(), gpt()
    feed = slots()
    inner = trainer(model, optimizer=ADAMW, accumulation=3)
    report = inner.work(0, feed, After(2))
    assert (report.steps, report.batches, report.tokens) == (1, 3, 48)
    trainer(twin, optimizer=ADAMW, accumulation=3, steps=1).work(0, slots(), never)
    assert same(weights(model), weights(twin))
    assert all(p.grad is None for p in model.parameters())
    assert inner.local_state()["inner.steps"].tolist() == [1]


def test_a_fixed_number_of_steps_is_done_whatever_the_time() -> None:
    report = trainer(gpt(), optimizer=SGD, steps=4).work(0, slots(), After(0))
    assert report.steps == 4


def test_no_more_steps_than_the_run_allows() -> None:
    assert trainer(gpt(), optimizer=SGD, steps_max=3).work(0, slots(), never).steps == 3


def test_work_ends_with_the_slots() -> None:
    report = trainer(gpt(), optimizer=SGD, accumulation=2).work(0, iter([4, 5, 6]), never)
    assert (report.steps, report.batches) == (1, 2)


# Numbers that are not finite


class Spoilt:
    """The loss, except that it comes out otherwise in some slots."""

    def __init__(
        self,
        *,
        loss: tuple[int, ...] = (),  # its gradient is none either
        value: tuple[int, ...] = (),  # its gradient is as ever
        gradient: tuple[int, ...] = (),
    ) -> None:
        self._loss, self._value, self._gradient = (
            {_key(batch(slot)) for slot in slots} for slots in (loss, value, gradient)
        )

    def __call__(self, model: nn.Module, here: Batch) -> Tensor:
        loss = batch_loss(model, here)
        if _key(here) in self._loss:
            return loss * math.inf
        if _key(here) in self._value:
            return loss + math.inf
        if _key(here) in self._gradient:
            zero = next(p for p in model.parameters() if p.requires_grad).flatten()[0] * 0
            return loss + torch.sqrt(zero)  # its slope at 0 has no bound
        return loss


def _key(here: Batch) -> bytes:
    return here.inputs.numpy().tobytes()


@pytest.mark.parametrize("kind", ["loss", "value", "gradient"])
def test_a_step_that_is_not_finite_is_skipped(kind: str) -> None:
    model, twin = gpt(), gpt()
    spoilt = Spoilt(**{kind: (1,)})
    inner = InnerTrainer(config(optimizer=ADAMW, steps=4), model, spoilt, batch)
    report = inner.work(0, slots(), never)
    assert (report.steps, report.batches, report.tokens, report.skipped) == (3, 4, 48, 1)
    assert report.loss is not None
    assert math.isfinite(report.loss)
    optimizers = plain_adamw(twin)
    for slot in (0, 2, 3):
        plain_steps(twin, optimizers, range(slot, slot + 1))
    assert same(weights(model), weights(twin))


def test_a_spoilt_micro_batch_ends_its_step_and_no_other() -> None:
    model, twin = gpt(), gpt()
    inner = InnerTrainer(
        config(optimizer=SGD, steps=2, accumulation=3), model, Spoilt(loss=(1,)), batch
    )
    report = inner.work(0, slots(), never)
    assert (report.steps, report.batches, report.tokens, report.skipped) == (1, 5, 48, 1)
    trainer(twin, optimizer=SGD, steps=1, accumulation=3).work(0, slots(2), never)
    assert same(weights(model), weights(twin))


def test_several_in_a_row_end_the_work() -> None:
    """Never the weights: they are where the last good step left them."""
    model, twin = gpt(), gpt()
    spoilt = Spoilt(loss=(1, 3, 4, 5))
    inner = InnerTrainer(config(optimizer=SGD, steps=50), model, spoilt, batch)
    report = inner.work(0, slots(), never)
    assert SKIPS_MAX == 3
    assert (report.steps, report.batches, report.skipped) == (2, 6, 4)
    optimizers = plain_sgd(twin)
    for slot in (0, 2):
        plain_steps(twin, optimizers, range(slot, slot + 1))
    assert same(weights(model), weights(twin))


def test_nothing_finite_at_all() -> None:
    model = gpt()
    before = weights(model)
    inner = InnerTrainer(
        config(optimizer=SGD, steps=50), model, Spoilt(loss=tuple(range(9))), batch
    )
    assert inner.work(0, slots(), never) == InnerReport(0, 3, 0, None, 3)
    assert same(weights(model), before)


# The model


def test_only_what_is_trained_moves() -> None:
    model = odd()
    before = weights(model)
    inner = trainer(model, optimizer=ADAMW, steps=2)
    report = inner.work(0, slots(), never)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    still = {"frozen.weight", "frozen.bias", "empty", "unused"}
    assert moved == {n for n, _ in model.named_parameters()} - still
    assert report.steps == 2
    kept = [name for name in inner.local_state() if name.startswith("inner.state.")]
    assert not any(name.endswith(tuple(still)) for name in kept)


@pytest.mark.parametrize("optimizer", [SGD, ADAMW, MUON], ids=["sgd", "adamw", "muon"])
def test_sparse_gradients_are_those_of_a_dense_embedding(optimizer: dict[str, object]) -> None:
    sparse, dense = odd(), odd()
    dense.embed.sparse = False  # type: ignore[union-attr]
    for model in (sparse, dense):
        trainer(model, optimizer=optimizer, steps=3, accumulation=2).work(0, slots(), never)
    assert same(weights(sparse), weights(dense))


def test_buffers_and_modes_are_as_before() -> None:
    model = odd(0.5)
    model.frozen.train()  # type: ignore[union-attr]
    modes = [module.training for module in model.modules()]
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    with torch.no_grad():
        trainer(model, optimizer=SGD, steps=2).work(0, slots(), never)
    assert [module.training for module in model.modules()] == modes
    assert same(dict(model.named_buffers()), buffers)
    assert model.last is None
    assert all(p.grad is None for p in model.parameters())


def test_dropout_drops_and_batch_norm_uses_what_all_peers_have() -> None:
    model = odd(0.5)
    modes: dict[str, bool] = {}
    for name in ("dropout", "norm"):
        model.get_submodule(name).register_forward_hook(
            lambda module, args, out, name=name: modes.update({name: module.training})
        )
    trainer(model, optimizer=SGD, steps=1).work(0, slots(), never)
    assert modes == {"dropout": True, "norm": False}


def test_everything_is_put_back_when_a_step_fails() -> None:
    model = odd()

    def failing() -> Iterator[int]:
        yield 0
        raise RuntimeError("the disk is gone")

    inner = trainer(model, optimizer=SGD, accumulation=2, checkpoint_activations=True)
    with pytest.raises(RuntimeError, match="disk"):
        inner.work(0, failing(), never)
    assert not any(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert float(model.get_buffer("calls")) == 0
    assert all("forward" not in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_callers_may_have_turned_gradients_off(guard: Callable[[], torch.no_grad]) -> None:
    model, twin = gpt(), gpt()
    with guard():
        trainer(model, optimizer=SGD, steps=1).work(0, slots(), never)
    trainer(twin, optimizer=SGD, steps=1).work(0, slots(), never)
    assert same(weights(model), weights(twin))


def test_the_optimizer_lives_on_while_weights_are_overwritten() -> None:
    """An outer step in place between two rounds: the momentum is what it would have been."""
    model, twin = gpt(), gpt()
    inner = trainer(model, optimizer=ADAMW, steps=1)
    optimizers = plain_adamw(twin)
    for round in range(3):
        inner.work(round, slots(round), never)
        plain_steps(twin, optimizers, range(round, round + 1))
        with torch.no_grad():
            for p in [*model.parameters(), *twin.parameters()]:
                p.mul_(0.5)
    assert same(weights(model), weights(twin))


# Refusals


def test_small_steps_are_not_lost_in_bfloat16() -> None:
    with pytest.raises(ConfigError, match="bfloat16") as caught:
        trainer(gpt().to(torch.bfloat16))
    assert "autocast" in caught.value.hint


def test_something_must_be_trained() -> None:
    with pytest.raises(ConfigError, match="trainable"):
        trainer(gpt().requires_grad_(False))


def test_a_model_without_layers_has_nothing_to_checkpoint() -> None:
    with pytest.raises(ConfigError, match="no stack of layers"):
        trainer(nn.Embedding(256, 256), checkpoint_activations=True)
