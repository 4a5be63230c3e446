"""What do sparse updates cost, on the wire and on the machine?

Bits of a value that is kept, all headers counted, of ten million Gaussian numbers of which 64 of
4096 are sent. Bound: 9.7; no code of equally likely positions and two bits takes fewer than 9.36.

On tensors of the shapes of SmolLM2-135M:

* making an update (error feedback, top-k, quantising, coding, taking off what is sent). Peer:
  torch.topk over the same chunks. Bound: 6 times its time;
* checking, decoding and merging the updates of 8 peers, as a mean over peers. Peer: one in-place
  addition over the weights. Bound: 10 times its time. The mean over senders, which divides besides,
  is shown beside it.
"""

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))  # runnable as a file, too

from node.methods.parts.chunks import CHUNK, KEPT, Layout
from node.methods.parts.sparse_codec import decode, encode
from node.methods.parts.sparse_merge import Term, merge
from node.methods.parts.sparsify import select
from tests.bench.common import report, time_in_turns

GAUSSIANS = 10 * 2**20
PEERS = 8
BETA = 0.95
BITS_MAX = 9.7
ENCODE_MAX = 6.0
MERGE_MAX = 10.0
REPEATS = 5


def smollm2_135m() -> Iterator[int]:
    """Elements of each parameter: 30 layers of width 576, with the output tied to the input."""
    yield 49152 * 576
    for _ in range(30):
        yield from (576 * 576, 192 * 576, 192 * 576, 576 * 576)  # queries, keys, values, output
        yield from (1536 * 576, 1536 * 576, 576 * 1536)
        yield from (576, 576)
    yield 576


def make_update(layout: Layout, feedback: list[Tensor], change: list[Tensor]) -> bytes:
    """One peer's round: e = beta * e + delta; send the largest of e; take them off."""
    selections = []
    for number, (error, delta) in enumerate(zip(feedback, change, strict=True)):
        torch.add(delta, error, alpha=BETA, out=error)
        chunks = layout.tensors[number]
        selections.append(select(f"tensor {number}", error, chunks, layout.symbol_bits))
        error[selections[-1].positions] -= selections[-1].decoded
    return encode(layout, selections)


def topk(values: list[Tensor]) -> None:
    """The bare top-k over the same chunks."""
    for tensor in values:
        whole = tensor.numel() // CHUNK * CHUNK
        if whole:
            tensor[:whole].view(-1, CHUNK).topk(KEPT, dim=1, sorted=False)


def bits_of_a_value() -> tuple[float, float]:
    """(bits that a value takes, the least that any code takes)."""
    layout = Layout.of([GAUSSIANS])
    selection = select("gaussian", torch.randn(GAUSSIANS), layout.tensors[0])
    ways = math.lgamma(CHUNK + 1) - math.lgamma(KEPT + 1) - math.lgamma(CHUNK - KEPT + 1)
    return 8 * len(encode(layout, [selection])) / layout.kept, ways / math.log(2) / KEPT + 2


def main() -> None:
    torch.manual_seed(1)
    bits, least = bits_of_a_value()

    layout = Layout.of(smollm2_135m())
    feedback = [torch.zeros(tensor.size) for tensor in layout.tensors]
    change = [torch.randn(tensor.size) * 1e-3 for tensor in layout.tensors]
    encode_s, topk_s = time_in_turns(
        lambda: make_update(layout, feedback, change), lambda: topk(change), REPEATS
    )

    updates = [make_update(layout, feedback, change) for _ in range(PEERS)]
    weights = feedback  # 135M numbers that are no longer needed
    flat = torch.randn(layout.size)

    def decode_and_merge() -> None:
        merge(weights, [Term(decode(layout, u), 1 / PEERS) for u in updates], False, 0)

    def decode_and_average() -> None:
        merge(weights, [Term(decode(layout, u), 1.0) for u in updates], True, 0)

    change = []
    other = torch.randn(layout.size)
    merge_s, add_s = time_in_turns(decode_and_merge, lambda: flat.add_(other), REPEATS)
    average_s, _ = time_in_turns(decode_and_average, lambda: None, REPEATS)
    numbers = {
        "threads": torch.get_num_threads(),
        "bits_per_value": bits,
        "bits_least": least,
        "bits_max": BITS_MAX,
        "elements": layout.size,
        "update_bytes": len(updates[0]),
        "encode_s": encode_s,
        "topk_s": topk_s,
        "encode_topks": encode_s / topk_s,
        "encode_topks_max": ENCODE_MAX,
        "peers": PEERS,
        "merge_s": merge_s,
        "mean_over_senders_s": average_s,
        "add_s": add_s,
        "merge_adds": merge_s / add_s,
        "mean_adds": average_s / add_s,
        "merge_adds_max": MERGE_MAX,
    }
    met = bits <= BITS_MAX and encode_s <= ENCODE_MAX * topk_s and merge_s <= MERGE_MAX * add_s
    report("sparse", met, numbers)


if __name__ == "__main__":
    main()
