"""Error feedback: what a peer computed and has not sent waits for its turn.

    e <- decay * e + difference          after a round's own steps
    e <- e - sent                        once the round holds what was sent

Nothing is taken off before its round is committed. So what missed its round, or was listed on a
branch that lost, is still there, in full, for the next one.
"""

from collections.abc import Callable, Mapping

import torch
from blake3 import blake3
from torch import Tensor

KEPT_ROUNDS = 256  # older contributions are neither listed nor given back any more
_VALUES, _ROUND, _TAKEN = "feedback.values", "feedback.round", "feedback.taken"

# Positions (n,) int64, or all of them; and values (n,) float32.
Sent = tuple[Tensor | slice, Tensor]
Decode = Callable[[int, bytes], Sent]  # of a round, and what we offered to it


class Feedback:
    """`values`: (size,) float32, this peer's own."""

    def __init__(self, size: int, device: torch.device, decode: Decode) -> None:
        self.values = torch.zeros(size, device=device)
        self._decode = decode
        self._round = -1  # the last one whose steps are in it
        self._taken: set[tuple[int, int]] = set()  # what was taken off: round, and whose bytes

    def add(
        self,
        round: int,
        decay: float,
        difference: Callable[[Tensor], None],
        where: slice = slice(None),  # of `values`: what has its turn
    ) -> None:
        """`difference` adds this round's steps to the tensor that it is given."""
        part = self.values[where]
        part *= decay
        difference(part)
        self._round = round
        self._taken = {one for one in self._taken if one[0] > round - KEPT_ROUNDS}

    def committed(self, round: int, data: bytes) -> None:
        """A round holds what we sent as `data`: off with it, once."""
        one = round, tag(data)
        if one in self._taken:
            return
        self._taken.add(one)
        positions, values = self._decode(round, data)
        if round <= self._round:
            self.values[positions] -= values
        else:
            # Computed in another life of this process, after these values were saved. The steps
            # themselves are gone; what waited in these places was sent together with them.
            self.values[positions] = 0.0

    def returned(self, round: int, data: bytes) -> None:
        """No round holds it after all."""
        one = round, tag(data)
        if one in self._taken:
            self._taken.remove(one)
            positions, values = self._decode(round, data)
            self.values[positions] += values

    def state(self) -> dict[str, Tensor]:
        taken = torch.tensor(sorted(self._taken), dtype=torch.int64).reshape(-1, 2)
        return {_VALUES: self.values, _ROUND: torch.tensor([self._round]), _TAKEN: taken}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Raises ValueError, and leaves everything as it was, for what `state` did not write."""
        values, round, taken = (state.get(name) for name in (_VALUES, _ROUND, _TAKEN))
        if values is None or values.dtype != torch.float32 or values.shape != self.values.shape:
            raise ValueError(f"{_VALUES} is float32 {tuple(self.values.shape)}")
        if not bool(values.isfinite().all()):
            raise ValueError(f"{_VALUES} is not finite")
        if round is None or round.dtype != torch.int64 or round.shape != (1,):
            raise ValueError(f"{_ROUND} is one int64")
        if taken is None or taken.dtype != torch.int64 or taken.dim() != 2 or taken.shape[1] != 2:
            raise ValueError(f"{_TAKEN} is an int64 table of 2 columns")
        self.values.copy_(values)
        self._round = int(round)
        self._taken = {(number, tag) for number, tag in taken.tolist()}


def tag(data: bytes) -> int:
    """63 bits, so that it fits a table of int64."""
    return int.from_bytes(blake3(data).digest(length=8), "little") >> 1
