"""What does it cost to hold a thousand members together? Prints JSON.

Simulated peers on home links under the default rules. Counted is all that they send, but for
contributions, and for each round's entry once to each peer. The bound is what a modem of the last
century carries.

python tests/bench/control.py [--peers 1000] [--rounds 12]
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

BOUND_BYTES_PER_S = 2048.0


def main() -> int:
    from node.sim.links import links_named
    from node.sim.report import simulate
    from protocol.rules import Rules
    from tests.bench.common import report

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--links", default="home")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    seen = simulate(
        peers=options.peers,
        rounds=options.rounds,
        rules=Rules(),
        links=links_named(options.links),
        seed=options.seed,
    )
    met = seen.control_bytes_per_s <= BOUND_BYTES_PER_S and seen.rounds == options.rounds
    numbers = {
        "peers": options.peers,
        "links": options.links,
        "rounds": seen.rounds,
        "round_s": seen.round_s_median,
        "spread_s": seen.spread_s_median,
        "late_share": seen.work.late_share,
        "control_bytes_per_s": seen.control_bytes_per_s,
        "control_bytes_per_s_max": BOUND_BYTES_PER_S,
        "sent_bytes_per_s": {kind: round(rate) for kind, rate in seen.sent_bytes_per_s.items()},
    }
    report("control", met, numbers)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
