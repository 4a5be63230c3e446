"""How much each contribution of a round counts: by the tokens that it says it saw.

Nobody can check what a peer says of itself, so no one counts for more than a few times what is
usual in the round. All of it is integers from the wire: every peer has the same weights.
"""

from collections.abc import Sequence
from statistics import median_low
from typing import Final

HEAVIEST: Final = 4  # times the median
SHARE_MAX: Final = 1 << 15  # 256 of them sum exactly in float32


def token_weights(tokens: Sequence[int]) -> list[int]:
    """0 for who moved nothing, else at least 1."""
    moved = [count for count in tokens if count]
    most = HEAVIEST * median_low(moved) if moved else 0
    return [min(count, most) for count in tokens]


def shares(weights: Sequence[int]) -> list[int]:
    """The same as small integers, for means that divide by sums of some of them."""
    most = max(weights, default=0)
    return [weight and max(1, weight * SHARE_MAX // most) for weight in weights]
