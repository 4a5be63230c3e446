"""A swarm of processes on this machine: start them, look at them, kill one, stop them all.

Used by `peer up`, tests and benchmarks. Each peer has a folder of its own, and its output goes to a
file beside it.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from node.control import NotRunning, ask
from node.errors import UserError

_STOP_S: Final = 45.0


class SwarmError(UserError):
    """A peer of the swarm ended, or did not come up."""


@dataclass(slots=True)
class PeerProcess:
    name: str
    home: Path
    log: Path
    command: tuple[str, ...]
    process: subprocess.Popen[bytes]
    gone: str = ""  # why it is meant to be down; "" while it should be up
    seen: dict[str, Any] | None = None  # its last status
    digests: dict[int, str] = field(default_factory=dict)  # state digest by round

    @property
    def up(self) -> bool:
        return self.process.poll() is None


class Swarm:
    """`folder` holds everything; `options` go to every peer's command, which starts with
    `program`.
    """

    def __init__(
        self,
        folder: Path,
        config: Path,
        options: Sequence[str] = (),
        program: Sequence[str] = ("-m", "cli.app"),
    ) -> None:
        self.folder, self._config = folder, config.resolve()
        self._options, self._program = tuple(options), tuple(program)
        self.invite_file = folder / "invite"
        self.peers: list[PeerProcess] = []

    def found(self) -> PeerProcess:
        """The founder: it writes the invite that the others wait for."""
        self.invite_file.unlink(missing_ok=True)
        return self._spawn("start", str(self._config))

    def join(
        self,
        wait_s: int = 120,
        listen: str = "tcp://127.0.0.1:0",
        options: Sequence[str] = (),  # of this one
    ) -> PeerProcess:
        """`listen`: "none" for a peer that nobody can dial."""
        return self._spawn("join", "--wait", str(wait_s), *options, listen=listen)

    def _spawn(self, *arguments: str, listen: str = "tcp://127.0.0.1:0") -> PeerProcess:
        name = f"p{len(self.peers) + 1}"
        home = self.folder / name
        command = (
            sys.executable,
            *self._program,
            *arguments,
            "--home",
            str(home),
            "--listen",
            listen,
            "--invite-file",
            str(self.invite_file),
            *self._options,
        )
        log = self.folder / f"{name}.log"
        peer = PeerProcess(name, home, log, command, start_process(command, log))
        self.peers.append(peer)
        return peer

    def restart(self, peer: PeerProcess) -> None:
        """The same command in the same folder: it goes on where it was."""
        assert not peer.up
        peer.gone = ""
        peer.process = start_process(peer.command, peer.log)

    def kill(self, peer: PeerProcess) -> None:
        """kill -9."""
        peer.gone = "killed"
        peer.process.kill()
        peer.process.wait()

    def look(self) -> list[PeerProcess]:
        """Ask every peer for its status. Raises SwarmError when one ended that should be up."""
        for peer in self.peers:
            if peer.gone:
                continue
            if not peer.up:
                raise SwarmError(f"{peer.name} ended:\n{self.last_words(peer)}", f"see {peer.log}")
            try:
                facts = ask(peer.home, {"do": "status"}, 5.0)
            except NotRunning:
                continue  # still loading
            peer.seen = facts
            peer.digests |= {int(round): state for round, state in facts["states"].items()}
        return self.peers

    def last_words(self, peer: PeerProcess, lines: int = 12) -> str:
        text = peer.log.read_text(errors="replace") if peer.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def rounds(self) -> dict[str, int]:
        """Of the peers that answered and should be up."""
        return {p.name: p.seen["round"] for p in self.peers if p.seen and not p.gone}

    def wait(
        self,
        done: Callable[[], bool],
        most_s: float,
        each: Callable[[], None] = lambda: None,
        every_s: float = 0.5,
    ) -> bool:
        """Look until `done()`. False if that took too long."""
        end = time.monotonic() + most_s
        while time.monotonic() < end:
            self.look()
            each()
            if done():
                return True
            time.sleep(every_s)
        return False

    def common_digests(self, names: Sequence[str] = ()) -> tuple[int, dict[str, str]] | None:
        """The newest round whose digest is known of all peers that should be up (or of these)."""
        peers = [p for p in self.peers if (p.name in names if names else not p.gone)]
        if not peers:
            return None
        shared = set.intersection(*(set(peer.digests) for peer in peers))
        if not shared:
            return None
        round = max(shared)
        return round, {peer.name: peer.digests[round] for peer in peers}

    def stop(self) -> None:
        """Ctrl-C for all; whoever is still there after a while is killed."""
        alive = [peer for peer in self.peers if peer.up]
        for peer in alive:
            peer.gone = peer.gone or "stopped"
            peer.process.send_signal(signal.SIGINT)
        end = time.monotonic() + _STOP_S
        for peer in alive:
            try:
                peer.process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                peer.process.kill()
                peer.process.wait()


def start_process(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        # A session of its own: Ctrl-C in the terminal reaches only the parent, which passes it on.
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
