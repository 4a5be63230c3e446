"""Gossip in the simulator: how fast peers mix, what is conserved when they die, and how many fit.

* mixing: 256 peers that take no steps, random matching, from models of normal numbers. The distance
  after each round beside what theory says of the expectation, and what 256 bytes of each peer say.
  Bound: the geometric mean of the rounds' factors is at most a hundredth above theory's.
* conserved: 100 peers and at least 1,000 exchanges, of which some are the last ones of one of their
  peers, in the middle: at least a quarter of the peers dies so; 8-bit codes, no steps. Of
  each exchange, the change of the sum over its peers; of all, how far the mean is from what it was,
  with the dead as they were when they died. Bound: a few roundings of the largest element.
* traffic: bytes of one exchange by those of the model as it is coded. Bound: 2.02.
* crowd (with --crowd): 2,000 peers, 200 exchanges of each, which train the tiny model. Bound: 600
  seconds; shown beside it, what as many steps one model at a time would take.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # runnable as a file, too

from node.build import Workshop
from node.config import RunFile, load_run_file
from node.gossip.consensus import coordinates, distance, estimate, expected
from node.gossip.pairings import View, meetings
from node.methods.d_psgd_config import DPsgdConfig
from node.methods.parts.dense_layout import DenseLayout
from node.sim.gossip.crowd import Crowd
from node.sim.gossip.report import GossipReport, simulate_gossip
from node.sim.links import PRESETS
from node.training.inner import InnerTrainer
from node.training.losses import batch_loss
from tests.bench.common import report

ROOT = Path(__file__).parents[2]
CROWD_S_MAX = 600.0
ROUNDINGS_MAX = 4.0
DRIFT_MAX = 1e-6  # of numbers of about 1
EXCHANGES_MIN = 1_000
DEATHS_MIN = 25  # of 100
TRAFFIC_MAX = 2.02
MIXING_MAX = 1.01
ROUNDS = 16
SEED = 1

RUN = """
name = "bench"
[model]
kind = "gpt"
layers = 1
width = {width}
heads = 1
context = 16
[data]
source = "python-stdlib"
context = 16
batch = 2
held_out_batches = 64
[method]
name = "{method}"
value_bits = {bits}
stretch = {stretch}
[method.inner]
steps = 1
clip_norm = 1.0
optimizer = {{ name = "adamw", lr = 0.01 }}
[rules]
window_s = 1.0
patience_s = 20.0
"""


def run_file(method: str, bits: int, width: int = 8, stretch: int = 4096) -> RunFile:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.toml"
        path.write_text(RUN.format(method=method, bits=bits, width=width, stretch=stretch))
        return load_run_file(path)


def simulate(run: RunFile, **asked: object) -> GossipReport:
    return simulate_gossip(run, ROOT, links=(PRESETS["home"],), seed=SEED, **asked)  # type: ignore[arg-type]


def mixing() -> bool:
    run = run_file("d-psgd", 32)
    method = run.method
    assert isinstance(method, DPsgdConfig)
    workshop = Workshop.open(run.model, run.data, run.node, ROOT)
    crowd = Crowd(method, workshop.model.module, None, 256)
    crowd.spread(1.0, SEED)
    view = View.of(SEED.to_bytes(32, "big"), [row.to_bytes(32, "big") for row in range(256)])
    theory = expected("matching", 256)
    assert theory is not None
    exact, estimated = [], []
    for round in range(ROUNDS + 1):
        exact.append(distance(crowd.shown))
        places = coordinates(crowd.size, view.seed, round)
        estimated.append(estimate(crowd.shown[:, places], crowd.size))
        for meeting in meetings("matching", view, round):
            rows = [int.from_bytes(peer, "big") for peer in meeting.peers]
            offers = [crowd.offers(row) for row in rows]
            for row, mine, theirs in zip(rows, offers, reversed(offers), strict=True):
                crowd.commit(row, mine, [theirs], len(crowd.stretches))
    factor = (exact[-1] / exact[0]) ** (1 / ROUNDS)
    met = factor <= MIXING_MAX * theory
    report(
        "gossip mixing",
        met,
        {
            "peers": 256, "rounds": ROUNDS, "seed": SEED, "factor_a_round": factor,
            "theory_a_round": theory,
            "distance": [float(f"{one:.4g}") for one in exact],
            "theory": [float(f"{exact[0] * theory**r:.4g}") for r in range(ROUNDS + 1)],
            "estimated": [float(f"{one:.4g}") for one in estimated],
        },
    )  # fmt: skip
    return met


def conserved() -> bool:
    """In rounds, one-way, and of asynchronous peers."""
    met = True
    for method, exchanges, death in (("d-psgd", 32, 0.027), ("push-sum", 17, 0.027),
                                     ("ad-psgd", 23, 0.022)):  # fmt: skip
        found = simulate(
            run_file(method, 8, width=32), peers=100, exchanges=exchanges, train=False, spread=1.0,
            death=death,
        )  # fmt: skip
        assert found.kept_worst is not None
        assert found.kept_drift is not None
        ok = found.kept_worst <= ROUNDINGS_MAX and found.kept_drift < DRIFT_MAX
        ok &= found.exchanges >= EXCHANGES_MIN and found.deaths >= DEATHS_MIN
        report(
            "gossip conserved",
            ok,
            {
                "method": method, "peers": 100, "seed": SEED, "exchanges": found.exchanges,
                "died_in_the_middle": found.deaths,
                "worst_of_one_exchange_roundings": found.kept_worst,
                "drift_of_the_mean_of_all": found.kept_drift,
            },
        )  # fmt: skip
        met &= ok
    return met


def traffic() -> bool:
    """Of the model that `configs/stdlib-gpt-noloco.toml` trains."""
    run = load_run_file(ROOT / "configs/stdlib-gpt-noloco.toml")
    workshop = Workshop.open(run.model, run.data, run.node, ROOT)
    shapes = [tuple(p.shape) for p in workshop.model.module.parameters()]
    sizes = tuple(p.numel() for p in workshop.model.module.parameters())
    met = True
    for method in ("d-psgd", "noloco", "push-sum"):
        for bits in (32, 16, 8):
            config = run_file(method, bits, stretch=1 << 18).method
            sent = config.exchange_bytes(shapes)  # type: ignore[union-attr]
            coded = DenseLayout(sizes, config.value_bits).bytes  # type: ignore[union-attr]
            ok = sent <= TRAFFIC_MAX * coded
            report(
                "gossip traffic", ok,
                {"method": method, "bits": bits, "sent": sent, "by_the_coded_model": sent / coded},
            )  # fmt: skip
            met &= ok
    return met


def crowd(peers: int, exchanges: int) -> bool:
    run = run_file("noloco", 16)
    tell: Callable[[float, float | None], None] = lambda done, left: print(  # noqa: E731
        f"{done:.0f} exchanges of each peer, {left:.0f} s left", file=sys.stderr
    )
    began = time.process_time()
    found = simulate(run, peers=peers, exchanges=exchanges, tell=tell)
    cpu_s = time.process_time() - began
    step_s = one_step_s(run)
    last = found.looks[-1]
    met = found.wall_s < CROWD_S_MAX
    report(
        "gossip crowd",
        met,
        {
            "peers": peers, "exchanges": exchanges, "seed": SEED, "wall_s": found.wall_s,
            "cpu_s": cpu_s, "steps_one_model_at_a_time_s": step_s * peers * exchanges,
            "merged_loss": last.merged_loss, "own_loss": last.own_loss,
            "first_loss": found.looks[0].merged_loss, "parameters": found.parameters,
        },
    )  # fmt: skip
    return met


def one_step_s(run: RunFile, steps: int = 200) -> float:
    """CPU seconds of a step of one model by itself."""
    workshop = Workshop.open(run.model, run.data, run.node, ROOT)
    inner = run.method.inner.model_copy(update={"steps": steps})  # type: ignore[union-attr]
    trainer = InnerTrainer(inner, workshop.model.module, batch_loss, workshop.data.batch)
    began = time.process_time()
    trainer.work(0, count(), lambda: False)
    return (time.process_time() - began) / steps


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--crowd", action="store_true", help="only this one, which takes minutes")
    parser.add_argument("--peers", type=int, default=2000)
    parser.add_argument("--exchanges", type=int, default=200)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.crowd:
        return 0 if crowd(asked.peers, asked.exchanges) else 1
    return 0 if all([mixing(), conserved(), traffic()]) else 1


if __name__ == "__main__":
    sys.exit(main())
