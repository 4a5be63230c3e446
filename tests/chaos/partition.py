"""Three of eight peers are cut off for a minute, then the network is whole again.

    python tests/chaos/partition.py --quorum majority --out FOLDER

With `quorum = "majority"` the smaller side must wait: no round of its own. With `any` both go on,
and when they meet, all come to one ledger. Printed as one JSON line: rounds of both sides during
the cut, whether the smaller one waited or forked, the time from the mending to one ledger, whether
all replicas are equal. In FOLDER: a readable log of one member of each side around the cut.
"""

import argparse
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from node.swarm import PeerProcess  # noqa: E402
from tests.chaos.crew import HEAL_S, Crew, write_run  # noqa: E402
from tests.chaos.logs import identity_of, read_events  # noqa: E402
from tests.chaos.net.network import Network, NetworkUnavailable  # noqa: E402
from tests.chaos.record import read_chain  # noqa: E402
from tests.chaos.telling import conclude, tell  # noqa: E402

DELAY_MS = 5.0
_POLL_S = 0.25


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quorum", choices=("any", "majority"), required=True)
    parser.add_argument("--peers", type=int, default=8)
    parser.add_argument("--cut-off", type=int, default=3, help="how many are on the smaller side")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--window", type=float, default=2.0, help="seconds of work in a round")
    parser.add_argument("--out", type=Path, help="a folder for the log of the two sides")
    options = parser.parse_args()
    try:
        with (
            tempfile.TemporaryDirectory(prefix="partition-") as folder,
            Network(options.peers, delay_ms=DELAY_MS) as network,
        ):
            facts = partition(Path(folder), options, network)
    except NetworkUnavailable as error:
        tell(f"{error}; there is no partition without")
        facts = {"bench": "partition", "skipped": str(error), "met": True}
    conclude(facts)


def partition(folder: Path, options: argparse.Namespace, network: Network) -> dict[str, object]:
    config = write_run(folder / "run", quorum=options.quorum, window_s=options.window)
    with Crew(folder / "swarm", config, network) as crew:
        crew.start(options.peers)
        start = max(crew.rounds().values())
        assert crew.wait(lambda: min(crew.rounds().values()) >= start + 4, 120)
        smaller, larger = crew.peers[-options.cut_off :], crew.peers[: -options.cut_off]
        tell(f"{options.cut_off} of {options.peers} are cut off for {options.seconds:.0f} s")
        network.partition([crew.node_of(peer) for peer in smaller])
        cut_s = time.monotonic()
        time.sleep(options.seconds)
        mended_s = time.monotonic()
        chains = [_chain(side[0]) for side in (smaller, larger)]
        network.heal()
        one_ledger_s = _until_one_ledger(crew, mended_s, len(chains[1]))
        healed_s = crew.heal(tell)
        crew.close()
        sides = {"smaller": smaller[0], "larger": larger[0]}
        during = {name: _rounds_during(peer, cut_s, mended_s) for name, peer in sides.items()}
        if options.out is not None:
            _write_log(options.out, options.quorum, sides, cut_s, mended_s)
    shared = min(map(len, chains))
    forked = chains[0][:shared] != chains[1][:shared]
    wanted = forked if options.quorum == "any" else not forked and during["smaller"] == 0
    equal = healed_s is not None and one_ledger_s is not None
    return {
        "bench": "partition",
        "quorum": options.quorum,
        "peers": options.peers,
        "cut_off": options.cut_off,
        "seconds": options.seconds,
        "window_s": options.window,
        "rounds_during_cut": during,
        "smaller_side": "forked" if forked else "waited" if during["smaller"] == 0 else "went on",
        "one_ledger_after_s": one_ledger_s,
        "all_members_after_s": None if healed_s is None else healed_s + (one_ledger_s or 0.0),
        "digests_equal": equal,
        "met": bool(wanted and equal and during["larger"] > 0),
    }


def _chain(peer: PeerProcess) -> list[bytes]:
    return [entry.hash for entry in read_chain(peer.home)]


def _until_one_ledger(crew: Crew, mended_s: float, rounds: int) -> float | None:
    """Seconds until the chains of all are one, up to a round that was open when the cut ended."""

    def is_one() -> bool:
        if any(peer.seen is None or peer.seen["round"] <= rounds for peer in crew.peers):
            return False
        chains = [_chain(peer) for peer in crew.peers]
        shared = min(map(len, chains))
        return shared > rounds and len({tuple(chain[:shared]) for chain in chains}) == 1

    found = crew.wait(is_one, HEAL_S, every_s=_POLL_S)
    return time.monotonic() - mended_s if found else None


def _rounds_during(peer: PeerProcess, cut_s: float, mended_s: float) -> int:
    """Rounds that it saw close between a second after the cut, when all that was on its way has
    come, and the mending.
    """
    closed = [event for event in read_events(peer.home) if event["event"] == "round"]
    times = [float(str(event["t_ms"])) / 1000 for event in closed]
    return sum(cut_s + 1 <= at_s <= mended_s for at_s in times)


def _write_log(
    out: Path, quorum: str, sides: dict[str, PeerProcess], cut_s: float, mended_s: float
) -> None:
    """What one member of each side noted, as it happened, in one file."""
    ours = {identity_of(peer.home)[:4].hex(): name for name, peer in sides.items()}
    start = datetime.now().timestamp() - time.monotonic()
    lines = [(cut_s, "network", "the two sides are cut apart")]
    lines.append((mended_s, "network", "the network is whole again"))
    for side, peer in sides.items():
        for event in read_events(peer.home):
            at_s = float(str(event.pop("t_ms"))) / 1000
            if not cut_s - 15 <= at_s <= mended_s + 60:
                continue
            name = event.pop("event")
            told = {key: event[key] for key in event if key not in ("ts", "level")}
            fields = "  ".join(f"{key}={ours.get(str(v), v)}" for key, v in told.items())
            lines.append((at_s, side, f"{name}  {fields}"))
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"partition-{quorum}.log"
    text = "".join(
        f"{datetime.fromtimestamp(start + at_s):%H:%M:%S.%f}"[:-3]
        + f" {at_s - cut_s:+8.2f} s  {side:8} {what}\n"
        for at_s, side, what in sorted(lines)
    )
    path.write_text(text)
    tell(f"the log of both sides: {path}")


if __name__ == "__main__":
    main()
