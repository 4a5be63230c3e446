"""What all methods share that send the largest few of each chunk, at a bit or two each."""

from collections.abc import Sequence
from fractions import Fraction
from typing import TypeVar

import torch
from torch import Tensor

from node.methods.parts.feedback import Sent
from node.methods.parts.inner_outer import InnerOuter
from node.methods.parts.setup import Setup
from node.methods.parts.sparse_codec import SparseUpdate, decode, encode, values_of
from node.methods.parts.sparse_config import SparseConfig
from node.methods.parts.sparse_merge import COEFFICIENT_MIN
from node.methods.parts.sparsify import select

S = TypeVar("S", bound=SparseConfig)


class SparseMethod(InnerOuter[S, SparseUpdate]):
    def __init__(self, config: S, setup: Setup) -> None:
        super().__init__(config, setup)
        self._layout = config.layout(self._weights.sizes)

    def _wanted(self) -> Tensor:
        """(size,) float32: of what the largest are sent."""
        return self._feedback.values

    def _encode(self, round: int) -> bytes:
        parts = zip(
            self._weights.names,
            self._split(self._wanted()),
            self._layout.tensors,
            strict=True,
        )
        chosen = [select(*part, self.config.value_bits) for part in parts]
        return encode(self._layout, chosen)

    def _decode(self, attachment: bytes) -> SparseUpdate:
        return decode(self._layout, attachment)

    def _sent(self, round: int, update: SparseUpdate) -> Sent:
        return values_of(update, self._weights.device)

    def _split(self, flat: Tensor) -> Sequence[Tensor]:
        return torch.split(flat, self._weights.sizes)


def usable(coefficient: Fraction) -> float:
    """0 for what no weight could feel."""
    return 0.0 if coefficient < Fraction(COEFFICIENT_MIN) else float(coefficient)
