"""What is compared is comparable: the same tokens, real bytes, replicas that agree."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from node.build import Workshop
from node.compare import plan
from node.compare.contenders import Swarm, Synchronous
from node.compare.gossip import Gossip
from node.compare.records import Cell, Outcome, Task
from node.compare.run import Comparison
from node.compare.supply import Supply
from node.compare.trial import EVALUATIONS, train
from node.config import load_run_file
from node.errors import ConfigError
from node.methods.diloco_config import DilocoConfig
from node.methods.parts.gossip_config import GossipConfig
from node.methods.parts.header import Header
from node.methods.parts.mixing import MODEL
from node.methods.registry import CONFIGS
from node.training.data import Data, Windows
from node.training.data_config import DataConfig
from node.training.losses import Batch
from tests.compare.conftest import SGD, MakeComparison, quietly

FROM_SCRATCH = [n for n, kind in CONFIGS.items() if kind.from_scratch and not kind.gossips]
GOSSIPING = [n for n, kind in CONFIGS.items() if kind.gossips]


class Recording(Supply):
    """Remembers what it handed out."""

    def __init__(self, workshop: Workshop, seed: int) -> None:
        super().__init__(workshop.data, seed)
        self.seen: list[bytes] = []

    def batch(self, slot: int) -> Batch:
        batch = super().batch(slot)
        self.seen.append(batch.inputs.numpy().tobytes())
        return batch


def parts(comparison: Comparison) -> tuple[Task, Workshop, list[Cell]]:
    return comparison._task, comparison._workshop, comparison.cells


def flat(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()])


def test_averaging_each_step_of_sgd_is_synchronous_sgd(make_comparison: MakeComparison) -> None:
    """METHODS E1: H = 1, rate 1, no momentum. The anchor of all comparisons: peers and baseline
    train on the same tokens in the same order, and their mean is the same mean.
    """
    task, workshop, cells = parts(
        make_comparison(SGD, peers=3, steps=(1,), seeds=(1,), methods=("diloco",))
    )
    synchronous, method = (cell.method for cell in cells)
    assert synchronous is None
    assert isinstance(method, DilocoConfig)
    ours, theirs = (workshop.another_model(1).module for _ in range(2))
    supplies = [Recording(workshop, 1) for _ in range(2)]
    start = flat(ours)
    swarm = Swarm(task, method, workshop, ours, supplies[0])
    reference = Synchronous(task, 5, workshop, theirs, supplies[1])
    for round in range(5):
        swarm.close(round)
        reference.close(round)
        assert sorted(supplies[0].seen) == sorted(supplies[1].seen)
        torch.testing.assert_close(flat(ours), flat(theirs), rtol=0, atol=1e-6)
    assert len(set(supplies[0].seen)) == 5 * 3 * 2, "rounds, peers, micro-batches of a step"
    assert (flat(ours) - start).abs().max() > 1e-3, "it moves"


def test_the_losses_of_the_anchor_agree(make_comparison: MakeComparison) -> None:
    comparison = make_comparison(SGD, steps=(1,), methods=("diloco",), total_steps=12)
    assert comparison.run(quietly)
    baseline, row = comparison.report().rows
    assert row.gap is not None
    assert abs(row.gap.mean) < 1e-6
    assert row.tokens == baseline.tokens == 12 * 2 * 2 * 2 * 16


@pytest.mark.parametrize("name", FROM_SCRATCH)
def test_every_method_takes_part(make_comparison: MakeComparison, name: str) -> None:
    """P1: whatever the registry knows; all replicas end with the same bits, on the same tokens."""
    task, workshop, cells = parts(make_comparison(methods=(name,), rates={}, peers=3))
    tried = [cell for cell in cells if cell.method is not None]
    assert {cell.rate for cell in tried} == set(CONFIGS[name].rates or (None,))
    told: list[int] = []
    outcome = train(task, tried[-1], workshop, told.append)
    assert len(outcome.digests) == 3
    assert outcome.agrees
    assert outcome.loss is not None
    assert outcome.tokens == 4 * 3 * 2 * 16, "steps, peers, samples, context"
    assert sum(told) == 4 * 3
    assert outcome.sent_bytes > 4
    assert outcome.received_bytes == 2 * outcome.sent_bytes


@pytest.mark.parametrize("name", GOSSIPING)
def test_every_method_that_gossips_takes_part(make_comparison: MakeComparison, name: str) -> None:
    """Peers have models of their own; what is judged is their mean, on the same tokens."""
    task, workshop, cells = parts(make_comparison(methods=(name,), rates={}, peers=3))
    tried = [cell for cell in cells if cell.method is not None]
    assert {cell.rate for cell in tried} == set(CONFIGS[name].rates or (None,))
    outcome = train(task, tried[-1], workshop, lambda batches: None)
    assert outcome.digests == ()
    assert outcome.loss is not None
    assert len(outcome.own_losses) == 3
    assert len(set(outcome.own_losses)) > 1
    assert outcome.tokens == 4 * 3 * 2 * 16, "steps, peers, samples, context"
    # Of three, two meet in a round; of directed ones all send.
    met = 1.0 if name == "push-sum" else 2 / 3
    method = tried[-1].method
    assert isinstance(method, GossipConfig)
    shapes = [p.shape for p in workshop.model.module.parameters()]
    sent = met * method.exchanges_a_round * method.exchange_bytes(shapes)
    assert outcome.sent_bytes == pytest.approx(sent)


def test_the_merged_model_is_the_mean_by_work(make_comparison: MakeComparison) -> None:
    task, workshop, cells = parts(make_comparison(methods=("d-psgd",), rates={}, peers=2))
    method = cells[-1].method
    assert isinstance(method, GossipConfig)
    module = workshop.another_model().module
    gossip = Gossip(task, method, workshop, module, Supply(workshop.data, 0))
    gossip.close(0)
    one, other = gossip.parties.values()
    one.state[MODEL] += 1.0
    other.tokens = 3 * one.tokens
    gossip.show()
    wanted = 0.25 * one.state[MODEL] + 0.75 * other.state[MODEL]
    assert torch.allclose(flat(module), wanted, atol=1e-6)


def test_parts_of_the_data_are_apart_and_all_of_it() -> None:
    """Each peer sees its own stretch; synchronous training and the peers see the same batches."""
    config = DataConfig(source="text", path=("unused",), context=4, batch=2)
    stream = np.arange(4 * 25 + 1, dtype=np.uint32)  # 25 samples, all different
    supply = Supply(Data(config, Windows([stream], 4), Windows([stream], 4)), 0, parts=3)
    each = [[supply.share(part).batch(slot) for slot in range(4)] for part in range(3)]
    seen = [{int(row[0]) // 4 for batch in own for row in batch.inputs} for own in each]
    assert seen == [set(range(8)), set(range(8, 16)), set(range(16, 24))]
    for slot in range(12):
        assert torch.equal(supply.batch(slot).inputs, each[slot % 3][slot // 3].inputs)
    assert supply.share(0).private
    assert supply.batches == 3 * 4 + 12


def test_parts_that_hold_no_batch_are_refused(make_comparison: MakeComparison) -> None:
    with pytest.raises(ConfigError, match="parts"):
        Supply(parts(make_comparison())[1].data, 0, parts=10_000)


@pytest.mark.parametrize("name", ["diloco", "d-psgd"])
def test_split_comparisons_train_each_peer_on_its_part(
    make_comparison: MakeComparison, name: str
) -> None:
    comparison = make_comparison(methods=(name,), rates={}, split=True)
    assert comparison.run(quietly)
    baseline, row = comparison.report().rows
    assert baseline.tokens == row.tokens
    plain = make_comparison(methods=(name,), rates={})
    assert plain.run(quietly)
    assert plain.report().rows[-1].loss != row.loss


def test_a_replica_that_differs_is_seen(make_comparison: MakeComparison) -> None:
    """P1: digests are of the replicas, not of one of them."""
    task, workshop, cells = parts(make_comparison(methods=("sparseloco",)))
    method = cells[-1].method
    assert method is not None
    swarm = Swarm(task, method, workshop, workshop.another_model().module, Supply(workshop.data, 0))
    swarm.close(0)
    assert len(set(swarm.digests())) == 1
    next(iter(swarm.methods[1].replicated_state().values())).view(-1)[0] += 1
    assert len(set(swarm.digests())) == 2
    outcome = train(task, cells[-1], workshop, lambda batches: None)
    assert not outcome.model_copy(update={"digests": swarm.digests()}).agrees


@pytest.mark.parametrize("bits", [32, 8])
def test_bytes_are_those_of_the_payloads(make_comparison: MakeComparison, bits: int) -> None:
    """P7: what a layout and a header come to, no estimate."""
    run = f'[method]\nname = "diloco"\nvalue_bits = {bits}\n'
    task, workshop, cells = parts(make_comparison(run, peers=3, methods=("diloco",)))
    method = cells[-1].method
    assert isinstance(method, DilocoConfig)
    sizes = [p.numel() for p in workshop.model.module.parameters()]
    attached = method.layout(sizes).bytes
    header = len(Header(steps=2, batches=2, tokens=2 * 2 * 16).encode())
    outcome = train(task, cells[-1], workshop, lambda batches: None)
    assert outcome.sent_bytes == attached + header
    assert outcome.received_bytes == 2 * (attached + header)
    baseline = train(task, cells[0], workshop, lambda batches: None)
    assert baseline.sent_bytes == baseline.received_bytes == 2 * 2 / 3 * 4 * sum(sizes)


def test_sums_take_about_twice_the_payload(
    make_comparison: MakeComparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P7, P8: what is passed on part by part, counted; and it trains the same model."""
    run = '[method]\nname = "diloco"\n'
    task, workshop, cells = parts(make_comparison(run, peers=3, methods=("diloco",)))
    whole = train(task, cells[-1], workshop, lambda batches: None)
    monkeypatch.setattr(DilocoConfig, "parts_max", lambda self, shapes: 8)
    summed = train(task, cells[-1], workshop, lambda batches: None)
    assert summed.agrees
    assert summed.loss == pytest.approx(whole.loss, abs=1e-4)
    assert summed.sent_bytes == summed.received_bytes
    assert summed.sent_bytes == pytest.approx(2 * 2 / 3 * whole.sent_bytes, rel=0.01)


def test_seeds_differ_and_repeat(make_comparison: MakeComparison) -> None:
    """In weights and in order, and never in what is held out."""
    task, workshop, cells = parts(make_comparison(methods=("diloco",), seeds=(0, 1)))
    first, second, *_ = cells
    assert flat(workshop.another_model(0).module).equal(flat(workshop.model.module))
    assert not flat(workshop.another_model(1).module).equal(flat(workshop.model.module))
    orders = [Recording(workshop, seed) for seed in (0, 1)]
    for order in orders:
        order.batch(0)
    assert orders[0].seen != orders[1].seen
    again = [losses(train(task, first, workshop, lambda batches: None)) for _ in range(2)]
    assert again[0] == again[1]
    assert again[0] != losses(train(task, second, workshop, lambda batches: None))


def losses(outcome: Outcome) -> tuple[tuple[int, float], ...]:
    assert outcome.loss == outcome.curve[-1][1]
    return outcome.curve


def test_a_curve_has_a_few_points_and_the_last_one(make_comparison: MakeComparison) -> None:
    task, workshop, cells = parts(make_comparison(methods=("diloco",), total_steps=26))
    baseline, method = (train(task, cell, workshop, lambda batches: None) for cell in cells)
    assert [at for at, _ in baseline.curve] == [-(-26 * i // 10) for i in range(1, 11)]
    assert len(method.curve) == EVALUATIONS
    assert method.curve[-1][0] == 26


def test_training_that_diverges_is_an_outcome(make_comparison: MakeComparison) -> None:
    run = '[method]\nname = "diloco"\n[method.inner.optimizer]\nname = "sgd"\nlr = 1000\n'
    rates = {"": ("1000",)}
    comparison = make_comparison(run, methods=("diloco",), steps=(4,), rates=rates, total_steps=40)
    told: list[int] = []
    assert comparison.run(lambda progress: told.append(progress.batches))
    assert told[-1] == 2 * 2 * 40, "what need not be trained any more is no work that is left"
    report = comparison.report()
    assert report.is_whole
    assert report.rows == ()
    assert report.diverged == ("synchronous, H 1", "diloco, H 4")
    assert [trial.losses for trial in report.grid] == [{0: None}, {0: None}]


def test_what_falls_in_a_run_falls_in_all_of_them(make_comparison: MakeComparison) -> None:
    """An inner rate reaches its end with the training, however long a round is."""
    run = SGD + "schedule = {{ decay_rounds = 1000, final_share = 0.0 }}\n"
    comparison = make_comparison(run, methods=("diloco",), steps=(1, 4), total_steps=8)
    _, *methods = (cell.method for cell in comparison.cells)
    assert [m.inner.schedule.decay_rounds for m in methods if isinstance(m, DilocoConfig)] == [8, 2]
    assert plan.inner_of(comparison._wishes.run_file).over(8).schedule.decay_rounds == 8
    comparison.run(quietly)
    assert math.isclose(*(row.loss.mean for row in comparison.report().rows[:2]), abs_tol=1e-6)


def test_private_data_are_shared_out_too(make_comparison: MakeComparison, tmp_path: Path) -> None:
    """One machine plays all peers: each sees batches of its own."""
    comparison = make_comparison(SGD, methods=("diloco",), steps=(1,))
    text = (tmp_path / "run.toml").read_text()
    (tmp_path / "run.toml").write_text(text.replace("batch = 2\n", "batch = 2\nprivate = true\n"))
    run_file = load_run_file(tmp_path / "run.toml")
    assert run_file.data.private
    private = Comparison(replace(comparison._wishes, run_file=run_file))
    assert private.cells[0].key(private._task) == comparison.cells[0].key(comparison._task)
