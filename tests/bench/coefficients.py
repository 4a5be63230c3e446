"""What does a round of DeMo cost, on the wire and on the machine?

Bits of a coefficient that is sent, all headers counted, of signs of 4 in 4096 of ten million
Gaussian numbers in tiles of 64 x 64. Bound: 12.2; no code of equally likely positions takes fewer
than 11.85. Beside it is what the same positions take as gaps, the way sparse updates code them; and
what other settings take, of tensors of the shapes of a model of 13 million parameters.

On these tensors:

* making an update (transform, momentum, top-k, coding). Peer: the transform's two matrix products
  by themselves. Bound: 4 times their time;
* checking, decoding, averaging and transforming back the updates of 8 peers, and moving the
  weights. Peer: these products in float64. Bound: 8 times their time.
"""

import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))  # runnable as a file, too

from node.kernels import kernels_for
from node.methods.base import RoundContext
from node.methods.demo import Demo
from node.methods.demo_config import DemoConfig
from node.methods.parts.chunks import Layout
from node.methods.parts.setup import Setup
from node.methods.parts.sparse_codec import encode
from node.methods.parts.sparsify import select
from tests.bench.common import report, time_in_turns

SHAPES = [(8192, 512), *[(512, 512)] * 16, *[(1408, 512)] * 6, (50_257, 4), *[(512,)] * 9]
GAUSSIANS = (2560, 4096)
PEERS = 8
KEPT = 4
BITS_MAX = 12.2
MAKE_MAX = 4.0
MERGE_MAX = 8.0
REPEATS = 5


class Weights(torch.nn.Module):
    def __init__(self, shapes: Sequence[tuple[int, ...]]) -> None:
        super().__init__()
        drawn = [torch.nn.Parameter(torch.randn(shape) * 0.02) for shape in shapes]
        self.drawn = torch.nn.ParameterList(drawn)


class NoData:
    private = False

    def batch(self, slot: int) -> None:
        raise AssertionError("nothing is trained here")

    def held_out(self) -> list[None]:
        return []


def made(shapes: Sequence[tuple[int, ...]] = SHAPES, **fields: object) -> Demo:
    """With a momentum, as after some rounds."""
    settings = {"name": "demo", "learning_rate": {"peak": "0.001"}, **fields}
    kernels = kernels_for(torch.device("cpu"))
    weights = Weights(shapes)
    setup = Setup(weights, NoData(), lambda model, batch: torch.zeros(()), kernels, bytes(32))  # type: ignore[arg-type]
    method = Demo(DemoConfig.model_validate(settings), setup)
    method._feedback.values.copy_(torch.randn(method._layout.size))
    return method


def update(method: Demo, gradients: list[Tensor]) -> bytes:
    """One peer's round, from its gradient on."""
    method._gradient._sums, method._gradient._count = gradients, 1
    method._feedback.add(0, 0.999, partial(method._add_work, 0))
    return method._encode(0)


def bits_of_a_value(shapes: Sequence[tuple[int, ...]] = SHAPES, **fields: object) -> float:
    method = made(shapes, **fields)
    data = method._encode(0)
    positions, _ = method._sent_in(0, data)
    return 8 * len(data) / len(positions)


def bits_as_gaps(values: Tensor) -> float:
    layout = Layout.of([values.numel()], k=KEPT, symbol_bits=1)
    return 8 * len(encode(layout, [select("gaussian", values, layout.tensors[0], 1)])) / layout.kept


def main() -> None:
    torch.manual_seed(1)
    parameters = sum(math.prod(shape) for shape in SHAPES)
    bits = bits_of_a_value([GAUSSIANS], kept=KEPT)
    least = math.log2(math.comb(4096, KEPT)) / KEPT + 1
    others = {
        "bits_8_kept": bits_of_a_value(kept=8),
        "bits_32_kept": bits_of_a_value(kept=32),
        "bits_int8": bits_of_a_value(kept=KEPT, values="int8"),
        "bits_striding": bits_of_a_value(replicator="striding"),
    }

    method = made(kept=KEPT)
    gradients = [torch.randn(shape) for shape in SHAPES]
    size = method._layout.size // 64
    tiles, square = torch.randn(size, 64), torch.randn(64, 64)
    make_s, product_s = time_in_turns(
        lambda: update(method, gradients), lambda: (tiles @ square, tiles @ square), REPEATS
    )

    updates = [update(method, gradients) for _ in range(PEERS)]
    context = RoundContext(bytes(32), 0, bytes(32), (bytes(32),), lambda: True)
    wide, square64 = tiles.double(), square.double()

    def merge() -> None:
        method._move(context, [method._decode(0, data) for data in updates], [1] * PEERS)

    merge_s, product64_s = time_in_turns(merge, lambda: (wide @ square64, wide @ square64), REPEATS)
    numbers = {
        "threads": torch.get_num_threads(),
        "parameters": parameters,
        "bits_per_value": bits,
        "bits_least": least,
        "bits_max": BITS_MAX,
        "bits_as_gaps": bits_as_gaps(torch.randn(math.prod(GAUSSIANS))),
        **others,
        "update_bytes": len(updates[0]),
        "make_s": make_s,
        "product_s": product_s,
        "make_products": make_s / product_s,
        "make_products_max": MAKE_MAX,
        "peers": PEERS,
        "merge_s": merge_s,
        "product64_s": product64_s,
        "merge_products": merge_s / product64_s,
        "merge_products_max": MERGE_MAX,
    }
    met = bits <= BITS_MAX and make_s <= MAKE_MAX * product_s and merge_s <= MERGE_MAX * product64_s
    report("coefficients", met, numbers)


if __name__ == "__main__":
    main()
