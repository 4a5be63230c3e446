"""What a person meets: errors of two lines with a next step, stable exit codes, JSON."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cli import app, status
from node import bootstrap
from node.config import load_run_file
from node.room import PARTS, disk_by_part
from node.store import Store
from protocol.entries import Token
from protocol.identity import Identity
from protocol.ids import PeerId, RunId
from protocol.invites import Contact, Invite, encode_invite
from tests.shell.runs import DILOCO, NOLOCO, SPARSELOCO, write_run
from tests.shell.swarms import Run

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(
    path for path in (ROOT / "configs").glob("*.toml") if not path.name.startswith("links-")
)


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


def test_a_newcomer_is_up_before_torch_is_there() -> None:
    """Its import takes seconds, in which a newcomer could be fetching."""
    code = "import sys, node.compose; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_check_measures(peer: Run, tmp_path: Path) -> None:
    """P7: sizes are counted, and one window of work is done."""
    code, out, err = peer("check", "--json", str(write_run(tmp_path)))
    assert code == 0, err
    facts = json.loads(out)
    assert facts["parameters"] == facts["trainable"] > 1_000
    assert facts["work_per_round"] == 4
    assert 4 < facts["payload_bytes"] < 8
    assert facts["heldout_loss"] > 0
    assert facts["state_bytes"] < facts["snapshot_bytes"] < facts["state_bytes"] + 8_000
    assert facts["snapshots_bytes_max"] == (6 + 32) * facts["snapshot_bytes"]
    assert facts["snapshot_every"] == 10
    assert facts["memory"]["model"] == facts["weights_bytes"]
    assert "gradient" not in facts["memory"], "one-byte peers have none"
    assert facts["cautions"] == []
    assert [line["uplink_mbit"] for line in facts["outlooks"]] == [10, 100, 1000]


def test_check_says_what_sums_spare(peer: Run, tmp_path: Path) -> None:
    """However many peers there are, a line carries about two contributions."""
    path = write_run(tmp_path, method=DILOCO, parts_max=4)
    code, out, err = peer("check", "--json", "--peers", "9", "--uplink", "1", str(path))
    assert code == 0, err
    facts = json.loads(out)
    (line,) = facts["outlooks"]
    sent = facts["payload_bytes"] + facts["attachment_bytes"]
    assert facts["summed_parts"] == 4
    assert line["exchange_s"] == pytest.approx(2 * 8 / 9 * sent * 8 / 1e6)


def test_parts_are_for_methods_that_merge_sums(peer: Run, tmp_path: Path) -> None:
    path = write_run(tmp_path, method=SPARSELOCO, parts_max=4)
    code, _, err = peer("check", str(path))
    assert code == 2, err
    assert "merges no sums" in err


def test_check_says_what_lines_make_of_it(peer: Run, tmp_path: Path) -> None:
    """And warns of settings that are right, but known to disappoint."""
    method = SPARSELOCO.replace("chunk = 256", "chunk = 256\nfeedback_decay = 0")
    path = write_run(tmp_path, method=method)
    code, out, err = peer("check", "--json", "--peers", "9", "--uplink", "1", str(path))
    assert code == 0, err
    facts = json.loads(out)
    (line,) = facts["outlooks"]
    sent = facts["payload_bytes"] + facts["attachment_bytes"]
    assert line["exchange_s"] == pytest.approx(8 * sent * 8 / 1e6)
    assert line["round_s"] > line["exchange_s"]
    trained = 4 * facts["trainable"]
    parts = facts["memory"]
    assert parts["gradient"] == parts["feedback"] - 8 == parts["weights"] == trained
    assert parts["inner"] > 2 * trained, "AdamW's two moments"
    (caution,) = facts["cautions"]
    assert "error feedback" in caution
    code, out, _ = peer("check", "--peers", "9", "--uplink", "1", str(path))
    assert code == 0
    assert "caution       feedback_decay = 0" in out
    assert "1 Mbit/s      9 such peers: " in out


def test_check_says_what_disk_it_takes(peer: Run, tmp_path: Path) -> None:
    code, out, err = peer("check", str(write_run(tmp_path, snapshot_every=7)))
    assert code == 0, err
    said = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert said["snapshot"].endswith("written to disk every 7 rounds; the newest 2 stay")
    assert "for snapshots at most" in said["disk"]
    assert "checkpoint" not in out


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
        ('name = "spsa"', 'name = "sspa"', "method.name is 'sspa', which is none", "'spsa'"),
        ('name = "spsa"', "", "method.name is missing", "'spsa'"),
    ],
)
def test_bad_run_files(
    peer: Run, tmp_path: Path, old: str, new: str, said: str, hinted: str
) -> None:
    assert_refused(peer, edited(tmp_path, old, new), said, hinted)


def assert_refused(peer: Run, path: str, said: str, hinted: str) -> None:
    code, _, err = peer("check", path)
    error, hint = complaint(err)
    assert code == 2
    assert said in error
    assert hinted in hint


@pytest.mark.parametrize(
    ("old", "new", "said", "hinted"),
    [
        ("lr = 0.01", "ler = 0.01", "unknown key method.inner.optimizer.ler", "'lr'"),
        ('"adamw"', '"adam"', "method.inner.optimizer.name is 'adam'", "'adamw'"),
        ("steps = 2", "steps = 0", "method.inner.steps", "configs/"),
        ("chunk = 256", "chunk = 32", "`kept` is at most `chunk`", "configs/"),
    ],
)
def test_bad_inner_settings(
    peer: Run, tmp_path: Path, old: str, new: str, said: str, hinted: str
) -> None:
    path = write_run(tmp_path, method=SPARSELOCO)
    path.write_text(path.read_text().replace(old, new))
    assert_refused(peer, str(path), said, hinted)


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


FACTS: dict[str, Any] = {
    "snapshot_every": 50,
    "snapshots": [],
    "chunks_served_bytes": 0,
    "chunks_fetched_bytes": 0,
    "mismatches": 0,
    "repairs": 0,
    "damaged_chunks": 0,
    "disk_bytes": 3_000,
    "disk": {"ledger": 2_000, "snapshots": 1_000},
}


def test_status_of_a_peer_to_which_nothing_has_happened() -> None:
    assert status.snapshots(FACTS) == "none yet; the state goes to disk every 50 rounds"
    assert status.newcomers(FACTS) == "0 B of snapshots sent to them, 0 B fetched by this peer"
    assert status.damage(FACTS) == "none found since the start"
    assert status.disk(FACTS) == "3.0 KB: ledger 2.0 KB, snapshots 1.0 KB"


def test_status_tells_of_snapshots_newcomers_and_damage() -> None:
    facts = {
        **FACTS,
        "snapshots": [100, 150],
        "chunks_served_bytes": 2_500_000,
        "chunks_fetched_bytes": 1_000,
        "mismatches": 2,
        "repairs": 1,
        "damaged_chunks": 3,
    }
    assert status.snapshots(facts) == "of rounds 100, 150; one every 50 rounds"
    assert status.newcomers(facts).startswith("2.5 MB of snapshots sent to them, 1.0 KB fetched")
    assert status.damage(facts) == (
        "weights differed from the others' in 2 rounds, repaired 1 time;"
        " 3 pieces of snapshots damaged on this disk, and not used"
    )


def test_disk_is_counted_by_what_it_is_for(tmp_path: Path) -> None:
    """P7: what files hold, not how long they claim to be."""
    (tmp_path / "snapshots").mkdir()
    written = {
        "peer.db": "ledger",
        "peer.db-wal": "ledger",
        "events.jsonl.1": "log",
        "snapshots/aa.part": "snapshots",
        "identity": "other",
    }
    assert set(disk_by_part(tmp_path).values()) == {0}
    expected = dict.fromkeys(PARTS, 0)
    for name, part in written.items():
        (tmp_path / name).write_bytes(b"x" * 10_000)
        os.sync()
        expected[part] += (tmp_path / name).stat().st_blocks * 512
    with (tmp_path / "snapshots" / "aa.part").open("ab") as file:
        file.truncate(1 << 30)
    found = disk_by_part(tmp_path)
    assert found == expected
    assert 10_000 <= found["snapshots"] < 1 << 20


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
    assert report["late_share_by_link"] == {"lan": 0.0}


def test_simulate_says_what_to_expect(peer: Run) -> None:
    """Seconds a round, bytes up and down, the bottleneck, and whose rounds are lost."""
    links = str(ROOT / "configs" / "links-home.toml")
    code, out, err = peer("simulate", "--peers", "10", "--rounds", "4", "--links", links)
    assert code == 0, err
    said = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert {"swarm", "sent", "received", "control", "bottleneck", "rounds"} <= set(said)
    assert "5 cable, 3 wireless, 2 behind a router" in said["swarm"]
    assert "% behind a router" in said["rounds"]


def test_simulate_trains_peers_that_gossip(peer: Run, tmp_path: Path) -> None:
    run = str(write_run(tmp_path, method=NOLOCO))
    options = ("--peers", "6", "--rounds", "4", "--links", "lan", "--faults")
    code, out, err = peer("simulate", run, *options)
    assert code == 0, err
    said = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert said["swarm"] == "6 peers (6 lan), noloco, seed 0"
    assert {"model", "exchanges", "sent", "came", "mixing", "merged,"} <= set(said)
    code, out, err = peer("simulate", run, *options, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["looks"][-1]["merged_loss"] < report["looks"][0]["merged_loss"]
    code, _, err = peer("simulate", run, "--payload", "100")
    assert code == 2
    assert "--payload" in complaint(err)[0]


def test_halves_that_are_apart_are_simulated_and_drawn(peer: Run, tmp_path: Path) -> None:
    run = str(write_run(tmp_path, method=NOLOCO))
    options = ["--peers", "4", "--rounds", "4", "--links", "lan", "--partition", "1:3"]
    picture = tmp_path / "apart.png"
    code, out, err = peer("simulate", run, *options, "--plot", str(picture))
    assert code == 0, err
    assert "halves apart from exchange 1 to 3" in out
    assert picture.read_bytes().startswith(b"\x89PNG")
    code, out, err = peer("simulate", run, *options, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["partition"] == [1, 3]
    assert len(report["distances"]) >= 4


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--partition", "soon"], "'soon' is no span"),
        (["--partition", "3:9"], "from exchange 3 to 9 of 4"),
        (["--plot", "/nowhere/apart.png"], "/nowhere/apart.png cannot be written"),
    ],
)
def test_a_partition_or_picture_that_cannot_be_is_refused(
    peer: Run, tmp_path: Path, options: list[str], what: str
) -> None:
    run = str(write_run(tmp_path, method=NOLOCO))
    code, _, err = peer("simulate", run, "--rounds", "4", *options)
    assert code == 2
    assert what in complaint(err)[0]


@pytest.mark.parametrize("option", [["--split"], ["--partition", "1:2"], ["--plot", "a.png"]])
def test_what_is_for_gossip_is_not_ignored_elsewhere(peer: Run, option: list[str]) -> None:
    code, _, err = peer("simulate", "--peers", "4", "--rounds", "2", *option)
    assert code == 2
    assert f"{option[0]} is for peers that gossip" in complaint(err)[0]


def test_check_measures_what_gossips(peer: Run, tmp_path: Path) -> None:
    """P7: an exchange is coded and counted; what lines make of it follows from that."""
    path = write_run(tmp_path, method=NOLOCO)
    code, out, err = peer("check", "--json", "--peers", "6", "--uplink", "0.1", str(path))
    assert code == 0, err
    facts = json.loads(out)
    config = load_run_file(path).method
    shape = [facts["trainable"]]
    assert facts["gossips"]
    assert facts["model_bytes"] == 4 * facts["trainable"]
    assert facts["exchange_bytes"] == config.exchange_bytes([shape])
    assert 0 <= facts["exchange_bytes"] - facts["model_bytes"] < 8
    state = 3 * facts["model_bytes"]  # the model, slow weights, momentum
    moves = facts["model_bytes"]
    assert 2 * state + moves < facts["exchange_disk_bytes"] < 2 * state + moves + 500
    assert facts["memory"]["model"] == facts["weights_bytes"]
    assert facts["memory"]["gossip"] == 2 * facts["model_bytes"] + 8  # and how many tokens
    assert facts["work_per_round"] == 2
    assert facts["mixing"] == pytest.approx(0.4)
    assert facts["mixing_rounds"] == pytest.approx(7.54, abs=0.01)
    assert facts["cautions"] == []
    (line,) = facts["outlooks"]
    line_s = facts["exchange_bytes"] * 8 / 1e5
    assert line["exchange_s"] == pytest.approx(line_s + facts["exchange_cpu_s"])
    work_s = 2 * facts["seconds_per_unit"]
    assert line["round_s"] == pytest.approx(line["exchange_s"] + work_s)
    assert line["merge_s"] == pytest.approx(5 * facts["model_bytes"] * 8 / 1e5)
    code, out, err = peer("check", "--peers", "6", "--uplink", "0.1", str(path))
    assert code == 0, err
    for said in ("exchange      11.6 KB to each of 1 other", "0.400 of how far", "to merge all"):
        assert said in out


AD_PSGD = NOLOCO.replace("noloco", "ad-psgd")


def test_check_says_that_asynchronous_peers_work_while_they_exchange(
    peer: Run, tmp_path: Path
) -> None:
    path = write_run(tmp_path, method=AD_PSGD)
    code, out, err = peer("check", "--json", "--uplink", "0.001", str(path))
    assert code == 0, err
    facts = json.loads(out)
    (line,) = facts["outlooks"]
    assert line["round_s"] == line["exchange_s"] > 2 * facts["seconds_per_unit"]
    assert facts["mixing_rounds"] is None
    code, out, err = peer("check", str(path))
    assert "peer simulate RUN" in out


CAUTIONS = [
    ("momentum = 0.9\nspring = 0.5", 4, "drive models apart from 0.38 on"),
    ("momentum = 0.9", 4, "counts 7.0 times, over some 10 exchanges"),
    ("spring = 0.0", 4, "part for good"),
    ('pairing = "ring"', 40, "takes some 20 exchanges"),
    ('pairing = "groups"\ngroup = 5', 4, "do not fill a meeting of 5"),
]


@pytest.mark.parametrize(("settings", "peers", "what"), CAUTIONS)
def test_check_warns_of_gossip_that_disappoints(
    peer: Run, tmp_path: Path, settings: str, peers: int, what: str
) -> None:
    method = NOLOCO.replace('"noloco"\n', f'"noloco"\n{settings}\n')
    path = write_run(tmp_path, method=method)
    code, out, err = peer("check", "--json", "--peers", str(peers), str(path))
    assert code == 0, err
    assert any(what in caution for caution in json.loads(out)["cautions"]), out


def test_check_warns_that_losses_on_private_data_do_not_compare(peer: Run, tmp_path: Path) -> None:
    path = write_run(tmp_path, method=NOLOCO)
    path.write_text(path.read_text().replace("[data]", "[data]\nprivate = true"))
    code, out, err = peer("check", "--json", str(path))
    assert code == 0, err
    (caution,) = json.loads(out)["cautions"]
    assert "data are private" in caution


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
