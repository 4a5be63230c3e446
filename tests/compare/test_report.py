"""What is said of the outcomes, from outcomes made up on the spot."""

from statistics import stdev

import pytest

from node.compare.costs import hours
from node.compare.records import BASELINE, Cell, Outcome, Task
from node.compare.report import Report, Row, report
from node.methods.diloco_config import DilocoConfig
from node.training.data_config import DataConfig
from node.training.inner_config import InnerConfig
from node.training.model_config import GptConfig

TASK = Task(
    model=GptConfig(kind="gpt"),
    model_digest="",
    data=DataConfig(source="python-stdlib"),
    data_digest="",
    inner=InnerConfig(accumulation=2),
    optimizer=None,
    peers=4,
    batches=20,
    device="cpu",
)


def cell(rate: str | None, seed: int, interval: int = 10) -> Cell:
    method = None if rate is None else DilocoConfig(name="diloco").with_rate(rate)
    label = BASELINE if rate is None else "diloco"
    rounds = 20 // interval
    return Cell(
        label=label, method=method, rate=rate, interval=interval, rounds=rounds, seed=seed
    )  # fmt: skip


def outcome(loss: float | None, **changes: object) -> Outcome:
    made = {
        "loss": loss, "curve": (), "tokens": 8_000, "parameters": 10, "sent_bytes": 1_000.0,
        "received_bytes": 3_000.0, "work_s": 3.0, "merge_s": 1.0, "digests": ("a", "a"),
    }  # fmt: skip
    return Outcome.model_validate({**made, **changes})


PLANNED = [cell(None, 0, 2), cell(None, 1, 2)] + [
    cell(rate, seed) for rate in ("0.1", "0.7", "1") for seed in (0, 1)
]


def said(*losses: float | None, **changes: object) -> Report:
    """The outcomes of the first few cells that are planned."""
    done = dict(zip(PLANNED, (outcome(loss, **changes) for loss in losses), strict=False))
    return report("tiny", TASK, PLANNED, done, {})


def shown(found: Report) -> Row:
    _, row = found.rows
    return row


def test_the_best_rate_is_the_best_on_average() -> None:
    """Not the one with the best single seed; the gap is to the baseline of the same seed."""
    found = said(2.0, 3.0, 2.0, 9.0, 2.5, 3.3, 2.6, 3.3)
    row = shown(found)
    assert (row.rate, row.steps, row.tokens) == ("0.7", 5, 8_000)
    assert row.loss.mean == pytest.approx(2.9)
    assert row.loss.deviation == pytest.approx(stdev([2.5, 3.3]))
    assert row.gap is not None
    assert (row.gap.min, row.gap.max) == (pytest.approx(0.3), pytest.approx(0.5))
    assert [trial.mean for trial in found.grid] == [2.5, 5.5, 2.9, pytest.approx(2.95)]
    assert found.is_whole
    assert len(found.cells) == 8


def test_a_rate_that_diverged_once_is_not_the_best() -> None:
    assert shown(said(2.0, 3.0, 2.0, None, 2.5, 3.3, 2.6, 3.3)).rate == "0.7"
    found = said(2.0, 3.0, 2.0, None, None, None, None, 3.0)
    assert len(found.rows) == 1
    assert found.diverged == ("diloco, H 5",)


def test_what_is_not_finished_is_left_out() -> None:
    found = said(2.0, 3.0, 2.5, 3.6, 2.0)
    assert not found.is_whole
    assert shown(found).rate == "0.1", "one seed of 0.7 says nothing of the other"
    assert not said(2.0).rows
    assert not said(2.0, 3.0, 2.5).diverged
    assert said(2.0, 3.0).rows[0].label == BASELINE


def test_a_baseline_that_diverged_leaves_no_gap() -> None:
    done = dict(zip(PLANNED, map(outcome, (None, 3.0, 2.5, 2.6)), strict=False))
    found = report("tiny", TASK, PLANNED, done, {})
    (row,) = found.rows
    assert row.gap is None
    assert found.diverged == ("synchronous, H 1",)
    more = dict(zip(PLANNED, map(outcome, (None, 3.0, *[2.5] * 6)), strict=True))
    assert not report("tiny", TASK, PLANNED, more, {}).is_drawable
    assert said(*[2.0] * 8).is_drawable


def test_bytes_and_hours() -> None:
    """P7: by hand. Each of 4 peers trained on 2,000 tokens, in 2 rounds."""
    row = shown(said(*[2.0] * 8))
    assert row.sent_bytes_a_token == 2 * 1_000 / 2_000
    assert row.received_bytes_a_token == 2 * 3_000 / 2_000
    assert row.compute_s == 2 * 4
    assert row.hours[10] == pytest.approx(2 * (4 + 0.0024) / 3600)
    assert row.hours_overlapped[10] == pytest.approx(2 * 4 / 3600)
    busy = outcome(1.0, received_bytes=10_000_000.0)
    assert hours(busy, 2, 10, overlapped=False) == pytest.approx(2 * (4 + 8) / 3600)
    assert hours(busy, 2, 10, overlapped=True) == pytest.approx(2 * 8 / 3600)


def test_digests_that_differ_are_said() -> None:
    """P1"""
    found = said(*[2.0] * 8, digests=("a", "b"))
    assert not found.digests_equal
    assert shown(found).digests_equal is False
    assert shown(said(*[2.0] * 8)).digests_equal is True
    done = {one: outcome(2.0, digests=()) for one in PLANNED[:2]}
    assert report("tiny", TASK, PLANNED, done, {}).rows[0].digests_equal is None


def test_where_peers_gossip_their_own_losses_are_beside_the_loss_of_their_mean() -> None:
    done = {cell(None, seed, 2): outcome(2.0, digests=()) for seed in (0, 1)}
    done |= {
        cell("0.7", seed): outcome(2.5, digests=(), own_losses=(2.6 + seed, 2.8 + seed))
        for seed in (0, 1)
    }
    planned = [one for one in PLANNED if one in done]
    baseline, row = report("tiny", TASK, planned, done, {}).rows
    assert baseline.own_loss is None
    assert row.own_loss is not None
    assert row.own_loss.mean == pytest.approx(3.2)
    assert row.loss.mean == 2.5
    assert row.digests_equal is None
