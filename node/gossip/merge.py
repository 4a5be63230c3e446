"""The end of a gossip run: one exact mean over live members, each weighted by its work.

*On the Surprising Effectiveness of a Single Global Merging in Decentralized Learning* (2025): after
gossip that is sparse throughout, one average of all models recovers most of what a swarm that
always agrees would have. Trained parameters only; optimizers' states are not merged.

    merged = (sum_i w_i x_i) / (sum_i w_i)

w are integers. Each product of a float32 and one of them is exact in float64; sums go in the order
of the members, each rounded to nearest; the quotient is rounded to float64 and then to float32. So
everybody who has the same models and weights has the same bits, and any range of elements may be
merged by itself.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from torch import Tensor

WEIGHT_MAX: Final = 1 << 29  # 24 bits of a float32 and 29 of these fit the 53 of a float64


def work_weights(tokens: Sequence[int]) -> list[int]:
    """Of members who trained on so many tokens; equal ones if nobody did."""
    assert all(count >= 0 for count in tokens), tokens
    most = max(tokens, default=0)
    if not most:
        return [1] * len(tokens)
    if most <= WEIGHT_MAX:
        return list(tokens)
    return [count * WEIGHT_MAX // most for count in tokens]


def merged(
    models: Iterable[Tensor],  # (n,) float32 each, in the order of the members
    weights: Sequence[int],  # 0..WEIGHT_MAX, not all 0
) -> Tensor:
    """(n,) float32."""
    assert all(0 <= weight <= WEIGHT_MAX for weight in weights), weights
    whole = sum(weights)
    assert whole, "somebody has done something"
    total: Tensor | None = None
    for model, weight in zip(models, weights, strict=True):
        term = model.double() * weight
        total = term if total is None else total.add_(term)
    assert total is not None
    return total.div_(float(whole)).float()
