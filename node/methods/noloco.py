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

Differences from the paper: theta moves by m_i - D_i, D_i as the others decoded it. What rounding
took away, and what was done while the exchange went on, stays in theta - phi, and so in the next D.
With `kept` the largest elements of D alone are sent: then theta - phi is the error feedback. With
`slow_every` slow weights travel in turns, and where they do not there is no spring.
"""

from collections.abc import Sequence
from typing import Final

from torch import Tensor

from node.methods.parts.mixing import MODEL, Mixing, Offer, State, toward_mean

SLOW: Final = "slow"
MOMENTUM: Final = "momentum"


class NoLoCo(Mixing):
    vectors = (SLOW, MOMENTUM)
    coded = 2

    def __init__(self, alpha: float, gamma: float, mu: float, *, nesterov: bool = False) -> None:
        self._alpha, self._mu, self._nesterov = alpha, mu, nesterov
        self._gamma = gamma / (1 + mu) if nesterov else gamma

    def begin(self, state: State) -> None:
        state[SLOW].copy_(state[MODEL])

    def offer(self, state: State) -> list[Tensor]:
        slow = state[SLOW]
        held = slow + self._mu**2 * state[MOMENTUM] if self._nesterov else slow
        return [state[MODEL] - slow, held]

    def moves(self, mine: Offer | None, others: Sequence[Offer]) -> list[Tensor]:
        """The momentum's gain, and D_i."""
        assert mine is not None, "all send"
        moved, *slow = mine
        gain = self._alpha * (moved + toward_mean(moved, [theirs[0] for theirs in others]))
        if slow:
            gain += self._gamma * toward_mean(slow[0], [theirs[1] for theirs in others])
        return [gain, moved]

    def apply(self, state: State, moves: Sequence[Tensor]) -> None:
        gain, moved = moves
        momentum = state[MOMENTUM]
        momentum.mul_(self._mu).add_(gain)
        step = gain + self._mu * momentum if self._nesterov else momentum
        state[SLOW].add_(step)
        state[MODEL].add_(step - moved)

    def alone(self, state: State) -> None:
        moved = state[MODEL] - state[SLOW]
        self.apply(state, [self._alpha * moved, moved])
