"""Which runs a comparison takes, and what is refused before anything is trained."""

from pathlib import Path

import pytest

from node.compare import plan
from node.config import load_run_file
from node.errors import ConfigError
from node.methods.diloco_config import DilocoConfig
from node.methods.registry import CONFIGS
from node.methods.sparseloco_config import SparseLocoConfig
from node.methods.spsa_config import SpsaConfig
from node.training.inner_config import InnerConfig
from tests.compare.conftest import SGD
from tests.shell.runs import SPARSELOCO, SPSA, write_run


def entrants(folder: Path, *names: str, method: str = SPARSELOCO) -> list[plan.Entrant]:
    return plan.entrants(load_run_file(write_run(folder, method=method)), names or None)


def test_all_that_train_from_scratch(tmp_path: Path) -> None:
    """The run's own method is as it says; others have their defaults, and the run's inner steps."""
    found = {one.label: one.method for one in entrants(tmp_path)}
    kinds = CONFIGS.items()
    assert list(found) == [n for n, kind in kinds if kind.from_scratch and not kind.gossips]
    own, other = found["sparseloco"], found["diloco"]
    assert isinstance(own, SparseLocoConfig)
    assert isinstance(other, DilocoConfig)
    assert own.chunk == 256
    assert other.inner == own.inner != InnerConfig()
    assert other.value_bits == 32


def test_settings_from_other_run_files(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    path = write_run(tmp_path / "other", method=SPSA, probes=4)
    path.write_text(path.read_text().replace('name = "tiny"', 'name = "one byte"'))
    sparse, spsa = entrants(tmp_path, "sparseloco", str(path))
    assert (sparse.label, spsa.label) == ("sparseloco", "one byte")
    assert isinstance(spsa.method, SpsaConfig)
    assert [interval for interval, _ in plan.paced(spsa, (1, 5))] == [4], "its own probes"
    assert [interval for interval, _ in plan.paced(sparse, (1, 5))] == [1, 5]


@pytest.mark.parametrize(
    ("names", "said", "hinted"),
    [
        (("sparselogo",), "no method 'sparselogo'", "sparseloco"),
        (("spsa",), "learning_rate is missing", "--methods FILE.toml"),
        (("nowhere.toml",), "nowhere.toml", "configs/"),
        (("diloco", "diloco"), "one name", "different names"),
    ],
)
def test_methods_that_cannot_be_compared(
    tmp_path: Path, names: tuple[str, ...], said: str, hinted: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        entrants(tmp_path, *names)
    assert said in refused.value.message
    assert hinted in refused.value.hint


def test_cells_are_settings_by_seeds_at_equal_tokens(tmp_path: Path) -> None:
    both = entrants(tmp_path, "sparseloco", "diloco", method=SGD)
    inner = InnerConfig(accumulation=2)
    rates = {"diloco": ("0.5", "own"), "": ("1",)}
    cells = plan.cells(both, (1, 3), rates, (0, 7), 12, inner)
    assert len(set(cells)) == len(cells)
    assert [(c.label, c.rate, c.interval, c.rounds) for c in cells if c.seed == 7] == [
        ("synchronous", None, 2, 6),
        ("sparseloco", "1", 2, 6),
        ("sparseloco", "1", 6, 2),
        ("diloco", "0.5", 2, 6),
        ("diloco", None, 2, 6),
        ("diloco", "0.5", 6, 2),
        ("diloco", None, 6, 2),
    ]
    tuned = cells[-3].method
    assert isinstance(tuned, DilocoConfig)
    assert (tuned.learning_rate.peak, tuned.inner.steps, tuned.momentum) == ("0.5", 3, "0")


def test_rates_of_one_h(tmp_path: Path) -> None:
    both = entrants(tmp_path, "sparseloco", "diloco", method=SGD)
    rates = {"diloco": ("0.5",), "diloco@3": ("0.7", "0.9"), "sparseloco@1": ("2",), "": ("1",)}
    cells = plan.cells(both, (1, 3), rates, (0,), 12, InnerConfig(accumulation=2))
    assert [(c.label, c.rate, c.rounds) for c in cells[1:]] == [
        ("sparseloco", "2", 6),
        ("sparseloco", "1", 2),
        ("diloco", "0.5", 6),
        ("diloco", "0.7", 2),
        ("diloco", "0.9", 2),
    ]


@pytest.mark.parametrize(
    ("rates", "said"),
    [
        ({"diloco@5": ("1",)}, "5 is no H of this comparison"),
        ({"diloco@": ("1",)}, "nothing is no H"),
        ({"muloco@1": ("1",)}, "'muloco', which is not compared"),
        ({"diloco": ("fast",)}, "'fast' is no rate of diloco"),
        ({"diloco": ("0",)}, "above 0"),
        ({"muloco": ("1",)}, "'muloco', which is not compared"),
    ],
)
def test_rates_that_are_none(tmp_path: Path, rates: dict[str, tuple[str, ...]], said: str) -> None:
    found = entrants(tmp_path, "diloco")
    with pytest.raises(ConfigError, match=said):
        plan.cells(found, (1,), rates, (0,), 4, InnerConfig())


def test_too_many_steps_a_round(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="diloco takes no 100000 steps a round"):
        plan.paced(entrants(tmp_path, "diloco")[0], (100_000,))


def batches(
    steps: int | None, tokens: int | None, intervals: tuple[int, ...], accumulation: int = 1
) -> int:
    inner = InnerConfig(accumulation=accumulation)
    return plan.batches_for(
        steps, tokens, tokens_a_batch=100, peers=4, inner=inner, intervals=intervals
    )


def test_whole_rounds_of_every_length() -> None:
    assert batches(None, None, (1, 5, 15, 50)) == plan.STEPS
    assert batches(None, None, (7,)) == 301
    assert batches(30, None, (5, 15)) == 30
    assert batches(30, None, (10, 30), accumulation=2) == 60
    assert batches(None, 4_000, (5,)) == 10
    assert batches(None, 4_001, (5,)) == 15
    with pytest.raises(ConfigError, match="31 steps are no whole number of rounds") as refused:
        batches(31, None, (5, 15))
    assert "--total-steps 30 are" in refused.value.hint
