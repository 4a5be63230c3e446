"""Four peers that train over slow lines: what is lost to waiting for each other?

    python tests/chaos/overlap.py [--rate 20] [--delay 50] [--seconds 60]

Each peer sits behind a line of so many Mbit/s and milliseconds (one way), in a network namespace,
and trains a byte-level GPT of 7.7 million weights by SparseLoCo. First all four are alone: each
founded a run of its own, and waits for nobody, on the same cores at the same time. Then they are
one swarm that overlaps exchange with the next round's steps, and then one that does not. Compared
are the tokens that rounds list, a second; from a round's end to another's, after a warm-up. Prints
JSON. The bound is for the swarm that overlaps.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Final

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from node.methods.parts.header import decode_header  # noqa: E402
from node.training.inner_config import InnerConfig  # noqa: E402
from tests.chaos.crew import Crew  # noqa: E402
from tests.chaos.logs import read_events  # noqa: E402
from tests.chaos.net.network import Network, NetworkUnavailable  # noqa: E402
from tests.chaos.record import read_chain  # noqa: E402
from tests.chaos.telling import conclude, tell  # noqa: E402

LEAST: Final = 0.95
_WARM_UP_ROUNDS: Final = 4
_COME_S: Final = 300.0

RUN: Final = """
name = "overlap"

[model]
kind = "gpt"
layers = 6
width = 320
heads = 5
context = 64

[data]
source = "python-stdlib"
context = 64
batch = 2
held_out_batches = 1

[method]
name = "sparseloco"
overlap = {overlap}

[method.inner]
optimizer = {{ name = "adamw", lr = 0.001 }}

[rules]
network = "wan"
window_s = {window_s}
heldout_every = 1000000

[node]
threads = 1
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=int, default=4)
    parser.add_argument("--rate", type=float, default=20.0, help="Mbit/s")
    parser.add_argument("--delay", type=float, default=50.0, help="ms, one way")
    parser.add_argument("--window", type=float, default=5.0, help="seconds of work in a round")
    parser.add_argument("--seconds", type=float, default=60.0, help="measured, for each of three")
    options = parser.parse_args()
    try:
        with (
            tempfile.TemporaryDirectory(prefix="overlap-") as folder,
            Network(options.peers, rate_mbit=options.rate, delay_ms=options.delay) as network,
        ):
            facts = compare(Path(folder), options, network)
    except NetworkUnavailable as error:
        tell(f"{error}; there are no slow lines without")
        facts = {"bench": "overlap", "skipped": str(error), "met": True}
    conclude(facts)


def compare(folder: Path, options: argparse.Namespace, network: Network) -> dict[str, object]:
    alone = _alone(folder / "alone", options, network)
    overlapping = _together(folder / "overlap", options, network, overlap=True)
    waiting = _together(folder / "wait", options, network, overlap=False)
    ratio = overlapping.tokens_per_s / sum(one.tokens_per_s for one in alone)
    return {
        "bench": "overlap",
        "peers": options.peers,
        "rate_mbit": options.rate,
        "delay_ms": options.delay,
        "window_s": options.window,
        "alone": [asdict(one) for one in alone],
        "overlapping": asdict(overlapping),
        "waiting": asdict(waiting),
        "ratio": ratio,
        "ratio_min": LEAST,
        "ratio_waiting": waiting.tokens_per_s / sum(one.tokens_per_s for one in alone),
        "met": ratio >= LEAST,
    }


@dataclass(frozen=True, slots=True)
class Pace:
    """Of one swarm."""

    tokens_per_s: float
    round_s: float  # the median
    contributions: float  # in a round, on average
    attached_bytes: int  # of the last contribution


def _alone(folder: Path, options: argparse.Namespace, network: Network) -> list[Pace]:
    """All at the same time, each in a run of its own."""
    config = _write_run(folder, options, overlap=True)
    with ExitStack() as stack:
        crews = [
            stack.enter_context(Crew(folder / f"s{node}", config, network, node))
            for node in range(options.peers)
        ]
        for crew in crews:
            crew.start(1)
        first_s, last_s = _measured(crews, options)
    return [_pace(crew, first_s, last_s) for crew in crews]


def _together(
    folder: Path, options: argparse.Namespace, network: Network, *, overlap: bool
) -> Pace:
    config = _write_run(folder, options, overlap=overlap)
    with Crew(folder / "swarm", config, network) as crew:
        crew.start(options.peers)
        first_s, last_s = _measured([crew], options)
    return _pace(crew, first_s, last_s)


def _write_run(folder: Path, options: argparse.Namespace, *, overlap: bool) -> Path:
    folder.mkdir(parents=True)
    path = folder / "run.toml"
    path.write_text(RUN.format(window_s=options.window, overlap=str(overlap).lower()))
    return path


def _measured(crews: Sequence[Crew], options: argparse.Namespace) -> tuple[float, float]:
    """The interval that counts: all are warm, and `seconds` went by."""
    for crew in crews:
        start = max(crew.rounds().values(), default=0)
        goal = start + _WARM_UP_ROUNDS
        assert crew.wait(lambda c=crew, g=goal: min(c.rounds().values()) >= g, _COME_S)  # type: ignore[misc]
    first_s = time.monotonic()
    tell(f"{len(crews)} x {len(crews[0].peers)} peers are measured for {options.seconds:.0f} s")
    time.sleep(options.seconds)
    return first_s, time.monotonic()


def _pace(crew: Crew, first_s: float, last_s: float) -> Pace:
    """From the first round that the founder saw closed in the interval to the last one."""
    home = crew.peers[0].home
    closed = {
        int(str(event["round"])): float(str(event["t_ms"])) / 1000
        for event in read_events(home)
        if event["event"] == "round"
    }
    chain = read_chain(home)
    inside = [r for r, at_s in sorted(closed.items()) if first_s <= at_s <= last_s]
    assert len(inside) > 1, "no two rounds were closed in time"
    lines = [line for round in inside[1:] for line in chain[round].body.lines]
    tokens = sum(decode_header(line.payload, InnerConfig())[0].tokens for line in lines)
    attached = lines[-1].attached
    return Pace(
        tokens / (closed[inside[-1]] - closed[inside[0]]),
        median(closed[b] - closed[a] for a, b in pairwise(inside)),
        len(lines) / (len(inside) - 1),
        0 if attached is None else attached.size,
    )


if __name__ == "__main__":
    main()
