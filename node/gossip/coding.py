"""An offer as bytes, one stretch at a time.

    the first vector, if the run sends the largest few of it: as `parts.sparse_codec` says
    all other vectors that are due, in order     as `parts.dense_codec` says, part by part
    the exact numbers, in order     float64, little-endian, finite, within EXACT_MIN and EXACT_MAX

How long that is, or at most, follows from the model and the run's settings. Reading is strict:
bytes that no honest peer writes raise ValueError, and nothing in them decides how much memory is
taken.
"""

import struct
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from node.methods.parts import dense_codec, sparse_codec
from node.methods.parts.chunks import Layout
from node.methods.parts.dense_layout import DenseLayout
from node.methods.parts.gossip_config import GossipConfig
from node.methods.parts.mixing import Offer
from node.methods.parts.sparsify import select
from node.methods.parts.stretches import Stretch

EXACT_MIN: Final = 2.0**-40  # of a push-sum weight: who lost so many halves has been alone for long
EXACT_MAX: Final = 2.0**20


class Coder:
    def __init__(self, config: GossipConfig, stretches: Sequence[Stretch]) -> None:
        self._config, self._exact = config, config.exact
        self._bits = config.value_bits
        self._layouts = [DenseLayout(part.sizes, config.value_bits) for part in stretches]
        self._sparse: list[Layout] = []
        if config.sparse_kept is not None:
            self._sparse = [Layout.of(part.sizes, k=config.sparse_kept) for part in stretches]

    def bytes_of(self, number: int, turn: int = 0) -> int:
        """Of an offer of that stretch, at most."""
        most = self._fixed_bytes(number, turn)
        return most + self._sparse[number].bytes_max if self._sparse else most

    @property
    def bytes_in_all(self) -> int:
        """Of all stretches, on average over turns, at most."""
        turns = range(self._config.turns)
        numbers = range(len(self._layouts))
        return sum(self.bytes_of(n, t) for n in numbers for t in turns) // len(turns)

    def encode(self, number: int, offer: Offer, turn: int = 0) -> bytes:
        """Of an offer the vectors that are due. Raises DivergedError when one holds a NaN or an
        infinity.
        """
        layout = self._layouts[number]
        parts: list[bytes] = []
        for at, vector in enumerate(offer[: self._config.vectors_due(number, turn)]):
            tensors = torch.split(vector, list(layout.sizes))
            if self._sparse and at == 0:
                parts.append(self._encode_sparse(number, tensors))
            else:
                parts.append(dense_codec.encode(layout, tensors))
        numbers = offer[self._config.coded :]
        return b"".join(parts) + b"".join(struct.pack("<d", float(one)) for one in numbers)

    def decode(self, number: int, data: bytes, device: torch.device, turn: int = 0) -> Offer:
        """Raises ValueError."""
        fixed, most = self._fixed_bytes(number, turn), self.bytes_of(number, turn)
        if not fixed <= len(data) <= most:
            raise ValueError(f"an offer of at most {most} bytes has {len(data)}")
        found: list[Tensor] = []
        if self._sparse:
            found.append(self._decode_sparse(number, data[: len(data) - fixed], device))
        elif len(data) != fixed:
            raise ValueError(f"an offer of {fixed} bytes has {len(data)}")
        dense = data[len(data) - fixed :]
        layout = self._layouts[number]
        exact_at = fixed - 8 * self._exact
        for at in range(0, exact_at, layout.bytes):
            update = dense_codec.decode(layout, dense[at : at + layout.bytes])
            found.append(torch.cat(list(update.values(device))))
        for (value,) in struct.iter_unpack("<d", dense[exact_at:]):
            if not EXACT_MIN <= value <= EXACT_MAX:  # also of a NaN
                raise ValueError(f"a weight of {value:g} is not within {EXACT_MIN}..{EXACT_MAX}")
            found.append(torch.tensor([value], dtype=torch.float64, device=device))
        return found

    def rounded(self, number: int, offer: Offer, turn: int = 0) -> list[Tensor]:
        """What others decode of many peers' offers, (peers, n) each, without most of the bytes."""
        vectors = []
        for at, vector in enumerate(offer[: self._config.vectors_due(number, turn)]):
            if self._sparse and at == 0:
                vectors.append(torch.stack([self._sent(number, row) for row in vector]))
            else:
                vectors.append(self._rounded(number, vector))
        return [*vectors, *offer[self._config.coded :]]

    def _fixed_bytes(self, number: int, turn: int) -> int:
        dense = self._config.vectors_due(number, turn) - bool(self._sparse)
        return dense * self._layouts[number].bytes + 8 * self._exact

    def _rounded(self, number: int, vector: Tensor) -> Tensor:
        if self._bits >= 16:  # each number by itself, whichever tensor it is of
            return dense_codec.rounded(vector, self._bits)
        parts = torch.split(vector, list(self._layouts[number].sizes), -1)
        return torch.cat([dense_codec.rounded(part, self._bits) for part in parts], -1)

    # The largest few

    def _encode_sparse(self, number: int, tensors: Sequence[Tensor]) -> bytes:
        layout = self._sparse[number]
        pairs = enumerate(zip(tensors, layout.tensors, strict=True))
        return sparse_codec.encode(
            layout, [select(f"trained tensor part {at}", *pair) for at, pair in pairs]
        )

    def _decode_sparse(self, number: int, data: bytes, device: torch.device) -> Tensor:
        update = sparse_codec.decode(self._sparse[number], data)
        positions, values = sparse_codec.values_of(update, device)
        dense = torch.zeros(self._sparse[number].size, device=device)
        dense[positions] = values
        return dense

    def _sent(self, number: int, vector: Tensor) -> Tensor:
        tensors = torch.split(vector, list(self._layouts[number].sizes))
        return self._decode_sparse(number, self._encode_sparse(number, tensors), vector.device)
