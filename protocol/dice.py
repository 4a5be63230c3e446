"""Chance, as an argument: a seeded stream of integers, the same on every machine."""

from collections.abc import Sequence
from typing import TypeVar

from blake3 import blake3

T = TypeVar("T")
_CHUNK_BYTES = 512


class Dice:
    """Draws that follow from `seed` alone."""

    def __init__(self, seed: bytes) -> None:
        self._source = blake3(seed, derive_key_context="peertrain 1 dice")
        self._offset = 0
        self._buffer = b""

    def word(self) -> int:
        """A 32-bit number."""
        if not self._buffer:
            self._buffer = self._source.digest(length=_CHUNK_BYTES, seek=self._offset)
            self._offset += _CHUNK_BYTES
        word = int.from_bytes(self._buffer[:4], "big")
        self._buffer = self._buffer[4:]
        return word

    def below(self, bound: int) -> int:
        """A number from 0 to `bound` - 1 (the bias, under bound / 2^32, does not matter to anyone
        who asks).
        """
        return self.word() * bound >> 32

    def pick(self, items: Sequence[T], count: int = 1) -> list[T]:
        """At most `count` different items."""
        pool = list(items)
        count = min(count, len(pool))
        for index in range(count):
            other = index + self.below(len(pool) - index)
            pool[index], pool[other] = pool[other], pool[index]
        return pool[:count]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        return self.pick(items, len(items))
