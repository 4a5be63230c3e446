"""Bytes that all peers send, every layer counted, over the probes they make.

Eight real peers, 64 probes each a round, in a network namespace of their own whose loopback counter
sees Ethernet, IP, TCP, ZeroMQ and CURVE. The payload is one byte a probe; everybody must hear of
the seven others', so 7 is the least.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

PEERS = 8
PROBES = 64
ROUNDS = 40
MOST = 40.0
COUNTERS = Path("/proc/self/net/dev")  # of our own namespace, which /sys is not
_INSIDE = "PEER_BENCH_NAMESPACE"


def main() -> None:
    if os.environ.get(_INSIDE) != "1":
        enter_namespace()
    from node.swarm import Swarm
    from tests.bench.common import report
    from tests.shell.runs import write_run

    folder = Path(tempfile.mkdtemp(prefix="traffic-"))
    config = write_run(folder, probes=PROBES, window_s=30.0, patience_s=60.0)
    swarm = Swarm(folder / "swarm", config, ["--threads", "1"])
    try:
        swarm.found()
        assert swarm.wait(swarm.invite_file.exists, 300)
        for _ in range(PEERS - 1):
            swarm.join()
        assert swarm.wait(lambda: everybody(swarm), 600), "not all peers became members"
        settle = max(swarm.rounds().values()) + 10
        assert swarm.wait(lambda: min(swarm.rounds().values()) >= settle, 600)
        before = sample(swarm)
        goal = before[0] + ROUNDS
        assert swarm.wait(lambda: min(swarm.rounds().values()) >= goal, 900)
        after = sample(swarm)
        swarm.stop()
    finally:
        for peer in swarm.peers:
            if peer.up:
                peer.process.kill()
            peer.process.wait()
        shutil.rmtree(folder, ignore_errors=True)
    rounds, probes, sent, seconds = (b - a for a, b in zip(before, after, strict=True))
    per_probe = sent / probes
    numbers = {
        "peers": PEERS,
        "probes_each": PROBES,
        "rounds": int(rounds),
        "seconds": seconds,
        "probes": int(probes),
        "bytes_sent": int(sent),
        "bytes_per_probe": per_probe,
        "bytes_per_probe_least": PEERS - 1,
        "bytes_per_probe_max": MOST,
    }
    report("traffic", per_probe <= MOST, numbers)


def everybody(swarm: "Swarm") -> bool:  # noqa: F821
    return all(p.seen is not None and len(p.seen["members"]) == PEERS for p in swarm.peers)


def sample(swarm: "Swarm") -> tuple[float, float, float, float]:  # noqa: F821
    """Rounds, probes committed, bytes through the loopback, seconds: of one instant."""
    swarm.look()
    ahead = max((p.seen for p in swarm.peers if p.seen), key=lambda facts: facts["round"])
    return ahead["round"], ahead["work"], loopback_bytes(), time.monotonic()


def loopback_bytes() -> int:
    """Sent so far; on a loopback, what is sent is what is received."""
    for line in COUNTERS.read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "lo":
            return int(numbers.split()[8])
    raise AssertionError("no loopback")


def enter_namespace() -> None:
    """Run again where only our own traffic is. Ends this process."""
    inner = f'ip link set lo up && exec "$0" "{__file__}"'
    command = ["unshare", "-n", "sh", "-c", inner, sys.executable]
    try:
        done = subprocess.run(command, env={**os.environ, _INSIDE: "1"}, check=False)
    except FileNotFoundError:
        sys.exit("error: unshare is missing\nhint: install util-linux and iproute2, run as root")
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
