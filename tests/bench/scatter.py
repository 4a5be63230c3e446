"""What a peer's line carries where attachments are summed part by part, as the swarm grows.

    python tests/bench/scatter.py [--peers 4,8,16,32]

Whole swarms in the simulator, through the protocol's own messages: everything that leaves or
reaches a peer is counted, in bytes a round, over its own contribution. Rival, in the same run:
everybody fetches everybody's. Bound: no way of summing takes less than 2 (n - 1) / n of it each
way, and the mean over peers stays below 2.05, whatever their number.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # runnable as a file, too

from node.sim.network import Link
from node.sim.stub import Payloads
from node.sim.world import World
from protocol.codec import CHUNK_BYTES
from protocol.ids import PeerId
from protocol.rules import Rules
from tests.bench.common import report

COPIES_MAX = 2.05
ROUNDS = 3
FAST = Link(up_bytes_per_ms=50_000, down_bytes_per_ms=50_000)


def copies(peers: int, parts: int) -> tuple[float, float]:
    """Of its own contribution, that pass a peer's line one way in a round: the mean, the most."""
    size = peers * CHUNK_BYTES
    rules = Rules(
        window_ms=4_000, deadline_ceiling_ms=60_000, attachment_bytes_max=size, parts_max=parts
    )
    world = World(peers, 1, rules, FAST, payloads=Payloads(attached_bytes=size))
    assert world.run_until_round(2)
    passed: Counter[tuple[PeerId, bool]] = Counter()
    post = world.post

    def count(sender: PeerId, to: PeerId, data: bytes) -> None:
        passed[sender, True] += len(data)
        passed[to, False] += len(data)
        post(sender, to, data)

    world.post = count  # type: ignore[method-assign]
    assert world.run_until_round(max(world.rounds()) + ROUNDS)
    of_all = [passed[who.id, way] / (ROUNDS * size) for who in world.up() for way in (True, False)]
    return sum(of_all) / len(of_all), max(of_all)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", default="4,8,16,32")
    is_met = True
    for count in map(int, parser.parse_args().peers.split(",")):
        mean, most = copies(count, count)
        rival, _ = copies(count, 0)
        met = mean <= COPIES_MAX
        is_met = is_met and met
        report(
            f"scatter, {count} peers",
            met,
            {
                "peers": count,
                "contribution_bytes": count * CHUNK_BYTES,
                "copies_mean": mean,
                "copies_most": most,
                "copies_max": COPIES_MAX,
                "copies_least": 2 * (count - 1) / count,
                "copies_whole": rival,
            },
        )
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())
