"""Two processes take the steps that one would take.

One run of `box_script.py` does everything, for starting processes is what takes time here.
"""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from node.box import sharding
from node.box.errors import BoxError
from node.box.group import INTERFACES
from node.box.leader import Box
from node.box.place import Place, place_of
from node.box.steps import rows_of
from node.config import NodeConfig
from node.errors import ConfigError
from node.methods.parts.setup import Setup
from node.training.data import open_data
from node.training.gradient import MeanGradient
from node.training.inner import InnerTrainer
from node.training.losses import Batch, batch_loss
from node.training.tokens import ByteTokenizer
from tests.training import box_script
from tests.training.box_script import ADAMW, CASES, SGD, outer_step, shareable
from tests.training.modules import config, gpt, never, slots, weights

WAIT_S = 240.0


class Found:
    """What two processes did, and what it takes to do the same with one."""

    def __init__(self, folder: Path) -> None:
        (folder / "text.txt").write_text(
            "\n".join(f"{n} times {n} is {n * n}, as everybody knows." for n in range(60))
        )
        self.batch = open_data(box_script.data(folder), ByteTokenizer(), folder).batch
        model, inner = self.one(gpt(), steps=2, optimizer=ADAMW)
        inner.work(0, slots(), never)
        kept = {"model": model.state_dict(), "state": inner.local_state()}
        torch.save(kept, folder / "kept.pt")
        command = [sys.executable, "-m", "tests.training.box_script", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
        assert done.returncode == 0, done.stderr
        self.facts: dict[str, Any] = torch.load(folder / "found.pt", weights_only=False)

    def one(self, model: nn.Module, **fields: object) -> tuple[nn.Module, InnerTrainer]:
        return model, InnerTrainer(config(**fields), model, batch_loss, self.batch)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return Found(tmp_path_factory.mktemp("box"))


def assert_near(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    """To rounding."""
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-5, atol=1e-5, msg=name)


def alone(found: Found, name: str) -> tuple[nn.Module, InnerTrainer, Any]:
    """What `box_script.ordinary` does, with one process."""
    model = shareable() if name == "odd" else gpt()
    model, inner = found.one(model, steps=2, **CASES[name])
    feed = slots()
    report = inner.work(0, feed, never)
    outer_step(model)
    inner.work(1, feed, never)
    return model, inner, report


@pytest.mark.parametrize("name", sorted(set(CASES) - {"muon"}))
def test_steps_are_those_of_one_process(found: Found, name: str) -> None:
    model, inner, report = alone(found, name)
    facts = found.facts[name]
    assert_near(facts["weights"], weights(model))
    assert_near(facts["state"], inner.local_state())
    ours, theirs = facts["report"], report
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)
    assert (ours.steps, ours.batches, ours.tokens, ours.skipped) == (
        theirs.steps, theirs.batches, theirs.tokens, theirs.skipped
    )  # fmt: skip


def test_muon_sees_whole_matrices(found: Found) -> None:
    """It works in bfloat16, which makes much of rounding. Of halves of matrices it would make
    something else altogether.
    """
    start = weights(gpt())
    model, inner, _ = alone(found, "muon")
    facts = found.facts["muon"]
    for name, tensor in weights(model).items():
        moved = tensor - start[name]
        assert float((facts["weights"][name] - tensor).norm()) < 0.02 * float(moved.norm()), name
    assert facts["state"].keys() == inner.local_state().keys()


def test_a_state_goes_from_one_process_to_two(found: Found) -> None:
    """After one that was refused, which leaves everything as it was."""
    model, inner = found.one(gpt(), steps=2, optimizer=ADAMW)
    feed = slots()
    for _ in range(2):
        inner.work(0, feed, never)
    facts = found.facts["resumed"]
    assert_near(facts["weights"], weights(model))
    assert "of no parameter" in facts["refused"]


def test_a_state_goes_from_two_processes_to_one(found: Found) -> None:
    facts = found.facts["adamw-1"]
    first, inner, _ = alone(found, "adamw-1")
    second, again = found.one(gpt(), steps=2, **CASES["adamw-1"])
    second.load_state_dict(first.state_dict())
    again.load_local_state(facts["state"])
    for one in (inner, again):
        one.work(2, slots(4), never)
    assert_near(weights(first), weights(second))


def test_gradients_are_added_up(found: Found) -> None:
    """For methods that send them: what was taken does not come again, and nothing moves."""
    facts = found.facts["added up"]
    model, _ = found.one(gpt())
    assert_near(facts["weights"], weights(model))
    for round, mean in enumerate(facts["means"]):
        gradient = MeanGradient(model)
        inner = InnerTrainer(config(steps=3), model, batch_loss, found.batch, optimizer=gradient)
        inner.work(round, slots(3 * round), never)
        for ours, theirs in zip(mean, gradient.take(None), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(facts["kept"], facts["means"][1], strict=True):
        assert torch.equal(ours, theirs)


def test_time_ends_for_all_at_once(found: Found) -> None:
    """A turn of the third step was taken, and is dropped."""
    model, inner = found.one(gpt(), optimizer=SGD, accumulation=3, steps=2)
    facts = found.facts["in time"]
    report = inner.work(0, slots(), never)
    assert (facts["report"].steps, facts["report"].batches) == (report.steps, report.batches)
    assert_near(facts["weights"], weights(model))


def test_steps_that_are_not_finite_are_skipped_by_all(found: Found) -> None:
    facts = found.facts["spoilt"]
    first, second = facts["first"], facts["second"]
    assert (first.steps, first.batches, first.skipped, first.loss) == (0, 3, 3, None)
    assert (second.steps, second.skipped) == (5, 0)


def test_a_killed_process_ends_the_peer(found: Found) -> None:
    """With an error that says which one, and no hang; whatever is asked of it next, too."""
    facts = found.facts["killed"]
    assert len(facts["said"]) == 2
    assert set(facts["said"]) == set(facts["lost"])
    assert facts["lost"][0].startswith("process 1 of this peer")
    assert facts["lost"][0].endswith("was killed by SIGKILL")


def test_a_process_that_does_not_come_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first does not wait for ever."""
    (tmp_path / "torch.py").write_text("raise SystemExit(3)")
    monkeypatch.syspath_prepend(tmp_path)
    for name in INTERFACES:
        monkeypatch.setenv(name, "lo")
    lost: list[BaseException] = []
    with pytest.raises(BoxError, match=r"process 1 .* ended with exit code 3"):
        Box(Place(0, 2, False), "cpu", lost.append)
    assert len(lost) == 1


# Refusals


def test_a_trained_number_without_dimensions(found: Found) -> None:
    assert "gain is a single number" in found.facts["refused"]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.blocks[1].weight = self.blocks[0].weight


def test_a_tensor_that_two_layers_use() -> None:
    with pytest.raises(ConfigError, match=r"blocks\.0\.weight is used in more than one layer"):
        sharding.shard(Tied(), None)  # type: ignore[arg-type]


def test_what_suits_one_process_only() -> None:
    for fields in ({"device": "cuda:1"}, {"optimizer": {"path": "torch.optim.Adagrad"}}):
        node = NodeConfig.model_validate({"processes": 2, **fields})
        with pytest.raises(ConfigError):
            place_of(node, {})
        assert place_of(node.model_copy(update={"processes": 1}), {}) == Place(0, 1, False)


def test_methods_without_inner_steps() -> None:
    """SPSA asks the whole model for a loss, and two processes would only wait for each other."""
    some: Any = object()
    with pytest.raises(ConfigError, match="takes no inner steps") as caught:
        Setup(gpt(), some, batch_loss, some, bytes(32), box=some).perturbed()
    assert "one peer for each GPU" in caught.value.hint


TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}


def test_torchrun_says_who_we_are() -> None:
    assert place_of(NodeConfig(), TORCHRUN) == Place(1, 2, True)
    assert place_of(NodeConfig(processes=2), TORCHRUN) == Place(1, 2, True)
    with pytest.raises(ConfigError, match=r"node\.processes is 3"):
        place_of(NodeConfig(processes=3), TORCHRUN)
    with pytest.raises(ConfigError, match="several machines"):
        place_of(NodeConfig(), {**TORCHRUN, "LOCAL_WORLD_SIZE": "1"})


def test_who_has_no_row_looks_at_one_that_does_not_count() -> None:
    tokens = torch.arange(6).reshape(3, 2)
    whole = Batch(tokens, tokens)
    parts = [rows_of(whole, rank, 4) for rank in range(4)]
    assert [share for _, share in parts] == [1 / 3] * 3 + [0.0]
    assert torch.equal(torch.cat([part.targets for part, _ in parts[:3]]), tokens)
    assert len(parts[3][0].inputs) == 1
