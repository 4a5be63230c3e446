"""A swarm of real processes to which things happen, and the record of who was alive when."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from node.swarm import PeerProcess, Swarm, SwarmError, start_process
from tests.chaos.logs import told_faults
from tests.chaos.net.network import Network

PORT: Final = 7700
DISK_MB: Final = 64
HEAL_S: Final = 180.0
_START_AT_ONCE: Final = 4  # more would only take turns on two cores
_BALLAST: Final = "ballast"
_CHUNK: Final = bytes(1 << 16)

RUN: Final = """
name = "chaos"

[model]
kind = "factory"
label = "bigram"

[data]
source = "text"
path = "{text}"
context = 16
batch = 2
held_out_batches = 1

[method]
name = "spsa"
learning_rate = {{ peak = "0.001" }}
full_round = 160

[rules]
network = "{network}"
window_s = {window_s}
quorum = "{quorum}"

[node]
threads = 1
factories = {{ bigram = "tests.chaos.device:bigram" }}
"""


def write_run(folder: Path, *, quorum: str = "any", window_s: float, network: str = "lan") -> Path:
    """A run file and its text in `folder`: all rules but these at their defaults."""
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / "text.txt"
    text.write_text("\n".join(f"{n} times {n} is {n * n}, as everybody knows." for n in range(900)))
    path = folder / "run.toml"
    path.write_text(RUN.format(text=text, quorum=quorum, window_s=window_s, network=network))
    return path


@dataclass(slots=True)
class Presence:
    """When a member's process ran and was not stopped by us, in monotonic seconds."""

    spans: list[list[float]] = field(default_factory=list)  # the last one is open while it runs
    is_live: bool = False

    def begin(self) -> None:
        assert not self.is_live
        self.is_live = True
        self.spans.append([time.monotonic(), float("inf")])

    def end(self) -> None:
        if self.is_live:
            self.is_live = False
            self.spans[-1][1] = time.monotonic()

    def seconds(self, first: float, last: float) -> float:
        return sum(max(0.0, min(end, last) - max(start, first)) for start, end in self.spans)


class Crew(Swarm):
    """`network`: each member in a namespace of its own, from `first_node` on; without, on the
    loopback.
    """

    def __init__(
        self, folder: Path, config: Path, network: Network | None = None, first_node: int = 0
    ) -> None:
        super().__init__(folder, config)
        self._network, self._first_node = network, first_node
        self._disks: list[Path] = []
        self.presence: dict[str, Presence] = {}

    def node_of(self, peer: PeerProcess) -> int:
        return self._first_node + self.peers.index(peer)

    # Coming up

    def start(self, peers: int) -> None:
        """Found a run and let all others in. Raises SwarmError."""
        self.found()
        self.until(self.invite_file.exists, "the founder wrote no invite", 120)
        while len(self.peers) < peers:
            for _ in range(min(_START_AT_ONCE, peers - len(self.peers))):
                self.join()
            self.until(
                lambda: all(peer.seen is not None for peer in self.peers),
                "not all peers came up",
                180,
            )
        self.wait_for_members(peers)

    def go_on(self) -> PeerProcess:
        """The next member, from a home that belongs to the run already."""
        return self._spawn("start", str(self._config))

    def wait_for_members(self, count: int) -> None:
        """Raises SwarmError."""
        self.until(lambda: self.members_seen() == count, "not all peers became members", 300)

    def until(self, done: Callable[[], bool], complaint: str, most_s: float) -> None:
        if not self.wait(done, most_s, every_s=0.5):
            said = "\n".join(f"{p.name}: {self.last_words(p, 3)}\n{p.seen}" for p in self.peers)
            raise SwarmError(f"{complaint} within {most_s:.0f} s", said)

    def members_seen(self) -> int:
        """How many members the least informed peer counts."""
        up = [peer for peer in self.peers if not peer.gone]
        if any(peer.seen is None or not peer.seen["member"] for peer in up):
            return 0
        return min(len(peer.seen["members"]) for peer in up if peer.seen)

    def join(self, wait_s: int = 120, threads: int = 1) -> PeerProcess:
        arguments = "join", "--wait", str(wait_s), "--config", str(self._config)
        return self._spawn(*arguments, threads=threads)

    def _spawn(self, *arguments: str, threads: int = 1) -> PeerProcess:
        number = len(self.peers)
        name = f"p{number + 1}"
        home, log = self.folder / name, self.folder / f"{name}.log"
        prefix: tuple[str, ...] = ()
        address = "127.0.0.1:0"
        if self._network is not None:
            node = self._first_node + number
            prefix = self._network.inside(node)
            address = f"{self._network.address(node)}:{PORT}"
        command = (
            *prefix,
            *(sys.executable, "-m", "cli.app", *arguments),
            *("--home", str(home), "--listen", f"tcp://{address}"),
            *("--invite-file", str(self.invite_file), "--threads", str(threads)),
        )
        peer = PeerProcess(name, home, log, command, start_process(command, log))
        self.peers.append(peer)
        self.presence[name] = Presence()
        self.presence[name].begin()
        return peer

    # What happens to a member

    def kill(self, peer: PeerProcess) -> None:
        super().kill(peer)
        self.presence[peer.name].end()

    def restart(self, peer: PeerProcess) -> None:
        super().restart(peer)
        peer.seen = None
        self.presence[peer.name].begin()

    def pause(self, peer: PeerProcess) -> None:
        """SIGSTOP."""
        peer.gone = "stopped"
        peer.process.send_signal(signal.SIGSTOP)
        self.presence[peer.name].end()

    def resume(self, peer: PeerProcess) -> None:
        peer.gone = ""
        peer.process.send_signal(signal.SIGCONT)
        self.presence[peer.name].begin()

    def leave(self, peer: PeerProcess) -> None:
        """Ctrl-C: it says goodbye, and may take its time; `reap` notes when it has ended."""
        peer.gone = "leaving"
        peer.process.send_signal(signal.SIGINT)

    def fill_disk(self, peer: PeerProcess) -> None:
        """Its next record does not fit, and it ends with an error."""
        peer.gone = "disk full"
        with (peer.home / _BALLAST).open("wb", buffering=0) as ballast:
            try:
                while ballast.write(_CHUNK) == len(_CHUNK):
                    pass
            except OSError:
                return

    def empty_disk(self, peer: PeerProcess) -> None:
        (peer.home / _BALLAST).unlink(missing_ok=True)

    def reap(self) -> None:
        """Note who has ended. Raises SwarmError when one did that should be up."""
        for peer in self.peers:
            if peer.up:
                continue
            self.presence[peer.name].end()
            if not peer.gone:
                raise SwarmError(f"{peer.name} ended:\n{self.last_words(peer)}", f"see {peer.log}")

    def heal(self, tell: Callable[[str], None]) -> float | None:
        """Seconds until all are members and hold one state; None if that does not come."""
        start_s = time.monotonic()
        for peer in self.peers:
            peer.seen = None
            peer.digests.clear()
        if not self.wait(self._agrees, HEAL_S, every_s=1.0):
            tell(f"not healed: {self.rounds()} {self.common_digests()}")
            return None
        if any(peer.seen and peer.seen["mismatches"] for peer in self.peers):
            tell("a peer saw a digest that differed from its own")
            return None
        if blames := told_faults(self.peers):
            tell("\n".join(["peers blame each other, and none of them lies:", *blames]))
            return None
        return time.monotonic() - start_s

    def _agrees(self) -> bool:
        if self.members_seen() != len(self.peers):
            return False
        common = self.common_digests()
        if common is None or len(common[1]) != len(self.peers):
            return False
        return len(set(common[1].values())) == 1

    # Disks

    def small_disk(self, number: int) -> bool:
        """A file system of its own for the home of the peer with this number, before it starts."""
        home = self.folder / f"p{number + 1}"
        home.mkdir(parents=True)
        size = f"size={DISK_MB}m,mode=700"
        mount = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(home)]
        if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
            return False
        self._disks.append(home)
        return True

    # The end

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """kill -9 for all; what is committed is on disk."""
        for peer in self.peers:
            if peer.up:
                peer.process.kill()
        for peer in self.peers:
            peer.process.wait()
            self.presence[peer.name].end()
        while self._disks:
            _unmount(self._disks.pop())

    def homes(self) -> Iterator[Path]:
        return (peer.home for peer in self.peers)


def _unmount(disk: Path) -> None:
    """What was on it stays, in a plain folder in its place."""
    copy = disk.with_suffix(".copy")
    shutil.copytree(disk, copy, ignore=shutil.ignore_patterns(_BALLAST, "*.sock"))
    subprocess.run(["umount", str(disk)], check=True)
    disk.rmdir()
    copy.rename(disk)
