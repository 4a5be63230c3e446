"""Stochastic gradient push: mass goes one way, and a weight beside it says how much of it is one's.

*Stochastic Gradient Push for Distributed Deep Learning* (2018), https://arxiv.org/abs/1811.10792.
Peer i holds x_i and a weight w_i, at first 1; its model is z_i = x_i / w_i. Inner steps from z_i
move x_i as far. Then it sends half of both to one other peer, and keeps the rest:

    x <- A x,  w <- A w,  A column-stochastic;  z = x / w

Nobody has to send back, so links may be one-way and in-degrees uneven: sum x and sum w stay, and z
tends to sum x / sum w, the exact mean, where x alone is biased.

Mass that is sent is taken off only once the other side has it. Differences from the paper: w is
kept for each stretch of the model, so that an exchange that breaks off leaves each stretch right;
the half that is sent is taken off as it was decoded.
"""

from collections.abc import Sequence
from typing import Final

from torch import Tensor

from node.methods.parts.mixing import MODEL, Mixing, Offer, State

MASS: Final = "mass"
WEIGHT: Final = "weight"
_SHARE: Final = 0.5


class PushSum(Mixing):
    vectors = (MASS,)
    per_stretch = (WEIGHT,)
    conserved = MASS

    def begin(self, state: State) -> None:
        state[MASS].copy_(state[MODEL])
        state[WEIGHT].fill_(1.0)

    def offer(self, state: State) -> list[Tensor]:
        self._take_in(state)
        return [_SHARE * state[MASS], _SHARE * state[WEIGHT]]

    def moves(self, mine: Offer | None, others: Sequence[Offer]) -> list[Tensor]:
        """What x and w gain: the sender's are negative."""
        assert (mine is None) != (not others), "one sends, and one receives"
        if mine is not None:
            return [-part for part in mine]
        return list(others[0])

    def apply(self, state: State, moves: Sequence[Tensor]) -> None:
        self._take_in(state)
        state[MASS].add_(moves[0])
        state[WEIGHT].add_(moves[1])
        state[MODEL].copy_(_ratio(state))

    def _take_in(self, state: State) -> None:
        """What inner steps did to z moves x as far, and z by 1 / w of it, as in the paper. Nothing,
        to the bit, if there were none.
        """
        state[MASS].add_(state[MODEL] - _ratio(state))
        state[MODEL].copy_(_ratio(state))


def _ratio(state: State) -> Tensor:
    mass = state[MASS]
    return (mass / state[WEIGHT]).to(mass.dtype)
