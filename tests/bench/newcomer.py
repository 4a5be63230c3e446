"""How long from a newcomer's start until its first contribution is committed.

A ledger of 1,000 rounds, 8 members, 8 probes each, over a model of a million weights is made with
real signatures and real merges. One member serves it; a newcomer joins with an invite, replays all
of it and trains.
"""

import shutil
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from node import offline  # noqa: E402
from node.config import load_run_file  # noqa: E402
from node.store import load_identity  # noqa: E402
from node.swarm import Swarm  # noqa: E402
from protocol.identity import Identity  # noqa: E402
from protocol.ids import digest  # noqa: E402
from tests.bench.common import report  # noqa: E402
from tests.bench.history import History  # noqa: E402
from tests.shell.runs import write_run  # noqa: E402

ROUNDS = 1_000
MEMBERS = 8
PROBES = 8
MOST_S = 30.0


def write_history(home: Path, config: Path) -> int:
    """Returns the number of weights."""
    keys = [Identity(load_identity(home))]
    keys += [Identity(digest("bench", bytes([n]))) for n in range(1, MEMBERS)]
    history = History(home, load_run_file(config), config.parent, keys)
    try:
        history.admit_all()
        for _ in range(ROUNDS - 1):
            history.close(PROBES)
        history.close(leaving=True)
        history.take_snapshot()
    finally:
        history.end()
    return history.weights


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="newcomer-"))
    config = write_run(folder, probes=PROBES, window_s=2.0)
    text = config.read_text()
    config.write_text(
        text.replace("layers = 1\nwidth = 8\nheads = 1", "layers = 5\nwidth = 128\nheads = 4")
    )
    swarm = Swarm(folder / "swarm", config, ["--threads", "2"])
    try:
        (folder / "swarm" / "p1").mkdir(parents=True, mode=0o700)
        weights = write_history(folder / "swarm" / "p1", config)
        swarm.found()
        assert swarm.wait(swarm.invite_file.exists, 120), swarm.last_words(swarm.peers[0])
        assert swarm.wait(lambda: swarm.rounds().get("p1", 0) > ROUNDS + 2, 120)
        started = time.monotonic()
        newcomer = swarm.join()
        seconds = first_contribution(swarm, folder / "swarm" / "p1") - started
        assert swarm.wait(lambda: swarm.common_digests(["p1", "p2"]) is not None, 60, every_s=0.05)
        round, digests = swarm.common_digests(["p1", "p2"]) or (0, {})
        equal = len(set(digests.values())) == 1
        assert newcomer.up
        swarm.stop()
    finally:
        for peer in swarm.peers:
            if peer.up:
                peer.process.kill()
            peer.process.wait()
        shutil.rmtree(folder, ignore_errors=True)
    numbers = {
        "rounds_replayed": ROUNDS,
        "members": MEMBERS,
        "probes_each": PROBES,
        "weights": weights,
        "seconds": seconds,
        "seconds_max": MOST_S,
        "digest_round": round,
        "digests_equal": equal,
    }
    report("newcomer", seconds <= MOST_S and equal, numbers)


def first_contribution(swarm: Swarm, home: Path) -> float:
    """When an entry of two contributions is on the founder's disk."""
    disk = offline.ReadOnlyStore(home)
    from protocol.restore import entry_at

    try:
        round = ROUNDS
        while True:
            entry = entry_at(disk, round)
            if entry is None:
                assert all(peer.up for peer in swarm.peers), swarm.last_words(swarm.peers[-1])
                time.sleep(0.02)
            elif round > ROUNDS and len(entry.body.lines) == 2:
                return time.monotonic()
            else:
                round += 1
    finally:
        disk.close()


if __name__ == "__main__":
    main()
