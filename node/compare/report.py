"""What a comparison says: for each method and length of a round the best rate of its grid, and how
far its held-out loss is from the baseline's.

The best rate is the one with the lowest mean of the final held-out losses over the seeds. It is
chosen on the samples that it is then judged by, for every method alike.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from statistics import fmean, stdev
from typing import Any, Final

from node.compare.costs import FORMULAS, LINKS_MBIT, hours
from node.compare.records import BASELINE, Cell, Outcome, Record, Task

VERSION: Final = 1
Done = Mapping[Cell, Outcome]


class Spread(Record):
    """Of one number, over seeds."""

    mean: float
    min: float
    max: float
    deviation: float | None
    """Of the sample; None with one seed."""

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        deviation = stdev(values) if len(values) > 1 else None
        return cls(mean=fmean(values), min=min(values), max=max(values), deviation=deviation)


class Trial(Record):
    """A method at one length of a round and one rate."""

    label: str
    steps: float
    """Inner steps between two exchanges, in those of the baseline."""
    rate: str | None
    losses: dict[int, float | None]
    """Held out at the end, by seed, of those that are finished; None: diverged."""
    is_whole: bool
    """All seeds are finished."""

    @property
    def mean(self) -> float | None:
        """None while seeds are missing, and when one of them diverged."""
        losses = [loss for loss in self.losses.values() if loss is not None]
        return fmean(losses) if self.is_whole and len(losses) == len(self.losses) else None


class Row(Record):
    """A method at one length of a round, at its best rate."""

    label: str
    steps: float
    rate: str | None
    loss: Spread
    gap: Spread | None
    """The loss less the baseline's from the same seed."""
    tokens: int
    sent_bytes_a_token: float
    received_bytes_a_token: float
    compute_s: float
    """Of one peer, in all."""
    hours: dict[int, float]
    hours_overlapped: dict[int, float]
    digests_equal: bool | None
    """None: there is one replica only, or none, where peers gossip."""
    own_loss: Spread | None = None
    """Where peers gossip: the mean over peers of their own models' losses. `loss` is that of the
    mean of their models.
    """


class Report(Record):
    version: int = VERSION
    name: str
    task: Task
    steps: float
    """Inner steps of each peer in all, in those of the baseline."""
    seeds: tuple[int, ...]
    is_whole: bool
    digests_equal: bool
    rows: tuple[Row, ...]
    """The baseline first, unless it diverged."""
    grid: tuple[Trial, ...]
    """Every rate that was tried."""
    diverged: tuple[str, ...]
    """Where no rate of the grid came to an end: the method and its steps."""
    formulas: dict[str, str] = FORMULAS
    machine: dict[str, Any]
    cells: tuple[dict[str, Any], ...]
    """Everything raw."""

    @property
    def is_drawable(self) -> bool:
        """There is the baseline, and something to hold against it."""
        return len(self.rows) > 1 and self.rows[0].label == BASELINE


def report(
    name: str, task: Task, planned: Sequence[Cell], done: Done, machine: dict[str, Any]
) -> Report:
    """Of what is finished; settings of which no rate is whole have no row yet."""
    baseline = {c.seed: done[c].loss for c in planned if c.method is None and c in done}
    grid: list[Trial] = []
    rows: list[Row] = []
    diverged: list[str] = []
    for (label, _), group in groupby(planned, key=lambda cell: (cell.label, cell.interval)):
        tried = [_tried(list(cells), done, task) for _, cells in groupby(group, _rate_of)]
        grid += [trial for trial, _ in tried if trial.losses]
        fit = [(trial.mean, trial, cells) for trial, cells in tried if trial.mean is not None]
        if fit:
            _, best, cells = min(fit, key=lambda one: one[0])
            rows.append(_row(best, cells, done, baseline, task.peers))
        elif all(trial.is_whole for trial, _ in tried):
            diverged.append(f"{label}, H {tried[0][0].steps:g}")
    return Report(
        name=name,
        task=task,
        steps=task.batches / task.inner.accumulation,
        seeds=tuple(sorted({cell.seed for cell in planned})),
        is_whole=all(cell in done for cell in planned),
        digests_equal=all(done[cell].agrees for cell in planned if cell in done),
        rows=tuple(rows),
        grid=tuple(grid),
        diverged=tuple(diverged),
        machine=machine,
        cells=tuple(_raw(cell, done[cell]) for cell in planned if cell in done),
    )


def _rate_of(cell: Cell) -> str | None:
    return cell.rate


def _raw(cell: Cell, outcome: Outcome) -> dict[str, Any]:
    return {"cell": cell.model_dump(mode="json"), "outcome": outcome.model_dump(mode="json")}


def _tried(cells: list[Cell], done: Done, task: Task) -> tuple[Trial, list[Cell]]:
    """`cells` differ in their seed only."""
    first = cells[0]
    trial = Trial(
        label=first.label,
        steps=first.interval / task.inner.accumulation,
        rate=first.rate,
        losses={cell.seed: done[cell].loss for cell in cells if cell in done},
        is_whole=all(cell in done for cell in cells),
    )
    return trial, cells


def _row(
    trial: Trial,
    cells: Sequence[Cell],
    done: Done,
    baseline: Mapping[int, float | None],  # by seed
    peers: int,
) -> Row:
    outcomes = [done[cell] for cell in cells]
    rounds = cells[0].rounds
    losses = {cell.seed: loss for cell in cells if (loss := done[cell].loss) is not None}
    gaps = [
        loss - base for seed, loss in losses.items() if (base := baseline.get(seed)) is not None
    ]
    one = outcomes[0]
    own_tokens = one.tokens / peers
    return Row(
        label=trial.label,
        steps=trial.steps,
        rate=trial.rate,
        loss=Spread.of(list(losses.values())),
        gap=Spread.of(gaps) if len(gaps) == len(losses) else None,
        tokens=one.tokens,
        sent_bytes_a_token=fmean(o.sent_bytes for o in outcomes) * rounds / own_tokens,
        received_bytes_a_token=fmean(o.received_bytes for o in outcomes) * rounds / own_tokens,
        compute_s=fmean(rounds * (o.work_s + o.merge_s) for o in outcomes),
        hours=_hours(outcomes, rounds, overlapped=False),
        hours_overlapped=_hours(outcomes, rounds, overlapped=True),
        digests_equal=all(o.agrees for o in outcomes) if one.digests else None,
        own_loss=Spread.of([fmean(o.own_losses) for o in outcomes]) if one.own_losses else None,
    )


def _hours(outcomes: Sequence[Outcome], rounds: int, *, overlapped: bool) -> dict[int, float]:
    return {
        mbit: fmean(hours(one, rounds, mbit, overlapped=overlapped) for one in outcomes)
        for mbit in LINKS_MBIT
    }
