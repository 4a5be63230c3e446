"""No container engine is needed to try what the compose file would run: the same commands, as
processes.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from node.swarm import PeerProcess, Swarm
from tests.shell.swarms import WAIT_S, ending, members_seen, words

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def localised(command: list[str], folder: Path, port: int) -> tuple[str, ...]:
    """A service's command, with this machine's paths and addresses for the container's."""
    places = {
        "/app/": f"{ROOT}/",
        "/invite/": f"{folder}/",
        "tcp://founder:7700": f"tcp://localhost:{port}",
        "tcp://0.0.0.0:7700": f"tcp://127.0.0.1:{port}",
    }
    local = []
    for word in command:
        for there, here in places.items():
            word = word.replace(there, here)
        local.append(word)
    return (sys.executable, "-m", "cli.app", *local)


@pytest.fixture
def containers(tmp_path: Path) -> Iterator[Swarm]:
    """The founder and two replicas."""
    with ending(Swarm(tmp_path, ROOT / "configs" / "stdlib-gpt.toml")) as swarm:
        start_services(swarm, tmp_path)
        yield swarm


def start_services(swarm: Swarm, tmp_path: Path) -> None:
    """Each with a home of its own."""
    for name, service in (("founder", "founder"), ("peer-1", "peer"), ("peer-2", "peer")):
        command = localised(COMPOSE["services"][service]["command"], tmp_path, free_port())
        home, log = tmp_path / name, tmp_path / f"{name}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, stdout=out, stderr=out, env={**os.environ, "PEER_HOME": str(home)}
            )
        swarm.peers.append(PeerProcess(name, home, log, command, process))


def test_the_compose_commands_form_a_swarm(containers: Swarm) -> None:
    """They find each other by the invite, are healthy, and end well when they are told to."""
    assert containers.wait(lambda: members_seen(containers) == 3, WAIT_S), words(containers)
    for peer, service in zip(containers.peers, ("founder", "peer", "peer"), strict=True):
        kind, *check = COMPOSE["services"][service]["healthcheck"]["test"]
        assert (kind, check[0]) == ("CMD", "peer")
        command = (sys.executable, "-m", "cli.app", *check[1:])
        env = {**os.environ, "PEER_HOME": str(peer.home)}
        done = subprocess.run(command, env=env, capture_output=True, timeout=WAIT_S, check=False)
        assert done.returncode == 0, done.stderr
    for peer in containers.peers:
        peer.gone = "stopped"
        peer.process.send_signal(signal.SIGTERM)
    assert [peer.process.wait(60) for peer in containers.peers] == [0, 0, 0], words(containers)
