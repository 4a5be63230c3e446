"""How close is a perturbed copy of the weights to the price of touching memory?

Ours: out = weights + scale * s over 32M fp32 elements. Peer: torch.add(a, b, out=c) of that size,
which reads one array more. Bound: at most twice its time.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # runnable as a file, too

from node.kernels import kernels_for
from tests.bench.common import report, time_in_turns

ELEMENTS = 32 * 2**20
RATIO_MAX = 2.0


def main() -> None:
    kernels = kernels_for(torch.device("cpu"))
    weights, other, out = torch.randn(ELEMENTS), torch.randn(ELEMENTS), torch.zeros(ELEMENTS)
    ours, theirs = time_in_turns(
        lambda: kernels.perturb(weights, 0, 5, 0.01, out),
        lambda: torch.add(weights, other, out=out),
        repeats=15,
    )
    numbers = {
        "kernels": kernels.name,
        "threads": torch.get_num_threads(),
        "elements": ELEMENTS,
        "perturb_s": ours,
        "torch_add_s": theirs,
        "ratio": ours / theirs,
        "ratio_max": RATIO_MAX,
    }
    report("perturb", ours <= RATIO_MAX * theirs, numbers)


if __name__ == "__main__":
    main()
