"""What a person meets: errors of two lines with a next step, stable exit codes, JSON."""

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from cli import app
from node import bootstrap
from node.config import load_run_file
from node.store import Store
from protocol.entries import Token
from protocol.identity import Identity
from protocol.ids import PeerId, RunId
from protocol.invites import Contact, Invite, encode_invite
from tests.shell.runs import write_run

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(
    path for path in (ROOT / "configs").glob("*.toml") if not path.name.startswith("links-")
)

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process: exit code, stdout, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["peer", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            app.main()
        out, err = capsys.readouterr()
        code = ended.value.code
        return int(code) if code else 0, out, err

    return run


def complaint(err: str) -> tuple[str, str]:
    """The last two lines: what is wrong, and what to do."""
    error, hint = err.strip().splitlines()[-2:]
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")
    assert "Traceback" not in err
    return error, hint


def edited(folder: Path, old: str, new: str) -> str:
    path = write_run(folder)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return str(path)


def invite(run: bytes = bytes(32), expires_s: int = 1 << 40) -> str:
    key = PeerId(b"\x01" * 32)
    token = Token(key, expires_s, bytes(8), bytes(64))
    contact = Contact(key, ("tcp://127.0.0.1:9",))
    return encode_invite(Invite(RunId(run), bytes(32), (contact,), token))


def test_help_lists_the_exit_codes(peer: Run) -> None:
    code, out, _ = peer("--help")
    assert code == 0
    for exit_code in app.ExitCode:
        assert exit_code.meaning in " ".join(out.split())


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_run_file_is_valid(peer: Run, config: Path) -> None:
    code, out, err = peer("check", "--quick", "--json", str(config))
    assert code == 0, err
    assert json.loads(out)["valid"]


def test_check_measures(peer: Run, tmp_path: Path) -> None:
    """P7: sizes are counted, and one window of work is done."""
    code, out, err = peer("check", "--json", str(write_run(tmp_path)))
    assert code == 0, err
    facts = json.loads(out)
    assert facts["parameters"] == facts["trainable"] > 1_000
    assert facts["work_per_round"] == 4
    assert 4 < facts["payload_bytes"] < 8
    assert facts["heldout_loss"] > 0


@pytest.mark.parametrize(
    ("old", "new", "said", "hinted"),
    [
        ("width = 8", "widht = 8", "unknown key model.widht", "'width'"),
        ("[data]", "[date]", "unknown key date", "'data'"),
        ("window_s = 0.3", "window_s = -1", "rules.window_s", "configs/"),
        ('quorum = "any"', 'quorum = "some"', "rules.quorum", "configs/"),
        ('name = "tiny"', "", "name is missing", "configs/"),
        ('kind = "gpt"', 'kind = "gpt', "is not TOML", "configs/"),
        ('peak = "0.001"', 'peak = "fast"', "learning_rate", "configs/"),
    ],
)
def test_bad_run_files(
    peer: Run, tmp_path: Path, old: str, new: str, said: str, hinted: str
) -> None:
    code, _, err = peer("check", edited(tmp_path, old, new))
    error, hint = complaint(err)
    assert code == 2
    assert said in error
    assert hinted in hint


def test_missing_files(peer: Run, tmp_path: Path) -> None:
    code, _, err = peer("start", str(tmp_path / "none.toml"))
    assert code == 2
    assert "there is no run file" in complaint(err)[0]
    home = str(tmp_path / "home")
    config = edited(tmp_path, "text.txt", "gone.txt")
    code, _, err = peer("start", config, "--home", home, "--listen", "tcp://127.0.0.1:0")
    assert code == 2
    assert "gone.txt" in complaint(err)[0]
    config = edited(tmp_path, 'kind = "gpt"\nlayers = 1\nwidth = 8\nheads = 1\ncontext = 16',
                    'kind = "hf"\npath = "/no/such/model"')  # fmt: skip
    code, _, err = peer("start", config, "--home", home, "--listen", "tcp://127.0.0.1:0")
    assert code == 2
    assert "/no/such/model" in complaint(err)[0]


def test_bad_invites(peer: Run, tmp_path: Path) -> None:
    good = invite()
    home = str(tmp_path / "home")
    changed = good[:40] + ("a" if good[40] != "a" else "b") + good[41:]
    for text in (changed, good[:-9], "hello", good + "a"):
        code, _, err = peer("join", text, "--home", home)
        assert code == 2, text
        complaint(err)
    assert not Path(home).exists(), "nothing half-written"


def test_nobody_answers(peer: Run, tmp_path: Path) -> None:
    home = str(tmp_path / "home")
    listen = ("--listen", "tcp://127.0.0.1:0")
    code, _, err = peer("join", invite(), "--home", home, "--wait", "1.5", *listen)
    assert code == 4
    assert "tcp://127.0.0.1:9" in complaint(err)[0]
    assert "asking" in err, "nothing waits in silence"


def test_a_port_in_use(peer: Run, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        config = str(write_run(tmp_path))
        code, _, err = peer("start", config, "--home", str(tmp_path / "h"), "--listen", address)
    assert code == 1
    error, hint = complaint(err)
    assert "in use" in error
    assert "--listen" in hint


def test_one_process_a_home(peer: Run, tmp_path: Path) -> None:
    """A second peer with the same identity is refused, and told who has it."""
    home = tmp_path / "home"
    with Store.open(home):
        config = str(write_run(tmp_path))
        listen = ("--listen", "tcp://127.0.0.1:0")
        code, _, err = peer("start", config, "--home", str(home), *listen)
    assert code == 1
    assert "pid" in complaint(err)[0]


def test_no_peer_is_running(peer: Run, tmp_path: Path) -> None:
    for command in ("status", "leave", "invite"):
        code, _, err = peer(command, "--home", str(tmp_path))
        assert code == 5, command
        complaint(err)


def test_not_a_patch(peer: Run, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("nothing of the kind")
    code, _, err = peer("apply", "-", str(file), str(tmp_path / "out"))
    assert code == 1
    assert "not a patch" in complaint(err)[0]


def test_a_bad_address(peer: Run, tmp_path: Path) -> None:
    code, _, err = peer("start", str(write_run(tmp_path)), "--listen", "7700")
    assert code == 2
    assert "tcp://" in complaint(err)[1]


def test_simulate_prints_json(peer: Run) -> None:
    code, out, err = peer("simulate", "--peers", "3", "--rounds", "3", "--links", "lan", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["rounds"] >= 3
    assert report["digests_equal"]


def test_a_home_holds_one_run(peer: Run, tmp_path: Path) -> None:
    """Another run file, or an invite for another run, is refused; nothing in the home changes."""
    home = tmp_path / "home"
    run_file = load_run_file(write_run(tmp_path))
    with Store.open(home) as store:
        identity = Identity(store.identity())
        kept = bootstrap.found(store, run_file, identity, bytes(32), None)
    listen = ("--home", str(home), "--listen", "tcp://127.0.0.1:0")
    code, _, err = peer("start", edited(tmp_path, "probes = 4", "probes = 5"), *listen)
    assert code == 2
    assert "differs from the run file in method" in complaint(err)[0]
    code, _, err = peer("join", invite(run=b"\x07" * 32), *listen)
    assert code == 2
    assert "belongs to the run 'tiny'" in complaint(err)[0]
    with Store.open(home) as store:
        assert bootstrap.remembered(store) == kept


def test_a_model_that_is_not_the_runs(peer: Run, tmp_path: Path) -> None:
    """The manifest names the starting weights by hash; other ones are not trained."""
    home = tmp_path / "home"
    run_file = load_run_file(write_run(tmp_path))
    with Store.open(home) as store:
        bootstrap.found(store, run_file, Identity(store.identity()), bytes(32), bytes(32))
    config = str(tmp_path / "run.toml")
    code, _, err = peer("start", config, "--home", str(home), "--listen", "tcp://127.0.0.1:0")
    assert code == 3
    assert "not the one that the run was founded with" in complaint(err)[0]
