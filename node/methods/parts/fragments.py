"""A model in fragments, of which each round exchanges one, in turns.

*Streaming DiLoCo with overlapping communication* (2025), https://arxiv.org/abs/2501.18512: what is
on the line at once is a fragment of the model. Fragments are runs of whole tensors in the model's
own order, as equal in size as whole tensors allow; round t is the turn of fragment t mod F.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from node.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Fragment:
    tensors: slice  # of the model's trainable parameters
    elements: slice  # of the flat vector
    sizes: tuple[int, ...]  # elements of each tensor


def cut(
    sizes: Sequence[int],  # elements of each trainable parameter
    count: int,
) -> tuple[Fragment, ...]:
    """Raises ConfigError when there are fewer tensors."""
    if count > len(sizes):
        raise ConfigError(
            f"the model has {len(sizes)} trained tensors, too few for {count} fragments",
            "lower `fragments` in [method]",
        )
    ends = list(accumulate(sizes))
    bounds = [0]
    for number in range(1, count):
        nearest = bisect_left(ends, ends[-1] * number / count) + 1
        # Each has a tensor, and so has each that is still to come.
        bounds.append(min(max(nearest, bounds[-1] + 1), len(sizes) - (count - number)))
    starts = [0, *ends]
    return tuple(
        Fragment(slice(a, b), slice(starts[a], starts[b]), tuple(sizes[a:b]))
        for a, b in pairwise([*bounds, len(sizes)])
    )
