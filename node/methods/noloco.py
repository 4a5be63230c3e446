"""NoLoCo: DiLoCo's outer step between two peers, and a spring between their slow weights.

*NoLoCo: No-all-reduce Low Communication Training Method for Large Models* (2025),
https://arxiv.org/abs/2506.10911, with the signs of its code (the printed Eq. 2 diverges). Peer i
holds slow weights phi_i, from which H inner steps made theta_i. Of the n peers that meet:

    D_i = theta_i - phi_i
    m_i <- mu m_i + alpha mean_j(D_j) - gamma (phi_i - mean_j(phi_j))
    phi_i <- phi_i + m_i
    theta_i <- phi_i

With one partner the last term of m is gamma (phi_i - phi_j) / 2. If nobody comes, D_i alone counts
and there is no spring. Momentum is heavy-ball.

With `nesterov` it is Nesterov's, as DiLoCo's, and the spring holds on to where the momentum leads,
u = phi + mu^2 m; u_i, u_j travel in place of phi_i, phi_j:

    g_i = alpha mean_j(D_j) - gamma / (1 + mu) (u_i - mean_j(u_j))
    m_i <- mu m_i + g_i
    phi_i <- phi_i + g_i + mu m_i

So the mean over all peers moves as DiLoCo's weights do, and a gamma of 1 brings two to one place
whatever their momenta are.

What others add to a step is the mean of one vector,

    v = alpha D + gamma phi        m_i <- mu m_i + alpha D_i + mean_j(v_j) - v_i

or alpha D + gamma / (1 + mu) u, so an offer is one model long, and not two as in the paper. With
the rate and the spring of the paper's code, which are equal, v is alpha theta. What a peer did
itself is never rounded; what it did while an exchange went on counts as part of D_i.

Two vectors are sent, D and phi (or u), where they are not sent alike (`NoLoCoInParts`): with `kept`
the largest elements of D alone, with `slow_every` slow weights in turns; where they are not, there
is no spring. Then theta moves by m_i - D_i, D_i as the others decoded it. What rounding took away,
and what was done while the exchange went on, stays in theta - phi, and so in the next D: that is
the error feedback.
"""

from collections.abc import Sequence
from typing import Final

from torch import Tensor

from node.methods.parts.mixing import MODEL, Mixing, Offer, State, toward_mean

SLOW: Final = "slow"
MOMENTUM: Final = "momentum"


class NoLoCo(Mixing):
    vectors = (SLOW, MOMENTUM)

    def __init__(self, alpha: float, gamma: float, mu: float, *, nesterov: bool = False) -> None:
        self._alpha, self._mu, self._nesterov = alpha, mu, nesterov
        self._gamma = gamma / (1 + mu) if nesterov else gamma

    def begin(self, state: State) -> None:
        state[SLOW].copy_(state[MODEL])

    def offer(self, state: State) -> list[Tensor]:
        """v."""
        return [self._alpha * _moved(state) + self._gamma * self._held(state)]

    def moves(self, mine: Offer | None, others: Sequence[Offer]) -> list[Tensor]:
        """What the others add to this one's gain."""
        assert mine is not None, "all send"
        return [toward_mean(mine[0], [theirs[0] for theirs in others])]

    def apply(self, state: State, moves: Sequence[Tensor]) -> None:
        moved = _moved(state)
        self._step(state, self._alpha * moved + moves[0], moved)

    def alone(self, state: State) -> None:
        moved = _moved(state)
        self._step(state, self._alpha * moved, moved)

    def _held(self, state: State) -> Tensor:
        """What the spring holds on to."""
        slow = state[SLOW]
        return slow + self._mu**2 * state[MOMENTUM] if self._nesterov else slow

    def _step(self, state: State, gain: Tensor, moved: Tensor) -> None:
        momentum = state[MOMENTUM]
        momentum.mul_(self._mu).add_(gain)
        step = gain + self._mu * momentum if self._nesterov else momentum
        state[SLOW].add_(step)
        state[MODEL].add_(step - moved)


class NoLoCoInParts(NoLoCo):
    """Of the second vector not every stretch has any."""

    def offer(self, state: State) -> list[Tensor]:
        """D, and what the spring holds on to."""
        return [_moved(state), self._held(state)]

    def moves(self, mine: Offer | None, others: Sequence[Offer]) -> list[Tensor]:
        """The momentum's gain, and D_i."""
        assert mine is not None, "all send"
        moved, *held = mine
        gain = self._alpha * (moved + toward_mean(moved, [theirs[0] for theirs in others]))
        if held:
            gain += self._gamma * toward_mean(held[0], [theirs[1] for theirs in others])
        return [gain, moved]

    def apply(self, state: State, moves: Sequence[Tensor]) -> None:
        gain, moved = moves
        self._step(state, gain, moved)


def _moved(state: State) -> Tensor:
    """D."""
    return state[MODEL] - state[SLOW]
