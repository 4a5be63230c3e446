"""What an exchange moves: the arithmetic of gossip, the same for one peer and for thousands.

A peer's state is a few flat vectors, by name; `MODEL` are the trained parameters themselves, which
inner steps move. Everything here is elementwise over the last dimension, so it takes one stretch
of one peer's vectors, (n,), or that of many peers, (peers, n), and needs no more memory than that.

What an exchange moves is a *difference*, made of what both sides decoded. It may be applied later
than it was made, after more inner steps; and since each side takes its own offer as the other one
decoded it, what one gains the other loses, to rounding, however coarse the code is.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Final

import torch
from torch import Tensor

MODEL: Final = "model"

State = Mapping[str, Tensor]  # (..., n) float32 each, live; those of `per_stretch` (..., 1) float64
Offer = Sequence[Tensor]  # what is sent, in order: (..., n) float32, coded; then (..., 1) float64


class Mixing(ABC):
    """A method's exchange, without its settings for anything else."""

    vectors: ClassVar[tuple[str, ...]] = ()
    """Beside MODEL, as long as it."""
    per_stretch: ClassVar[tuple[str, ...]] = ()
    """One float64 of each stretch."""
    conserved: ClassVar[str | None] = None
    """The vector whose sum over all peers no exchange changes; steps move it as far as MODEL."""

    def begin(self, state: State) -> None:
        """All vectors but MODEL are 0: make them what they are before the first step."""
        return

    @abstractmethod
    def offer(self, state: State) -> list[Tensor]:
        """What others need. It may take in what inner steps did; it moves nothing."""

    @abstractmethod
    def moves(
        self,
        mine: Offer | None,  # as others decode it; None: this side sends nothing
        others: Sequence[Offer],  # in the order of the meeting; empty: they send nothing
    ) -> list[Tensor]:
        """What `apply` takes."""

    @abstractmethod
    def apply(self, state: State, moves: Sequence[Tensor]) -> None:
        """In place."""

    def alone(self, state: State) -> None:
        """Nobody came: the round's step without the others."""
        return


def toward_mean(mine: Tensor, others: Sequence[Tensor]) -> Tensor:
    """The mean of all less mine, as a sum of what each other one is ahead: of two, one's is the
    other's with the other sign, to the bit.
    """
    total = torch.zeros_like(mine)
    for theirs in others:
        total += theirs - mine
    return total / (len(others) + 1)
