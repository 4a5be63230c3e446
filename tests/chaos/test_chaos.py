"""The chaos bench itself, small: it must not rot between the long runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.crew import Crew, write_run
from tests.chaos.record import read_chain

BENCH = Path(__file__).with_name("chaos.py")


def test_a_short_run() -> None:
    """Three peers, a kill -9 and a SIGSTOP: it heals, and the figures are of the ledger."""
    options = "--peers 3 --faults 2 --minutes 0.13 --window 0.5 --loopback --no-control --seed 5"
    command = [sys.executable, str(BENCH), *options.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["digests_equal"]
    assert facts["faults_by_kind"] == {"kill": 1, "stop": 1}
    assert facts["chaos"]["rounds"] > 3
    assert facts["chaos"]["work"] > 0
    down_s = facts["chaos"]["rounds"] * facts["chaos"]["round_s_mean"] * 3
    assert 0 < facts["chaos"]["live_member_s"] < down_s + 3


def test_a_stopped_peer_is_not_dropped(tmp_path: Path) -> None:
    """SIGSTOP for 10 s, with the rules of the shipped run files and enough others to agree that it
    is silent: it stays a member, and contributes again.
    """
    config = write_run(tmp_path, window_s=5.0, network="local")
    with Crew(tmp_path / "swarm", config) as crew:
        crew.start(4)
        stopped = crew.peers[2]
        before = max(crew.rounds().values())
        crew.pause(stopped)
        crew.wait(lambda: False, 10.0)
        crew.resume(stopped)
        stopped.seen = None
        back = before + 4
        assert crew.wait(lambda: min(crew.rounds().values()) >= back and bool(stopped.seen), 120)
        crew.close()
        entries = read_chain(crew.peers[0].home)
    assert not [departure for entry in entries for departure in entry.body.departures]
    seats = {line.seat for entry in entries[before + 2 :] for line in entry.body.lines}
    assert seats == set(range(4))


def test_a_small_disk_leaves_its_files(tmp_path: Path) -> None:
    """What was on it can be read afterwards; nothing stays mounted."""
    with Crew(tmp_path, tmp_path / "run.toml") as crew:
        if not crew.small_disk(0):
            pytest.skip("may not mount a small file system here")
        home = tmp_path / "p1"
        (home / "ledger").write_text("entries")
        assert home.is_mount()
    assert not home.is_mount()
    assert (home / "ledger").read_text() == "entries"
