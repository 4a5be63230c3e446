"""Comparisons that fit a test: a tiny model, two peers, a handful of steps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from node.compare.run import Comparison, Progress, Wishes
from node.config import load_run_file
from tests.shell.runs import SPARSELOCO, write_run

MakeComparison = Callable[..., Comparison]

SGD = """
[method]
name = "diloco"
learning_rate = {{ peak = "1" }}
momentum = "0"

[method.inner]
accumulation = 2
optimizer = {{ name = "sgd", lr = 0.05 }}
"""


@pytest.fixture
def make_comparison(tmp_path: Path) -> MakeComparison:
    def make(method: str = SPARSELOCO, **wishes: Any) -> Comparison:  # noqa: ANN401 - of `Wishes`
        path = write_run(tmp_path, method=method)
        run_file = load_run_file(path)
        asked: dict[str, Any] = {
            "out": tmp_path / "out",
            "peers": 2,
            "steps": (2,),
            "seeds": (0,),
            "rates": {"": ("own",)},
            "total_steps": 4,
        }
        return Comparison(Wishes(run_file, run_file.node, path.parent, **{**asked, **wishes}))

    return make


def quietly(progress: Progress) -> None:
    """Nobody looks."""
