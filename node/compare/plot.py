"""A comparison as a picture: how far a method's loss is from the baseline's, and what it sends."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from node.compare.report import Report, Row
from node.picture import COLOURS, GREY, picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE: Final = "methods.png"
_MARKERS: Final = "osD^vP"


def draw(report: Report, path: Path) -> None:
    """A PNG. Raises MissingExtra, StoreError."""
    baseline, *rows = report.rows
    with picture(path, 11, 4.8) as figure:
        left, right = figure.subplots(1, 2)
        _draw_gaps(left, baseline, rows)
        _draw_bytes(right, baseline, rows)
        ticks = sorted({row.steps for row in rows})
        for axes in (left, right):
            _scale_steps(axes, ticks)
        tokens = f"{baseline.tokens:,} tokens of training in all"
        seeds = f"{len(report.seeds)} seed{'s' * (len(report.seeds) > 1)}"
        figure.suptitle(
            f"{report.name}: {report.task.peers} peers, {report.steps:g} inner steps each,"
            f" {tokens}, {seeds}",
            fontsize=12,
        )


def _draw_gaps(axes: "Axes", baseline: Row, rows: Sequence[Row]) -> None:
    axes.set_title("Held-out loss above synchronous training")
    axes.set_ylabel("difference, nats a token")
    said = f"synchronous: {baseline.loss.mean:.3f}"
    if baseline.loss.deviation is not None:
        said += f" ± {baseline.loss.deviation:.3f}"
    for number, (label, line) in enumerate(_lines(rows)):
        known = [(row.steps, row.gap) for row in line if row.gap is not None]
        gaps = [gap for _, gap in known]
        below = [gap.mean - gap.min for gap in gaps]
        above = [gap.max - gap.mean for gap in gaps]
        axes.errorbar(
            [at for at, _ in known],
            [gap.mean for gap in gaps],
            yerr=[below, above],
            capsize=4,
            label=label,
            **_look(number),
        )
    axes.margins(y=0.15)
    _draw_baseline(axes, 0.0, said)
    axes.legend(
        loc="best", title="mean at the best rate;\nbars: all seeds", title_fontsize=9,
        alignment="left",
    )  # fmt: skip


def _draw_bytes(axes: "Axes", baseline: Row, rows: Sequence[Row]) -> None:
    axes.set_title("Sent by a peer for each token it trains on")
    axes.set_ylabel("bytes a token")
    axes.set_yscale("log")
    for number, (label, line) in enumerate(_lines(rows)):
        steps = [row.steps for row in line]
        axes.plot(steps, [row.sent_bytes_a_token for row in line], label=label, **_look(number))
    axes.margins(y=0.15)
    sent = baseline.sent_bytes_a_token
    if sent:  # one peer alone sends nothing
        _draw_baseline(axes, sent, f"synchronous, ring all-reduce: {float(f'{sent:.3g}'):,g}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")


def _draw_baseline(axes: "Axes", at: float, said: str) -> None:
    axes.axhline(at, color=GREY, linestyle="--", linewidth=1.4)
    axes.annotate(
        said, (0.99, at), xycoords=("axes fraction", "data"), xytext=(0, 4),
        textcoords="offset points", ha="right", va="bottom", color=GREY, fontsize=10,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1},
    )  # fmt: skip


def _scale_steps(axes: "Axes", ticks: Sequence[float]) -> None:
    """The lengths that were tried, and no others, as far apart as their ratios."""
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("H: inner steps between two exchanges")
    if ticks:
        axes.set_xlim(ticks[0] / 1.4, ticks[-1] * 1.4)


def _lines(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """A line for each method, in the order in which they were compared."""
    lines: dict[str, list[Row]] = {}
    for row in rows:
        lines.setdefault(row.label, []).append(row)
    return [(label, sorted(line, key=lambda row: row.steps)) for label, line in lines.items()]


def _look(number: int) -> dict[str, Any]:
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": _MARKERS[number % len(_MARKERS)],
        "markersize": 6.5,
        "linewidth": 2,
    }
