"""How long a dense update is: it follows from the model and the run's settings alone."""

from dataclasses import dataclass
from typing import Final, Literal

Bits = Literal[32, 16, 8, 4]

BLOCK: Final = 4096  # elements that share a scale
CUT_BYTES: Final = (
    7  # that each part of an update adds at most: its head, a version, a scale, a half
)


@dataclass(frozen=True, slots=True)
class DenseLayout:
    sizes: tuple[int, ...]  # elements of each tensor
    bits: Bits

    def lengths(self, size: int) -> tuple[int, int]:
        """Bytes of a tensor's scales and values."""
        scales = 2 * -(-size // BLOCK) if self.bits < 16 else 0
        return scales, -(-size * self.bits // 8)

    @property
    def bytes(self) -> int:
        """Of every update."""
        return 1 + sum(sum(self.lengths(size)) for size in self.sizes)
