"""Averaging that keeps the spread of weights: the mean of independent models is too flat.

*Vanishing Variance Problem in Fully Decentralized Neural-Network Systems* (2024),
https://arxiv.org/abs/2404.04616, its Algorithm 3. Averaging n models that have nothing to do with
each other leaves 1/n of the variance within a layer. Per tensor, with v_bar the mean model and
sigma^2 the mean of the models' variances:

    f = sqrt(sigma^2 / var v_bar),  at most `cap`
    v <- (v_bar - mean v_bar) f + mean v_bar

f is at least 1, and 1 for models that are equal. Where models agree in part, f takes their
disagreement for lost signal and amplifies what is left of it: hence the cap.

The mean model of a tensor is known once all of it is there. So the exchange is plain averaging,
each stretch adds to the sums of its tensors, and what is stretched in the end is what the peer
holds then. Means of tensors stay; single elements are not conserved.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from node.methods.d_psgd import Averaging
from node.methods.parts.mixing import Offer, toward_mean


class VarianceCorrected(Averaging):
    conserved: ClassVar[str | None] = None  # but for the means of tensors

    def __init__(self, cap: float) -> None:
        self.cap = cap

    def sums(
        self,
        mine: Offer | None,
        others: Sequence[Offer],
        sizes: Sequence[int],  # of the parts of tensors in this stretch
    ) -> Tensor:  # (..., parts, 1 + models, 2) float64
        """Of the mean model and of each model: the sum of each part, and of its squares."""
        assert mine is not None, "all send"
        models = [mine[0], *(theirs[0] for theirs in others)]
        mean = mine[0] + toward_mean(mine[0], models[1:])
        found = []
        for model in (mean, *models):
            parts = [part.double() for part in torch.split(model, list(sizes), dim=-1)]
            both = [torch.stack([part.sum(-1), part.square().sum(-1)], -1) for part in parts]
            found.append(torch.stack(both, -2))
        return torch.stack(found, -2)

    def correct(
        self,
        tensor: Tensor,  # (..., size): one tensor of what the peer holds, changed
        sums: Tensor,  # (..., 1 + models, 2): over the whole tensor
    ) -> None:
        size = tensor.shape[-1]
        means = sums[..., 0] / size
        variances = (sums[..., 1] / size - means.square()).clamp(min=0.0)
        factor = factors(variances[..., 1:].mean(-1), variances[..., 0], self.cap)
        center = means[..., :1].to(tensor.dtype)
        tensor.add_((factor[..., None] - 1).to(tensor.dtype) * (tensor - center))


def factors(
    usual: Tensor,  # the mean of the models' variances
    of_mean: Tensor,  # the variance of the mean model
    cap: float,
) -> Tensor:
    """At least 1; 1 where the mean model is constant: there is nothing to amplify."""
    ratio = torch.where(of_mean > 0, usual / of_mean.clamp(min=1e-300), 1.0)
    return ratio.sqrt().clamp(1.0, cap)
