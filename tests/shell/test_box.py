"""A peer of several processes in a swarm with others, as people start it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from node.config import load_run_file
from node.methods.parts.header import decode_header
from node.swarm import PeerProcess, Swarm
from tests.shell.runs import SPARSELOCO, write_run
from tests.shell.swarms import (
    WAIT_S,
    agree,
    ask,
    ending,
    entries,
    grow,
    members_seen,
    reach,
    words,
)

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "cli.app")


def counted(swarm: Swarm, config: Path) -> int:
    """Rounds in which steps of both members count."""
    inner = load_run_file(config).method.inner  # type: ignore[union-attr]
    found = [
        [decode_header(line.payload, inner)[0] for line in entry.body.lines]
        for entry in entries(swarm.peers[0])
    ]
    return sum(len(headers) == 2 and all(h.steps for h in headers) for headers in found)


def others(peer: PeerProcess) -> list[psutil.Process]:
    """What the process that was started has started in turn."""
    return psutil.Process(peer.process.pid).children(recursive=True)


def test_a_box_in_a_swarm(tmp_path: Path) -> None:
    """P1, P3: 1. A peer of two processes trains with one of one. 2. One of the two is killed: the
    peer ends, and says which. 3. torchrun starts it in the same home, and it goes on. 4. Ctrl-C.
    """
    config = write_run(tmp_path, method=SPARSELOCO, window_s=0.5, snapshot_every=4)
    text = config.read_text()  # work by time, and patience with who shares the cores with others
    config.write_text(text.replace("steps = 2\n", "").replace("grace_s = 0.3", "grace_s = 20"))
    with ending(Swarm(tmp_path / "swarm", config, ["--threads", "1"])) as swarm:
        grow(swarm, 1)
        box = swarm.join(options=("--processes", "2"))
        assert swarm.wait(lambda: members_seen(swarm) == 2, WAIT_S), words(swarm)
        reach(swarm, max(swarm.rounds().values()) + 4)
        agree(swarm)
        assert ask("status", "--home", str(box.home))["processes"] == 2

        (other,) = others(box)
        box.gone = "one of its processes is killed"
        other.send_signal(signal.SIGKILL)
        assert box.process.wait(WAIT_S) == 1
        said = box.log.read_text()
        assert f"error: process 1 of this peer (pid {other.pid}) was killed by SIGKILL" in said
        assert "Traceback" not in said
        before = counted(swarm, config)
        assert before >= 3, words(swarm)

        at = box.command.index("join")
        box.command = (sys.executable, *TORCHRUN, *box.command[at:])
        swarm.restart(box)
        box.seen = None
        assert swarm.wait(lambda: members_seen(swarm) == 2, WAIT_S), words(swarm)
        reach(swarm, max(swarm.rounds().values()) + 6)  # one round of them has a snapshot
        agree(swarm)
        assert counted(swarm, config) > before
        assert "local-state-unusable" not in (box.home / "events.jsonl").read_text()
        ranks = others(box)
        assert len(ranks) == 2
        swarm.stop()
        gone, alive = psutil.wait_procs(ranks, WAIT_S)
        assert (len(gone), alive) == (2, [])
        assert (box.home / "local.safetensors").exists()


def test_the_others_end_with_the_first(tmp_path: Path) -> None:
    """kill -9 of the process that a person started leaves nothing behind."""
    start = "from node.box.launch import Launcher\nlauncher = Launcher(2, print)\n"
    tell = "print(launcher._children[0].pid, flush=True)\ninput()"
    first = subprocess.Popen(
        [sys.executable, "-c", start + tell], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert first.stdout is not None
    other = psutil.Process(int(first.stdout.readline()))
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    gone, alive = psutil.wait_procs([other], WAIT_S)
    assert (gone, alive) == ([other], [])
