"""How pictures look here. matplotlib is an extra, and only loaded to draw."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from node.chunks import explained
from node.errors import optional

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY: Final = "#444444"
_STYLE: Final = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e3e3e3",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 10,
}


def check_plot() -> None:
    """Raises MissingExtra."""
    optional("matplotlib", "plot")


@contextmanager
def picture(path: Path, width: float, height: float) -> Iterator["Figure"]:
    """What is drawn in the block becomes a PNG; inches of 160 dots. Raises MissingExtra and
    StoreError.
    """
    matplotlib: Any = optional("matplotlib", "plot")
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), dpi=160, layout="constrained")
        yield figure
        try:
            figure.savefig(path, format="png")
        except OSError as error:
            raise explained(error, path) from error
