"""Small swarms of real processes: growing one, asking it, waiting for it."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from node.offline import ReadOnlyStore
from node.swarm import PeerProcess, Swarm
from protocol.entries import Entry
from protocol.restore import entry_at
from tests.chaos.logs import told_faults

WAIT_S = 240.0
Run = Callable[..., tuple[int, str, str]]  # a command in this process: code, stdout, stderr


@contextmanager
def ending(swarm: Swarm) -> Iterator[Swarm]:
    """Leaves no process."""
    try:
        yield swarm
    finally:
        for peer in swarm.peers:
            if peer.up:
                peer.process.kill()
            peer.process.wait()


def grow(swarm: Swarm, peers: int, options: Sequence[str] = ()) -> None:
    """Until all are members. `options`: of those that join."""
    swarm.found()
    assert swarm.wait(swarm.invite_file.exists, WAIT_S), swarm.last_words(swarm.peers[0])
    for _ in range(peers - 1):
        swarm.join(options=options)
    assert swarm.wait(lambda: members_seen(swarm) == peers, WAIT_S, every_s=0.2), words(swarm)


def grow_unhurried(swarm: Swarm, peers: int) -> None:
    """Of a run file whose [node] names a slow optimizer: those that join take that, too."""
    grow(swarm, peers, ["--config", str(swarm.folder.parent / "run.toml")])


def members_seen(swarm: Swarm) -> int:
    """How many members the least informed peer counts."""
    up = [peer for peer in swarm.peers if not peer.gone]
    if any(peer.seen is None or not peer.seen["member"] for peer in up):
        return 0
    return min(len(peer.seen["members"]) for peer in up if peer.seen)


def words(swarm: Swarm) -> str:
    return "\n".join(f"--- {peer.name}\n{swarm.last_words(peer)}" for peer in swarm.peers)


def reach(swarm: Swarm, round: int) -> None:
    def there() -> bool:
        up = [peer for peer in swarm.peers if not peer.gone]
        return all(peer.seen is not None and peer.seen["round"] >= round for peer in up)

    assert swarm.wait(there, WAIT_S, every_s=0.1), f"{swarm.rounds()}\n{words(swarm)}"


def entries(peer: PeerProcess) -> list[Entry]:
    disk = ReadOnlyStore(peer.home)
    try:
        found = []
        while (entry := entry_at(disk, len(found))) is not None:
            found.append(entry)
        return found
    finally:
        disk.close()


def peer_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cli.app", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)


def ask(*arguments: str) -> dict[str, Any]:
    done = peer_command(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert isinstance(answer, dict)
    return answer


def agree(swarm: Swarm) -> None:
    """P1: one digest at one round, and no peer ever saw another, or a fault of another (P6)."""
    assert swarm.wait(lambda: swarm.common_digests() is not None, WAIT_S)
    round, digests = swarm.common_digests() or (0, {})
    assert len(digests) == len(swarm.peers)
    assert len(set(digests.values())) == 1, f"round {round}: {digests}"
    for peer in swarm.peers:
        assert peer.seen is not None
        assert peer.seen["mismatches"] == 0
    assert told_faults(swarm.peers) == []
