"""The switch between network namespaces, with real programs in them."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.net.network import Network, why_not

NOT_HERE = why_not()
pytestmark = pytest.mark.skipif(NOT_HERE is not None, reason=NOT_HERE or "")

# Prints the round trip in ms of a small UDP message, or "lost".
ASK = """
import socket, sys, time
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
    line.settimeout(0.4)
    best = None
    for _ in range(3):
        start = time.perf_counter()
        line.sendto(bytes(int(sys.argv[2])), (sys.argv[1], 7))
        try:
            line.recv(9000)
        except TimeoutError:
            continue
        took = (time.perf_counter() - start) * 1000
        best = took if best is None else min(best, took)
print("lost" if best is None else best)
"""
ECHO = """
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
    line.bind(("", 7))
    print("up", flush=True)
    while True:
        data, source = line.recvfrom(9000)
        line.sendto(data, source)
"""


@pytest.fixture
def network() -> Iterator[Network]:
    """Three nodes, 10 ms apart; nodes 1 and 2 answer."""
    with Network(3, delay_ms=10) as made:
        servers = [
            subprocess.Popen(
                [*made.inside(node), sys.executable, "-c", ECHO], stdout=subprocess.PIPE
            )
            for node in (1, 2)
        ]
        try:
            for server in servers:
                assert server.stdout is not None
                assert server.stdout.readline() == b"up\n"
            yield made
        finally:
            for server in servers:
                server.kill()
                server.communicate()


def round_trip_ms(network: Network, target: int, size: int = 100) -> float | None:
    command = [*network.inside(0), sys.executable, "-c", ASK, network.address(target), str(size)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return None if answer == "lost" else float(answer)


def test_delay_cut_and_counters(network: Network) -> None:
    before = round_trip_ms(network, 1)
    assert before is not None
    assert before >= 20  # never less than there and back
    network.partition([1])
    assert round_trip_ms(network, 1) is None
    assert round_trip_ms(network, 2) is not None
    network.heal()
    network.set_lines([1], 40)
    slower = round_trip_ms(network, 1)
    assert slower is not None
    assert slower >= 80
    network.restore([1])
    network.set_lines([1], 0, loss=1)
    assert round_trip_ms(network, 1) is None
    ours, theirs, _ = network.counters()
    assert ours.sent_bytes > 3 * 100
    assert theirs.got_packets > 0
    assert ours.cut > 0
    assert ours.lost > 0


def test_a_rate_is_kept(network: Network) -> None:
    """8,000 bytes there and back over 1 Mbit/s: at least 64 ms each way."""
    network.set_rate(0, 1, 1)
    took = round_trip_ms(network, 1, 8_000)
    assert took is not None
    assert took >= 20 + 2 * 64


def test_wrong_commands_are_refused(network: Network) -> None:
    with pytest.raises(ValueError, match="out of range"):
        network.set_rate(99, 1, 1)
    assert round_trip_ms(network, 1) is not None


def left_over(pid: int) -> list[str]:
    return [path.name for path in Path("/var/run/netns").glob(f"chaos-{pid}-*")]


HOLD = """
import sys, time
from tests.chaos.net.network import Network
with Network(2) as network:
    print(network.switch_pid, flush=True)
    if sys.argv[1] == "raise":
        raise ValueError
    time.sleep(60)
"""


@pytest.mark.parametrize("way", ["raise", "terminate", "kill"])
def test_nothing_is_left_behind(way: str) -> None:
    """Not after an exception or SIGTERM; after kill -9 not once the next network is made."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, way], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert holder.stdout is not None
    switch = int(holder.stdout.readline())
    if way != "raise":
        holder.send_signal(signal.SIGTERM if way == "terminate" else signal.SIGKILL)
    holder.communicate(timeout=20)
    if way == "kill":
        assert left_over(holder.pid)
        with Network(1):
            pass
    assert not left_over(holder.pid)
    end = time.monotonic() + 10
    while Path("/proc", str(switch)).exists() and time.monotonic() < end:
        time.sleep(0.02)
    assert not Path("/proc", str(switch)).exists()
