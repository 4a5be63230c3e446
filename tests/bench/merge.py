"""What do exact directions save over the usual seeded Gaussians, when 64 contributions are merged?

Ours: one pass over 32M fp32 weights. Peer: a pass of seeded
torch.randn and add_ for each contribution, which is also not the same on every machine. Bound: 40
times as fast. The digest of the result, which runs every round too, may take the time of 12 copies.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # runnable as a file, too

from node.kernels import kernels_for
from tests.bench.common import report, time_in_turns

ELEMENTS = 32 * 2**20
CONTRIBUTIONS = 64
SPEED_UP_MIN = 40.0
DIGEST_COPIES_MAX = 12.0


def gaussian_passes(weights: torch.Tensor, noise: torch.Tensor) -> None:
    generator = torch.Generator()
    for seed in range(CONTRIBUTIONS):
        torch.randn(ELEMENTS, generator=generator.manual_seed(seed), out=noise)
        weights.add_(noise, alpha=-1e-6)


def main() -> None:
    kernels = kernels_for(torch.device("cpu"))
    weights, noise = torch.randn(ELEMENTS), torch.zeros(ELEMENTS)
    keys = list(range(CONTRIBUTIONS))
    values = [key * 3 - 90 for key in keys]
    ours, theirs = time_in_turns(
        lambda: kernels.merge(weights, 0, keys, values, 2.0**-24, 1),
        lambda: gaussian_passes(weights, noise),
        repeats=9,
        theirs_every=4,
    )
    digest, copy = time_in_turns(
        lambda: kernels.digest(weights, 0, 1), lambda: noise.copy_(weights), repeats=9
    )
    numbers = {
        "kernels": kernels.name,
        "threads": torch.get_num_threads(),
        "elements": ELEMENTS,
        "contributions": CONTRIBUTIONS,
        "merge_s": ours,
        "torch_randn_s": theirs,
        "speed_up": theirs / ours,
        "speed_up_min": SPEED_UP_MIN,
        "digest_s": digest,
        "copy_s": copy,
        "digest_copies": digest / copy,
        "digest_copies_max": DIGEST_COPIES_MAX,
    }
    met = theirs >= SPEED_UP_MIN * ours and digest <= DIGEST_COPIES_MAX * copy
    report("merge", met, numbers)


if __name__ == "__main__":
    main()
