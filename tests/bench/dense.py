"""What do dense updates cost on the machine?

On tensors of the shapes of SmolLM2-135M, for each width:

* checking, decoding and merging the updates of 8 peers, with momentum. Peer: one in-place addition
  over the weights, of 12 bytes an element. Bound: 16 times its time. Beside it is the least that
  memory allows: each update is read twice, to check it and to add it, weights and momentum are read
  and written once;
* the same merge with torch, one operation after the other, from updates that are checked. Bound: it
  takes 5 times as long, at least;
* making an update. Peer: a copy of the weights. Bound: 8 times its time.

Takes 7 GB.
"""

import sys
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))  # runnable as a file, too

from node.methods.parts.dense_codec import decode, encode
from node.methods.parts.dense_layout import Bits, DenseLayout
from node.methods.parts.outer_step import outer_step, step_with_torch
from tests.bench.common import report, time_in_turns, time_once
from tests.bench.sparse import smollm2_135m

PEERS = 8
WIDTHS: tuple[Bits, ...] = (32, 16, 8, 4)
ADD_BYTES = 12
MERGE_MAX = 16.0
TORCH_MIN = 5.0
ENCODE_MAX = 8.0
REPEATS = 5


def of_width(bits: Bits, theta: Tensor, momentum: Tensor, other: Tensor) -> dict[str, float]:
    layout = DenseLayout(tuple(smollm2_135m()), bits)
    change = torch.split(other, list(layout.sizes))
    settings = ([Fraction(1, PEERS)] * PEERS, Fraction(7, 10), Fraction(9, 10))
    encode_s, copy_s = time_in_turns(lambda: encode(layout, change), other.clone, REPEATS)

    updates = [encode(layout, change) for _ in range(PEERS)]
    merge_s, add_s = time_in_turns(
        lambda: outer_step(theta, momentum, [decode(layout, u) for u in updates], *settings),
        lambda: theta.add_(other),
        REPEATS,
    )
    checked = [decode(layout, data) for data in updates]
    check_s = time_once(lambda: [decode(layout, data) for data in updates])
    torch_s = time_once(lambda: step_with_torch(theta, momentum, checked, *settings))
    moved = 2 * PEERS * layout.bytes + 16 * theta.numel()
    return {
        "update_bytes": layout.bytes,
        "merge_s": merge_s,
        "add_s": add_s,
        "merge_adds": merge_s / add_s,
        "memory_adds": moved / (ADD_BYTES * theta.numel()),
        "check_s": check_s,
        "torch_s": torch_s,
        "torch_merges": torch_s / merge_s,
        "encode_s": encode_s,
        "copy_s": copy_s,
        "encode_copies": encode_s / copy_s,
    }


def main() -> None:
    torch.manual_seed(1)
    size = sum(smollm2_135m())
    theta, momentum, other = torch.randn(size), torch.zeros(size), torch.randn(size) * 1e-3
    found = {bits: of_width(bits, theta, momentum, other) for bits in WIDTHS}
    numbers: dict[str, object] = {
        "threads": torch.get_num_threads(),
        "elements": size,
        "peers": PEERS,
        "merge_adds_max": MERGE_MAX,
        "torch_merges_min": TORCH_MIN,
        "encode_copies_max": ENCODE_MAX,
    }
    for bits, of in found.items():
        numbers |= {f"{name}_{bits}": value for name, value in of.items()}
    met = all(
        of["merge_adds"] <= MERGE_MAX
        and of["torch_merges"] >= TORCH_MIN
        and of["encode_copies"] <= ENCODE_MAX
        for of in found.values()
    )
    report("dense", met, numbers)


if __name__ == "__main__":
    main()
