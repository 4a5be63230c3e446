"""What all methods share that send the largest few of each chunk, at a bit or two each."""

from collections.abc import Sequence
from fractions import Fraction
from typing import TypeVar

import torch
from torch import Tensor

from node.methods.parts.chunks import Layout
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
        self._layouts = [config.layout(fragment.sizes) for fragment in self._fragments]

    def _wanted(self) -> Tensor:
        """(size,) float32: of what is due in it the largest are sent."""
        return self._feedback.values

    def _encode(self, round: int) -> bytes:
        layout, names = self._layout_of(round), self._weights.names[self._due(round).tensors]
        parts = zip(names, self._split(round, self._wanted()), layout.tensors, strict=True)
        chosen = [select(*part, self.config.value_bits) for part in parts]
        return encode(layout, chosen)

    def _decode(self, round: int, attachment: bytes) -> SparseUpdate:
        return decode(self._layout_of(round), attachment)

    def _layout_of(self, round: int) -> Layout:
        return self._layouts[round % len(self._layouts)]

    def _sent(self, round: int, update: SparseUpdate) -> Sent:
        positions, values = values_of(update, self._weights.device)
        return positions + self._due(round).elements.start, values

    def _split(self, round: int, flat: Tensor) -> Sequence[Tensor]:
        """The tensors of a flat vector that are due."""
        due = self._due(round)
        return torch.split(flat[due.elements], list(due.sizes))


def usable(coefficient: Fraction) -> float:
    """0 for what no weight could feel."""
    return 0.0 if coefficient < Fraction(COEFFICIENT_MIN) else float(coefficient)
