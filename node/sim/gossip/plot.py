"""How far peers' models are apart, as a picture: before, while and after halves are split."""

from pathlib import Path
from typing import TYPE_CHECKING

from node.picture import COLOURS, GREY, picture
from node.sim.gossip.report import GossipReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(report: GossipReport, path: Path) -> None:
    """A PNG, of a report that followed the distances. Raises MissingExtra, StoreError."""
    with picture(path, 9, 4.6) as figure:
        axes = figure.subplots()
        at = [one.exchanges for one in report.distances]
        apart = [one.all for one in report.distances]
        axes.plot(at, apart, color=COLOURS[0], linewidth=2, label="from the mean of all")
        if report.partition is not None:
            _shade(axes, report.partition)
            inside = [one.halves for one in report.distances]
            axes.plot(at, inside, "--", color=COLOURS[1], label="from the mean of its own half")
        axes.set_title("Mean squared distance of members' models (consensus distance)")
        axes.set_xlabel("exchanges of each peer")
        axes.set_ylim(bottom=0)
        axes.margins(x=0)
        axes.legend(loc="upper left")
        figure.suptitle(
            f"{report.name}: {report.peers} simulated peers, {report.parameters:,} weights",
            fontsize=12,
        )


def _shade(axes: "Axes", partition: tuple[int, int]) -> None:
    first, last = partition
    axes.axvspan(first, last, color=GREY, alpha=0.12, linewidth=0)
    axes.annotate(
        "two halves", ((first + last) / 2, 1), xycoords=("data", "axes fraction"),
        xytext=(0, -6), textcoords="offset points", ha="center", va="top", color=GREY,
    )  # fmt: skip
