"""DADAO: momentum for gradients and for averaging, in continuous time.

*DADAO: Decoupled Accelerated Decentralized Asynchronous Optimization* (2022),
https://arxiv.org/abs/2208.00779. Each peer holds X, the model, and Y, Z, X~, Y~, Z~. Between events
they flow by a linear equation of the time that has passed on this peer's own clock:

    X' = eta (X~ - X)      Y' = alpha (Y~ - Y)                  Z' = alpha (Z~ - Z)
    X~' = eta~ (X - X~)    Y~' = -theta (nu X~ + Y + Z)         Z~' = alpha~ (Z - Z~)

Gradients come at unit rate:

    d = grad f(X) - nu X - Y~;   X -= gamma d;   X~ -= gamma~ d;   Y~ += (delta + delta~) d

and a meeting of i and j, of which both do their half:

    p = ((Y + Z)_i - (Y + Z)_j) / 2;   Z -= beta p;   Z~ -= beta~ p

Where it holds: every f is mu-strongly convex and L-smooth, gradients are plain, and the time
between events is exponential. Then it is linearly convergent, with the square roots of both
condition numbers. A network is neither convex nor smooth in this sense: take it as a design to
measure against. Sum Z and sum Z~ over peers stay; X + X~ stays between events, because eta = eta~.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from node.methods.ad_psgd_config import DadaoConfig
from node.methods.parts.mixing import MODEL, Mixing, Offer, State, toward_mean
from node.training.inner import trained_parameters

Y, Z, MODEL_AHEAD, Y_AHEAD, Z_AHEAD = "y", "z", "model~", "y~", "z~"
_ORDER = (MODEL, Y, Z, MODEL_AHEAD, Y_AHEAD, Z_AHEAD)


class Dadao(Mixing):
    vectors = _ORDER[1:]

    def __init__(self, smoothness: float, convexity: float, connectivity: float) -> None:
        nu = convexity / 2
        root = math.sqrt(nu / smoothness)
        self.nu = nu
        self.eta = self.eta_ahead = self.alpha_ahead = root / 8
        self.alpha = root / 4
        self.theta = 1 / (2 * root)
        self.gamma, self.gamma_ahead = 1 / (4 * smoothness), 1 / (4 * math.sqrt(smoothness * nu))
        self.delta, self.delta_ahead = self.alpha, 1.0
        self.beta, self.beta_ahead = 0.5, 2 * connectivity / root

    @classmethod
    def of(cls, config: DadaoConfig) -> Self:
        return cls(config.smoothness, config.convexity, config.connectivity)

    def begin(self, state: State) -> None:
        state[MODEL_AHEAD].copy_(state[MODEL])

    # Time

    def rates(self) -> Tensor:
        """(6, 6) float64: what each of the vectors flows by."""
        a, e, t = self.alpha, self.eta, self.theta
        flow = {
            MODEL: {MODEL: -e, MODEL_AHEAD: e},
            MODEL_AHEAD: {MODEL: self.eta_ahead, MODEL_AHEAD: -self.eta_ahead},
            Y: {Y: -a, Y_AHEAD: a},
            Y_AHEAD: {MODEL_AHEAD: -t * self.nu, Y: -t, Z: -t},
            Z: {Z: -a, Z_AHEAD: a},
            Z_AHEAD: {Z: self.alpha_ahead, Z_AHEAD: -self.alpha_ahead},
        }
        rows = [[flow[row].get(column, 0.0) for column in _ORDER] for row in _ORDER]
        return torch.tensor(rows, dtype=torch.float64)

    def flow(self, state: State, elapsed: float) -> None:
        """`elapsed`: on this peer's own clock, in mean times between its gradients."""
        turned = torch.linalg.matrix_exp(self.rates() * elapsed)
        before = [state[name].clone() for name in _ORDER]
        for name, row in zip(_ORDER, turned.tolist(), strict=True):
            state[name].zero_()
            for factor, vector in zip(row, before, strict=True):
                if factor:
                    state[name].add_(vector, alpha=factor)

    # Events

    def gradient(self, state: State, gradient: Tensor) -> None:
        """`gradient`: of this peer's own function, at its model."""
        d = gradient - self.nu * state[MODEL] - state[Y_AHEAD]
        state[MODEL].sub_(d, alpha=self.gamma)
        state[MODEL_AHEAD].sub_(d, alpha=self.gamma_ahead)
        state[Y_AHEAD].add_(d, alpha=self.delta + self.delta_ahead)

    def offer(self, state: State) -> list[Tensor]:
        return [state[Y] + state[Z]]

    def moves(self, mine: Offer | None, others: Sequence[Offer]) -> list[Tensor]:
        """-p"""
        assert mine is not None, "all send"
        return [toward_mean(mine[0], [theirs[0] for theirs in others])]

    def apply(self, state: State, moves: Sequence[Tensor]) -> None:
        state[Z].add_(moves[0], alpha=self.beta)
        state[Z_AHEAD].add_(moves[0], alpha=self.beta_ahead)


class DadaoSteps:
    """A `Stepper`: each inner step is a gradient event, one mean time after the one before."""

    def __init__(self, dadao: Dadao, state: State, model: nn.Module) -> None:
        self._dadao, self._state = dadao, state
        self._parameters = [parameter for _, parameter in trained_parameters(model)]

    def step(self, share: float) -> None:
        """`share` of the learning rate has no meaning here."""
        gradients = [
            torch.zeros_like(p).reshape(-1) if p.grad is None else p.grad.reshape(-1)
            for p in self._parameters
        ]
        with torch.no_grad():
            self._dadao.flow(self._state, 1.0)
            self._dadao.gradient(self._state, torch.cat(gradients))

    def state(self) -> dict[str, Tensor]:
        return {}  # all of it is the peer's

    def load(self, state: Mapping[str, Tensor]) -> None:
        """There is nothing to load."""


def named(vectors: Sequence[Tensor]) -> Mapping[str, Tensor]:
    """A state of six vectors, in the order of the equations' rows."""
    return dict(zip(_ORDER, vectors, strict=True))
