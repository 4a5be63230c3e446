"""A dense update in parts that are coded, sent and summed each by itself.

Everybody cuts in the same places: the flat vector into so many runs, as equal as whole blocks
allow. What of a tensor lies in a run is coded as a tensor of its own. A part's bytes are

    0        1 byte, no version of an update
    count    2 bytes, big-endian: into how many parts this update is cut
    update   as `dense_codec` says, of this run
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, pairwise
from typing import Final

import torch
from torch import Tensor

from node.methods.parts.dense_codec import DenseUpdate, decode, encode
from node.methods.parts.dense_layout import BLOCK, DenseLayout
from node.methods.parts.outer_step import outer_step

_HEAD_BYTES: Final = 3


@dataclass(frozen=True, slots=True)
class Run:
    """One part of the flat vector."""

    elements: slice
    layout: DenseLayout
    count: int  # of all parts

    @property
    def length(self) -> int:
        """In bytes."""
        return _HEAD_BYTES + self.layout.bytes

    @property
    def head(self) -> bytes:
        return b"\0" + self.count.to_bytes(2, "big")

    def encode(self, values: Tensor) -> bytes:
        """Of the values in this run, float32. Raises DivergedError when one holds a NaN or an
        infinity.
        """
        return self.head + encode(self.layout, torch.split(values, list(self.layout.sizes)))

    def decode(self, data: bytes) -> DenseUpdate:
        """Raises ValueError for what `encode` would not have written."""
        if data[:_HEAD_BYTES] != self.head:
            raise ValueError(f"a part of {self.count} begins otherwise")
        return decode(self.layout, data[_HEAD_BYTES:])


def runs(layout: DenseLayout, count: int) -> tuple[Run, ...]:
    """Empty ones are possible where there are fewer blocks."""
    ends = list(accumulate(layout.sizes, initial=0))
    blocks = -(-ends[-1] // BLOCK)
    bounds = [min(ends[-1], blocks * number // count * BLOCK) for number in range(count)]
    found: list[Run] = []
    for first, last in pairwise([*bounds, ends[-1]]):
        pieces = (min(last, end) - max(first, start) for start, end in pairwise(ends))
        sizes = tuple(size for size in pieces if size > 0)
        found.append(Run(slice(first, last), DenseLayout(sizes, layout.bits), count))
    return tuple(found)


def decode_parts(layout: DenseLayout, data: bytes) -> list[DenseUpdate]:
    """Of all parts, one after the other, or of an update that was not cut. Raises ValueError for
    what nobody would have written.
    """
    if not data or data[0]:
        return [decode(layout, data)]
    found = runs(layout, int.from_bytes(data[1:_HEAD_BYTES], "big"))
    bounds = list(accumulate((run.length for run in found), initial=0))
    if len(data) != bounds[-1]:
        raise ValueError(f"an update in {len(found)} parts has {bounds[-1]} bytes, not {len(data)}")
    cuts = zip(found, pairwise(bounds), strict=True)
    return [run.decode(data[first:last]) for run, (first, last) in cuts]


def weighted_sum(
    run: Run,
    parts: Sequence[bytes],  # in the order in which all add them
    weights: Sequence[int],  # of each, 0 for one that does not count
    device: torch.device,
) -> tuple[bytes, Tensor]:
    """sum_r (w_r / sum w) part_r over those that can be read, coded as they are; and what coding
    took away from it. The same bytes on every machine.
    """
    counted: list[tuple[DenseUpdate, int]] = []
    for part, weight in zip(parts, weights, strict=True):
        try:
            update = run.decode(part)
        except ValueError:
            continue  # not for anybody else either
        if weight:
            counted.append((update, weight))
    whole = sum(weight for _, weight in counted)
    total = torch.zeros(sum(run.layout.sizes), device=device)
    shares = [Fraction(weight, whole) for _, weight in counted]
    outer_step(total, None, [update for update, _ in counted], shares, Fraction(1), Fraction(0))
    total.neg_()  # a step from 0, at rate 1, went against it
    data = run.encode(total)
    return data, total - torch.cat([total[:0], *run.decode(data).values(device)])
