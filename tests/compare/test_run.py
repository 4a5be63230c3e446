"""A comparison that is interrupted goes on; what is on disk is not done again."""

import multiprocessing
from pathlib import Path
from typing import Any

from node.compare.plot import draw
from node.compare.report import Report
from node.compare.run import REPORT, Comparison, Progress
from tests.compare.conftest import MakeComparison, quietly

BOTH: dict[str, Any] = {"methods": ("sparseloco", "diloco"), "steps": (1, 2)}


def trained(comparison: Comparison) -> int:
    """Micro-batches that it goes through, of all that it would take from nothing."""
    told = [0]
    assert comparison.run(lambda progress: told.append(progress.batches))
    return told[-1]


def losses(found: Report) -> list[tuple[str, float, dict[int, float | None]]]:
    return [(trial.label, trial.steps, trial.losses) for trial in found.grid]


def test_finished_cells_are_not_trained_again(make_comparison: MakeComparison) -> None:
    each = 2 * 4  # micro-batches of a cell: peers, steps
    first = make_comparison(**BOTH)
    assert trained(first) == 5 * each
    again = make_comparison(**BOTH)
    assert trained(again) == 0
    assert losses(again.report()) == losses(first.report())
    assert trained(make_comparison(**BOTH, seeds=(0, 1))) == 5 * each, "the new seed"
    assert trained(make_comparison(methods=("diloco",), steps=(2, 4))) == each, "the new length"
    assert trained(make_comparison(**BOTH, peers=3)) == 5 * 3 * 4, "nothing of it is known"


def test_ctrl_c_keeps_what_is_finished(make_comparison: MakeComparison, tmp_path: Path) -> None:
    """And the next call ends with what an undisturbed one says."""

    def press(progress: Progress) -> None:
        if progress.cells == 2:
            raise KeyboardInterrupt

    stopped = make_comparison(**BOTH)
    assert not stopped.run(press)
    part = Report.model_validate_json((tmp_path / "out" / REPORT).read_text())
    assert not part.is_whole
    assert len(part.cells) == 2
    assert [row.label for row in part.rows] == ["synchronous", "sparseloco"]
    resumed = make_comparison(**BOTH)
    assert trained(resumed) == 3 * 2 * 4
    whole = make_comparison(**BOTH, out=tmp_path / "undisturbed")
    whole.run(quietly)
    assert losses(resumed.report()) == losses(whole.report())
    assert resumed.report().is_whole


def test_a_damaged_file_is_trained_again(make_comparison: MakeComparison, tmp_path: Path) -> None:
    trained(make_comparison(**BOTH))
    one, other, *_ = sorted((tmp_path / "out" / "cells").iterdir())
    one.write_text(one.read_text()[:-20])
    other.write_bytes(b"\xff")
    assert trained(make_comparison(**BOTH)) == 2 * 2 * 4


def test_processes_find_the_same(make_comparison: MakeComparison, tmp_path: Path) -> None:
    alone, shared = make_comparison(**BOTH), make_comparison(**BOTH, out=tmp_path / "b", jobs=2)
    alone.run(quietly)
    assert shared.run(quietly)
    assert losses(shared.report()) == losses(alone.report())


def test_ctrl_c_ends_the_processes(make_comparison: MakeComparison) -> None:
    def press(progress: Progress) -> None:
        raise KeyboardInterrupt

    assert not make_comparison(**BOTH, jobs=2).run(press)
    assert not multiprocessing.active_children()


def test_a_picture(make_comparison: MakeComparison, tmp_path: Path) -> None:
    comparison = make_comparison(**BOTH, seeds=(0, 1))
    comparison.run(quietly)
    draw(comparison.report(), tmp_path / "methods.png")
    picture = (tmp_path / "methods.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = (int.from_bytes(picture[at : at + 4], "big") for at in (16, 20))
    assert width > height > 500
