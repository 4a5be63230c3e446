"""An offer as bytes, one stretch at a time.

    the coded vectors, in order     each as `parts.dense_codec` says, tensor part by tensor part
    the exact numbers, in order     float64, little-endian, finite, within EXACT_MIN and EXACT_MAX

How long that is follows from the model and the run's settings. Reading is strict: bytes that no
honest peer writes raise ValueError, and nothing in them decides how much memory is taken.
"""

import struct
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from node.methods.parts import dense_codec
from node.methods.parts.dense_layout import DenseLayout
from node.methods.parts.gossip_config import GossipConfig
from node.methods.parts.mixing import Offer
from node.methods.parts.stretches import Stretch

EXACT_MIN: Final = 2.0**-40  # of a push-sum weight: who lost so many halves has been alone for long
EXACT_MAX: Final = 2.0**20


class Coder:
    def __init__(self, config: GossipConfig, stretches: Sequence[Stretch]) -> None:
        self._coded, self._exact = config.coded, config.exact
        self._bits = config.value_bits
        self._layouts = [DenseLayout(part.sizes, config.value_bits) for part in stretches]

    def bytes_of(self, number: int) -> int:
        """Of an offer of that stretch."""
        return self._coded * self._layouts[number].bytes + 8 * self._exact

    @property
    def bytes_in_all(self) -> int:
        """Of all stretches."""
        return sum(self.bytes_of(number) for number in range(len(self._layouts)))

    def encode(self, number: int, offer: Offer) -> bytes:
        """Raises DivergedError when a vector holds a NaN or an infinity."""
        layout = self._layouts[number]
        sizes = list(layout.sizes)
        vectors, numbers = offer[: self._coded], offer[self._coded :]
        coded = [dense_codec.encode(layout, torch.split(vector, sizes)) for vector in vectors]
        return b"".join(coded) + b"".join(struct.pack("<d", float(one)) for one in numbers)

    def decode(self, number: int, data: bytes, device: torch.device) -> Offer:
        """Raises ValueError."""
        if len(data) != self.bytes_of(number):
            raise ValueError(f"an offer of {self.bytes_of(number)} bytes has {len(data)}")
        layout = self._layouts[number]
        found: list[Tensor] = []
        for at in range(0, self._coded * layout.bytes, layout.bytes):
            update = dense_codec.decode(layout, data[at : at + layout.bytes])
            found.append(torch.cat(list(update.values(device))))
        for (value,) in struct.iter_unpack("<d", data[self._coded * layout.bytes :]):
            if not EXACT_MIN <= value <= EXACT_MAX:  # also of a NaN
                raise ValueError(f"a weight of {value:g} is not within {EXACT_MIN}..{EXACT_MAX}")
            found.append(torch.tensor([value], dtype=torch.float64, device=device))
        return found

    def rounded(self, number: int, offer: Offer) -> list[Tensor]:
        """What others decode of many peers' offers, (peers, n) each, without the bytes."""
        vectors = [self._rounded(number, vector) for vector in offer[: self._coded]]
        return [*vectors, *offer[self._coded :]]

    def _rounded(self, number: int, vector: Tensor) -> Tensor:
        if self._bits >= 16:  # each number by itself, whichever tensor it is of
            return dense_codec.rounded(vector, self._bits)
        parts = torch.split(vector, list(self._layouts[number].sizes), -1)
        return torch.cat([dense_codec.rounded(part, self._bits) for part in parts], -1)
