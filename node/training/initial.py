"""Starting weights that are the same on every machine.

`torch.randn` differs between devices and between instruction sets. Here a 16-bit integer from
Philox times a bound of 7 significant bits is exact in float32, and every copy of it is the same.
"""

from fractions import Fraction

import numpy as np
import torch
from blake3 import blake3
from torch import Tensor

from node.kernels.philox import philox_words
from node.methods.parts.units import exact_float, round_step

_CONTEXT = "peertrain 2026-11 initial weights v1"
_STREAM = 16  # of the generator; directions, noise and digests use the first few
_BLOCKS = 1 << 16  # at a time: 1 MiB of words


def fill_uniform(
    tensor: Tensor,
    bound: Fraction,  # values lie strictly between -bound and bound; rounded to 7 significant bits
    seed: int,
    index: int,  # which tensor of the model: equal shapes must not get equal values
) -> None:
    """Each element is (2u - 65535) * bound / 65536, with u uniform on 0..65535."""
    scale = exact_float(round_step(bound) / 65536)
    flat = tensor.view(-1)
    key = _key(seed, index)
    for first in range(0, len(flat), 4 * _BLOCKS):
        part = flat[first : first + 4 * _BLOCKS]
        words = philox_words(key, first // 4, -(-len(part) // 4), _STREAM)
        centred = 2 * (words.reshape(-1)[: len(part)] >> 16).astype(np.int64) - 65535
        part.copy_(torch.from_numpy(centred.astype(np.float32)) * scale)


def _key(seed: int, index: int) -> int:
    fields = seed.to_bytes(8, "little") + index.to_bytes(8, "little")
    digest = blake3(fields, derive_key_context=_CONTEXT).digest(length=8)
    return int.from_bytes(digest, "little")
