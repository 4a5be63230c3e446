"""Which elements does a round send, where nothing on the wire says so? One in `one_in` of each
tensor, the same on every peer: from the round's number, or from the exact generator under a key of
run, round and tensor. Never from how often somebody asked, so nothing has to be kept or caught up.

    striding   every `one_in`-th element, from `round mod one_in` on
    slicing    a run of them: the tensor is cut into `one_in` runs, which take turns
    random     one element of each `one_in` neighbours, drawn anew each round
    full       all of them

Striding and slicing cover each element exactly once in `one_in` rounds.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from node.kernels.philox import DIRECTIONS, philox_words
from node.methods.parts.seeds import mask_key
from node.methods.parts.tiles import Strides

Mask = Literal["full", "random", "striding", "slicing"]
Ints = NDArray[np.int64]


def slots_of(
    mask: Mask,
    run: bytes,  # the run id, 32 bytes
    round: int,
    tensor: int,  # its number in the model's order
    strides: Strides,
) -> Ints:
    """(slots,) int64, rising: the element in each slot. Those past the tensor's end, at most a few
    of the last ones, are elements that are not there.
    """
    j = np.arange(strides.slots, dtype=np.int64)
    match mask:
        case "full":
            assert strides.one_in == 1
            return j
        case "striding":
            return j * strides.one_in + round % strides.one_in
        case "slicing":
            return j + round % strides.one_in * strides.slots
        case "random":
            return j * strides.one_in + _draws(mask_key(run, round, tensor), strides)


def _draws(key: int, strides: Strides) -> Ints:
    """(slots,) int64: below `one_in`, each as likely as the others to one part in 2^16."""
    words = philox_words(key, 0, -(-strides.slots // 4), DIRECTIONS).reshape(-1)
    wide = words[: strides.slots].astype(np.uint64) * np.uint64(strides.one_in)
    return (wide >> np.uint64(32)).astype(np.int64)
