"""`peer bench methods` as a person meets it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cli import app
from node.compare.run import Progress
from node.methods.registry import CONFIGS
from tests.shell.runs import DILOCO, NOLOCO, SPARSELOCO, write_run

Run = Callable[..., tuple[int, str, str]]
SMALL = (
    *("--peers", "2", "--steps", "2", "--total-steps", "4", "--seeds", "1", "--rates", "own"),
    *("--jobs", "1"),
)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `peer bench methods` in this process: exit code, stdout, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["peer", "bench", "methods", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            app.main()
        out, err = capsys.readouterr()
        code = ended.value.code
        return int(code) if code else 0, out, err

    return run


def test_a_table_and_a_picture(bench: Run, tmp_path: Path) -> None:
    """P7: every method, what it lost, what it sent, how long that takes, and what was compared."""
    run, out = str(write_run(tmp_path, method=SPARSELOCO)), tmp_path / "out"
    code, said, err = bench(run, *SMALL, "--out", str(out))
    assert code == 0, err
    table, _, notes = said.partition("tiny: 2 peers, 4 inner steps of adamw each, 256 tokens")
    rows = {line.split()[0]: line.split() for line in table.splitlines() if line.strip()}
    for name, kind in CONFIGS.items():
        if kind.from_scratch and not kind.gossips:
            assert rows[name][2] == "own"
            assert rows[name][-1] == "equal"
    assert rows["synchronous"][1:3] == ["1", "-"]
    assert "ring all-reduce" in notes
    assert "written" in err
    assert {path.name for path in out.iterdir()} == {"cells", "methods.json", "methods.png"}


def test_a_run_that_gossips_is_compared_with_others_that_do(bench: Run, tmp_path: Path) -> None:
    """P7: the loss is that of the mean of all models, and beside it is what each has by itself."""
    run, out = str(write_run(tmp_path, method=NOLOCO)), tmp_path / "out"
    code, said, err = bench(run, *SMALL, "--out", str(out), "--split")
    assert code == 0, err
    table, _, notes = said.partition("tiny: 2 peers, 4 inner steps of adamw each, 256 tokens")
    rows = {line.split()[0]: line.split() for line in table.splitlines() if line.strip()}
    assert table.split()[:5] == ["method", "H", "rate", "loss", "own"]
    for name, kind in CONFIGS.items():
        assert (name in rows) == (kind.from_scratch and kind.gossips)
    assert rows["noloco"][2] == rows["d-psgd"][2] == "own"
    assert rows["d-psgd"][-1] == rows["synchronous"][4] == "-"
    assert "that of the mean of all" in notes
    assert "a stretch of the data of its own" in notes
    report = json.loads((out / "methods.json").read_text())
    assert report["task"]["split"] is True
    assert all(row["own_loss"] for row in report["rows"][1:])


def test_rates_that_differ_by_h_are_said_by_h(bench: Run, tmp_path: Path) -> None:
    run, out = str(write_run(tmp_path, method=SPARSELOCO)), tmp_path / "out"
    rates = ("--rates", "sparseloco@1=0.5,1", "--rates", "sparseloco=1")
    rest = ("--methods", "sparseloco", *rates, "--no-plot", "--out", str(out))
    code, said, err = bench(run, *SMALL, "--steps", "1,2", *rest)
    assert code == 0, err
    assert "sparseloco at H = 1: 0.5, 1; at H = 2: 1" in said


def test_ctrl_c_says_how_to_go_on(
    bench: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def press(progress: Progress, started: float) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("cli.bench._line", press)
    run, out = str(write_run(tmp_path, method=SPARSELOCO)), tmp_path / "out"
    code, said, err = bench(run, *SMALL, "--out", str(out))
    assert code == 130
    assert said.startswith("no setting has been trained")
    assert "goes on from here" in err
    assert not json.loads((out / "methods.json").read_text())["is_whole"]


def test_json_is_the_whole_report(bench: Run, tmp_path: Path) -> None:
    run, out = str(write_run(tmp_path, method=DILOCO)), tmp_path / "out"
    rest = ("--methods", "diloco", "--no-plot", "--json")
    code, said, err = bench(run, *SMALL, *rest, "--out", str(out))
    assert code == 0, err
    facts = json.loads(said)
    assert facts == json.loads((out / "methods.json").read_text())
    baseline, row = facts["rows"]
    assert baseline["label"] == "synchronous"
    assert baseline["gap"]["mean"] == 0
    assert row["label"] == "diloco"
    assert row["loss"]["mean"] == facts["cells"][1]["outcome"]["loss"]
    assert row["sent_bytes_a_token"] == row["received_bytes_a_token"] > 0
    assert set(row["hours"]) == set(row["hours_overlapped"]) == {"10", "100", "1000"}
    assert facts["seeds"] == [0]
    assert facts["digests_equal"]
    assert facts["task"]["peers"] == 2
    assert "received_bytes" in facts["formulas"]["hours"]
    assert not (out / "methods.png").exists()


def test_processes_end_with_the_one_that_was_asked(tmp_path: Path) -> None:
    """Also when it is killed, and can end nobody."""
    run = str(write_run(tmp_path, method=SPARSELOCO))
    code = "from cli.app import main; main()"
    wish = ("bench", "methods", run, *SMALL[:4], "--total-steps", "1000000", "--jobs", "2")
    rest = ("--rates", "own", "--no-plot", "--methods", "diloco", "--out", str(tmp_path / "out"))
    with subprocess.Popen(
        (sys.executable, "-c", code, *wish, *rest), stderr=subprocess.PIPE, text=True
    ) as asked:
        assert asked.stderr is not None
        try:
            for line in asked.stderr:
                if "batches/s" in line and " 0 batches/s" not in line:
                    break  # they are at work
            helpers = children(asked.pid)
        finally:
            asked.kill()
            asked.stderr.close()
    assert len(helpers) >= 2
    end = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in helpers) and time.monotonic() < end:
        time.sleep(0.05)
    left = [pid for pid in helpers if Path(f"/proc/{pid}").exists()]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def children(pid: int) -> list[int]:
    found = (task.read_text().split() for task in Path(f"/proc/{pid}/task").glob("*/children"))
    return [int(child) for one in found for child in one]


def test_help_says_what_is_compared(bench: Run) -> None:
    code, said, _ = bench("--help")
    assert code == 0
    words = " ".join(said.split())
    for part in ("8 * bytes that it receives / rate", "lowest mean", "goes on from there"):
        assert part in words
    for option in ("--peers", "--steps", "--seeds", "--methods", "--rates", "--out", "--jobs"):
        assert option in words


@pytest.mark.parametrize(
    ("options", "said", "hinted"),
    [
        (("--methods", "sparse"), "no method 'sparse'", "sparseloco"),
        (("--methods", "spsa"), "learning_rate is missing", "FILE.toml"),
        (("--steps", "1,x"), "no list of whole numbers", "1,5,15"),
        (("--steps", "0"), "no list of whole numbers", "1,5,15"),
        (("--steps", "5,5"), "one thing twice", "a,b,c"),
        (("--steps", "3", "--total-steps", "4"), "4 steps are no whole number", "--total-steps 3"),
        (("--seeds", "0"), "no number of seeds", "one seed"),
        (("--rates", "fast"), "'fast' is no rate", "--rates"),
        (("--rates", "muloco=1"), "'muloco'", "sparseloco"),
        (("--rates", "sparseloco@7=1"), "7 is no H", "--steps"),
        (("--total-steps", "4", "--tokens", "100"), "both", "one of them"),
    ],
)
def test_what_cannot_be_compared(
    bench: Run, tmp_path: Path, options: tuple[str, ...], said: str, hinted: str
) -> None:
    run, out = str(write_run(tmp_path, method=SPARSELOCO)), tmp_path / "out"
    code, _, err = bench(run, *options, "--out", str(out))
    assert code == 2
    assert_complaint(err, said, hinted)
    assert not out.exists()


def assert_complaint(err: str, said: str, hinted: str) -> None:
    error, hint = err.strip().splitlines()[-2:]
    assert error.startswith("error: ")
    assert said in error
    assert hint.startswith("hint: ")
    assert hinted in hint


def test_a_model_that_inner_steps_cannot_train(bench: Run, tmp_path: Path) -> None:
    path, out = write_run(tmp_path, method=SPARSELOCO), tmp_path / "out"
    path.write_text(path.read_text().replace("width = 8", 'width = 8\ndtype = "bf16"'))
    code, _, err = bench(str(path), *SMALL, "--out", str(out))
    assert code == 2
    assert_complaint(err, "is torch.bfloat16", 'dtype = "fp32"')
    assert not out.exists()


def test_a_missing_extra_is_said_before_anything_is_trained(
    bench: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    run, out = str(write_run(tmp_path, method=SPARSELOCO)), tmp_path / "out"
    code, _, err = bench(run, *SMALL, "--out", str(out))
    assert code == 2
    assert_complaint(err, "'matplotlib' is needed", "peertrain[plot]")
    assert not out.exists()
    code, _, err = bench(run, *SMALL, "--methods", "diloco", "--no-plot", "--out", str(out))
    assert code == 0, err
