"""`peer doctor`: what it concludes from what was measured, and a check-up of real processes."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from cli.doctor import doctor as peer_doctor
from node import doctor
from node.control import ask
from node.curve import door_keys, identity_keys, peer_id
from node.dialback import dial
from node.doctor import Verdict
from node.errors import ConfigError, UserError
from node.swarm import PeerProcess, Swarm
from node.transport_zmq import ZmqTransport
from tests.shell.gateways import PmpGateway
from tests.shell.runs import write_run

WAIT_S = 120.0
HERE = "tcp://192.0.2.1:7700"


# Conclusions


def dialler(*ways: int | None, answered: bool = True) -> dict[str, Any]:
    return {"member": "ab" * 32, "answered": answered, "ways": [[HERE, way] for way in ways]}


@pytest.mark.parametrize(
    ("addresses", "diallers", "verdict", "figure"),
    [
        ((), [], Verdict.WARNING, "nobody can dial it"),
        ((HERE,), [], Verdict.UNKNOWN, "unknown"),
        ((HERE,), [dialler(answered=False)], Verdict.UNKNOWN, "unknown"),
        ((HERE,), [dialler(7), dialler(None, 9)], Verdict.OK, "2 of 2 members could dial it"),
        ((HERE,), [dialler(7), dialler(None)], Verdict.WARNING, "1 of 2 members could dial it"),
        ((HERE,), [dialler(None), dialler(None)], Verdict.PROBLEM, "0 of 2 members could dial it"),
        ((HERE,), [dialler(7), dialler(answered=False)], Verdict.OK, "1 of 1 members could"),
    ],
)
def test_reachability(
    addresses: tuple[str, ...], diallers: list[dict[str, Any]], verdict: Verdict, figure: str
) -> None:
    finding = doctor.reachability(addresses, diallers)
    assert finding.verdict is verdict
    assert finding.figure.startswith(figure)
    assert bool(finding.advice) is (verdict is not Verdict.OK)


@pytest.mark.parametrize(
    ("offsets", "verdict"),
    [
        ([], Verdict.UNKNOWN),
        ([5.0], Verdict.OK),
        ([0.0, 1.0, 90_000_000.0], Verdict.OK),  # one member's clock is off, not ours
        ([-31_000.0, -31_000.0, 0.0], Verdict.WARNING),
        ([700_000.0, 700_000.0], Verdict.PROBLEM),
    ],
)
def test_clock(offsets: list[float], verdict: Verdict) -> None:
    rows = [{"offset_ms": offset, "round_trip_ms": 20.0} for offset in offsets]
    finding = doctor.clock(rows)
    assert finding.verdict is verdict
    assert ("ahead" in finding.figure) is (bool(offsets) and sorted(offsets)[0] < -1)


def rate(bytes_per_s: float | None) -> dict[str, Any]:
    return {"member": "ab" * 32, "bytes": 1, "seconds": 1.0, "bytes_per_s": bytes_per_s}


def test_bandwidth() -> None:
    assert doctor.bandwidth(None, None).verdict is Verdict.UNKNOWN
    assert doctor.bandwidth(rate(None), rate(None)).figure == "unknown"
    finding = doctor.bandwidth(rate(2e6), rate(None))
    assert finding.verdict is Verdict.OK
    assert finding.figure.startswith("2 MB/s down, unknown/s up")
    assert doctor.bandwidth(rate(2e6), rate(1e4)).verdict is Verdict.WARNING


def test_ports() -> None:
    assert doctor.ports(()).verdict is Verdict.WARNING
    with socket.create_server(("127.0.0.1", 0)) as held:
        address = f"tcp://127.0.0.1:{held.getsockname()[1]}"
        finding = doctor.ports((address, "tcp://127.0.0.1:0"))
    assert finding.verdict is Verdict.PROBLEM
    assert finding.figure.startswith(f"{address} is held by")
    assert doctor.ports((address,)).verdict is Verdict.OK
    assert doctor.ports(("tcp://192.0.2.77:7700",)).verdict is Verdict.PROBLEM


def test_disk(small_disk: Path, tmp_path: Path) -> None:
    finding = doctor.disk(tmp_path / "not" / "yet" / "there")
    assert finding.measured is not None
    assert finding.measured["free_bytes"] > 0
    assert finding.measured["write_bytes_per_s"] > 0
    assert not list(tmp_path.glob("**/.doctor*"))
    full = doctor.disk(small_disk)
    assert full.verdict is Verdict.PROBLEM
    assert "unknown/s" in full.figure
    assert "No space left" in full.advice
    assert not list(small_disk.glob(".doctor*"))


def test_device() -> None:
    finding = doctor.device("cpu")
    assert finding.measured is not None
    assert finding.measured["flop_per_s"] > 0
    assert doctor.device("cuda:77").verdict is Verdict.PROBLEM


def test_the_worst_finding_counts() -> None:
    def made(*verdicts: Verdict) -> Verdict:
        return doctor.worst(doctor.Finding("c", verdict, "f") for verdict in verdicts)

    assert made(Verdict.UNKNOWN) is Verdict.OK
    assert made(Verdict.OK, Verdict.WARNING, Verdict.UNKNOWN) is Verdict.WARNING
    assert made(Verdict.WARNING, Verdict.PROBLEM, Verdict.OK) is Verdict.PROBLEM


def test_a_dial_succeeds_only_with_the_peer_that_is_meant() -> None:
    """Not with another peer's port, nor with one that is only open: it shows nothing of others."""
    seed, asker = bytes([1]) * 32, bytes([2]) * 32
    here = ZmqTransport(
        seed, listen=["tcp://127.0.0.1:0"], door=bytes(32), on_batch=lambda batch: None
    )
    (address,) = here.start()
    try:
        here.set_peer(peer_id(asker), ())
        keys = identity_keys(asker)
        (way,) = dial(peer_id(seed), [address], keys)
        assert way.took_ms is not None
        other = peer_id(bytes([3]) * 32)
        assert [way.took_ms for way in dial(other, [address], keys, each_ms=300)] == [None]
        strange = identity_keys(bytes([4]) * 32)
        assert [way.took_ms for way in dial(peer_id(seed), [address], strange, 300)] == [None]
        (guest,) = dial(peer_id(seed), [address], door_keys(bytes(32)))
        assert guest.took_ms is not None
        with socket.create_server(("127.0.0.1", 0)) as mute:
            open_port = f"tcp://127.0.0.1:{mute.getsockname()[1]}"
            ways = dial(peer_id(seed), [open_port, "tcp://127.0.0.1:9", "nonsense"], keys, 200)
        assert [way.took_ms for way in ways] == [None, None, None]
    finally:
        here.close()


# Processes


def peer_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cli.app", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)


def command_line(home: Path | None = None, invite: str | None = None) -> None:
    """In this process, to save it loading PyTorch again."""
    peer_doctor(home, invite, device="cpu")


def join_behind(swarm: Swarm, gateway: PmpGateway) -> PeerProcess:
    """A peer whose router, asked by NAT-PMP, forwards a port to it."""
    settings = swarm.folder / "node.toml"
    settings.write_text(
        f'[node]\nlisten = ["tcp://127.0.0.1:0"]\ngateway = "{gateway.address}"\nthreads = 1\n'
    )
    home, log = swarm.folder / "behind", swarm.folder / "behind.log"
    command = (sys.executable, "-m", "cli.app", "join", "--home", str(home), "--map-port")
    command += ("--invite-file", str(swarm.invite_file), "--config", str(settings))
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    peer = PeerProcess("behind", home, log, command, process)
    swarm.peers.append(peer)
    return peer


def test_a_check_up_behind_a_router(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """
    1. A peer asks its router for a port: its card leads others there, and they can dial it.
    2. It is checked while it runs, with another member's help: everything is measured.
    3. The lease is renewed, and given back when the peer leaves. Then it is checked without.
    """
    swarm = Swarm(tmp_path / "swarm", write_run(tmp_path), ["--threads", "1"])
    gateway = PmpGateway(lifetime_s=2, forward=True)
    assert gateway.forwarder is not None
    outside = f"tcp://127.0.0.1:{gateway.forwarder.port}"
    try:
        swarm.found()
        assert swarm.wait(swarm.invite_file.exists, WAIT_S)
        peer = join_behind(swarm, gateway)
        assert swarm.wait(lambda: bool(peer.seen and peer.seen["member"]), WAIT_S), peer.log
        assert peer.seen is not None
        assert peer.seen["addresses"][0] == outside

        done = peer_command("doctor", str(peer.home), "--json")
        assert done.returncode == 0, done.stderr + done.stdout
        facts = json.loads(done.stdout)
        found = {finding["check"]: finding for finding in facts["findings"]}
        order = ["versions", "ports", "reachability", "bandwidth", "clock", "disk", "device"]
        assert list(found) == order
        ((_, took_ms), *_) = found["reachability"]["measured"]["diallers"][0]["ways"]
        assert took_ms is not None, "the founder dialled it through the router"
        assert gateway.forwarder.connections >= 1
        assert found["reachability"]["verdict"] == "ok"
        for way in ("down", "up"):
            assert 0 < found["bandwidth"]["measured"][way]["bytes"] <= 4 << 20
            assert found["bandwidth"]["measured"][way]["bytes_per_s"] > 0
        assert abs(found["clock"]["measured"]["ahead_ms"]) < 30_000
        assert swarm.wait(lambda: len(gateway.asked) >= 3, WAIT_S), "the lease is renewed"

        peer.gone = "left"
        ask(peer.home, {"do": "leave"})
        assert peer.process.wait(WAIT_S) == 0
        assert gateway.asked[-1][1:] == (0, 0), "the port is given back"
        command_line(peer.home)
        alone = capsys.readouterr().out
        assert "ok       contacts      1 of 1 answer" in alone
        assert alone.count("unknown  ") == 3
        swarm.kill(swarm.peers[0])
        with pytest.raises(typer.Exit) as ended:
            command_line(invite=swarm.invite_file.read_text())
        assert ended.value.exit_code == 6
        assert "problem  contacts      0 of 1 answer" in capsys.readouterr().out
    finally:
        for process in swarm.peers:
            if process.up:
                process.process.kill()
            process.process.wait()
        gateway.close()


def test_a_check_up_of_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not an invite"):
        command_line(invite="nonsense")
    with pytest.raises(UserError, match="there is no peer in"):
        command_line(tmp_path)
