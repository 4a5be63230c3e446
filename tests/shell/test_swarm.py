"""Swarms of real processes over real sockets."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from node.swarm import PeerProcess, Swarm
from tests.shell.runs import write_run
from tests.shell.swarms import (
    WAIT_S,
    agree,
    ask,
    entries,
    grow,
    members_seen,
    peer_command,
    reach,
    words,
)


@pytest.mark.parametrize("swarm", ["any", "majority"], indirect=True)
def test_kill_nine_of_any_peer(swarm: Swarm) -> None:
    """P3, P4: during 50 rounds every peer, the founder first, is killed at a random instant.

    The others close the next round within two deadlines; restarted, it is the same peer, and comes
    to the same digest.
    """
    chance = random.Random(9)
    grow(swarm, 3)
    start = max(swarm.rounds().values())
    for number, victim in enumerate(list(swarm.peers)):
        identity = victim.seen and victim.seen["peer"]
        reach(swarm, start + 12 * number + chance.randrange(1, 6))
        swarm.kill(victim)
        reach(swarm, max(swarm.rounds().values()) + 4)
        victim.seen = None
        swarm.restart(victim)
        assert swarm.wait(lambda: members_seen(swarm) == 3, WAIT_S), words(swarm)
        assert victim.seen is not None
        assert victim.seen["peer"] == identity
    reach(swarm, start + 50)
    agree(swarm)
    swarm.stop()
    deadline_ms = 300 + 3_000
    took = {entry.round: entry.body.took_ms for entry in entries(swarm.peers[0])}
    late = {round: ms for round, ms in took.items() if round >= start and ms > 2 * deadline_ms}
    assert not late
    chains = [[entry.hash for entry in entries(peer)] for peer in swarm.peers]
    shared = min(map(len, chains))
    assert shared >= start + 50
    assert all(chain[:shared] == chains[0][:shared] for chain in chains)


def test_leaving_and_coming_back(swarm: Swarm) -> None:
    """A leaver ends cleanly and an entry lists it; the next start needs no invite (P3)."""
    grow(swarm, 2)
    leaver = swarm.peers[1]
    answer = peer_command("leave", "--home", str(leaver.home))
    assert answer.returncode == 0, answer.stderr
    leaver.gone = "left"
    assert leaver.process.wait(30) == 0
    assert "Traceback" not in leaver.log.read_text()
    assert swarm.wait(lambda: members_seen(swarm) == 1, WAIT_S), words(swarm)
    swarm.invite_file.write_text("")
    command = (sys.executable, "-m", "cli.app", "join", "--home", str(leaver.home))
    leaver.command = (*command, "--listen", "tcp://127.0.0.1:0")
    leaver.seen = None
    swarm.restart(leaver)
    assert swarm.wait(lambda: members_seen(swarm) == 2, WAIT_S), words(swarm)


def test_the_ledger_is_the_model(swarm: Swarm, tmp_path: Path) -> None:
    """P1: a patch, applied by another process with other thread counts, gives the same digest."""
    grow(swarm, 2)
    reach(swarm, 12)
    home = str(swarm.peers[0].home)
    patch = tmp_path / "patch"
    written = ask("export", str(patch), "--patch", "--home", home)
    assert written["bytes"] == patch.stat().st_size
    for threads in ("1", "2"):
        out = tmp_path / f"model{threads}"
        done = ask("apply", "-", str(patch), str(out), "--threads", threads)
        assert done["digest"] == written["digest"]
        assert (out / "model.safetensors").exists()
    damaged = bytearray(patch.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    patch.write_bytes(damaged)
    refused = peer_command("apply", "-", str(patch), str(tmp_path / "never"))
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-2].startswith("error: ")
    assert not (tmp_path / "never").exists()
    text = peer_command("generate", "2 times", "--home", home, "--tokens", "8", "--seed", "1")
    assert text.returncode == 0, text.stderr
    assert text.stdout.startswith("2 times")


def test_a_full_disk(small_disk: Path, tmp_path: Path) -> None:
    """Two lines and an exit code; with room again, it goes on with what it had (P3)."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1_600_000))
    home = small_disk / "home"
    command = ("start", str(write_run(tmp_path)), "--home", str(home), "--threads", "1")
    command += ("--listen", "tcp://127.0.0.1:0")
    full = peer_command(*command)
    assert full.returncode == 1, full.stderr
    assert "Traceback" not in full.stderr
    error, hint = full.stderr.splitlines()[-2:]
    assert error.startswith("error: no room left")
    assert hint.startswith("hint: ")
    ballast.unlink()
    # Room for as long as it is looked at, however slow this machine is: rounds go on meanwhile.
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    log = tmp_path / "log"
    with log.open("wb") as out:
        full_command = (sys.executable, "-m", "cli.app", *command)
        process = subprocess.Popen(full_command, stdout=out, stderr=out)
    peer = PeerProcess("p1", home, log, full_command, process)
    swarm = Swarm(tmp_path, tmp_path / "run.toml")
    swarm.peers.append(peer)
    try:
        closed = len(entries(peer))
        assert swarm.wait(lambda: bool(peer.seen and peer.seen["round"] > closed), WAIT_S)
    finally:
        process.kill()
        process.wait()
    assert closed > 0, "rounds were closed before the disk was full, and are kept"


def test_a_founder_that_cannot_be_dialled(tmp_path: Path) -> None:
    """It trains alone, and says why nobody can be invited."""
    config = write_run(tmp_path)
    swarm = Swarm(tmp_path, config)
    home, log = tmp_path / "home", tmp_path / "log"
    command = (sys.executable, "-m", "cli.app", "start", str(config), "--home", str(home))
    command += ("--listen", "none", "--threads", "1")
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    founder = PeerProcess("p1", home, log, command, process)
    swarm.peers.append(founder)
    try:
        assert swarm.wait(lambda: bool(founder.seen and founder.seen["round"] > 1), WAIT_S), words(
            swarm
        )
        assert "no invite was written" in founder.log.read_text()
        refused = peer_command("invite", "--home", str(founder.home))
        assert refused.returncode == 1
        assert refused.stderr.splitlines()[-1].startswith("hint: pass --listen")
        swarm.stop()
        assert founder.process.returncode == 0
    finally:
        founder.process.kill()
        founder.process.wait()
