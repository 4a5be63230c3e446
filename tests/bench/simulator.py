"""How long does a simulated swarm take? Prints JSON; the bound is for the default size on one core.

python tests/bench/simulator.py [--peers 1000] [--rounds 50]
"""

import argparse
import json
import resource
import sys
import time

from node.sim.links import PRESETS
from node.sim.report import Progress, simulate
from protocol.rules import Rules

BOUND_S = 600.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    report = simulate(
        peers=options.peers,
        rounds=options.rounds,
        seed=options.seed,
        rules=Rules(window_ms=5_000),
        links=[PRESETS["home"]],
        tell=_tell,
    )
    print(
        json.dumps(
            {
                "peers": report.peers,
                "rounds": report.rounds,
                "seconds": round(report.wall_s, 1),
                "cpu_seconds": round(time.process_time(), 1),  # what it takes on an idle core
                "events_per_s": round(report.events_per_s),
                "virtual_s": report.virtual_s,
                "sent_bytes_per_peer_round": round(report.sent_per_round.mean),
                "sent_bytes_per_peer_round_max": round(report.sent_per_round.max),
                "control_bytes_per_peer_s": round(report.control_bytes_per_s, 1),
                "memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                "digests_equal": report.digests_equal,
                "bound_s": BOUND_S,
                "met": report.wall_s <= BOUND_S and report.rounds == options.rounds,
            }
        )
    )
    return 0 if report.digests_equal else 1


def _tell(progress: Progress) -> None:
    left = "?" if progress.left_s is None else f"{progress.left_s:.0f}"
    line = f"round {progress.rounds}/{progress.rounds_asked}, {progress.events_per_s:.0f} events/s"
    print(f"\r{line}, {left} s left ", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
