"""How long a dense update is: it follows from the model and the run's settings alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

Bits = Literal[32, 16, 8, 4]

BLOCK: Final = 4096  # elements that share a scale
CUT_BYTES: Final = (
    7  # that each part of an update adds at most: its head, a version, a scale, a half
)
SPAN: Final = 64 * BLOCK  # elements that a thread takes at a time; one megabyte of weights


@dataclass(frozen=True, slots=True)
class Span:
    """A run of whole blocks of one tensor; the tensor's last one may be shorter."""

    tensor: int  # its number
    first: int  # element, counted through all tensors
    size: int
    scales: int  # the bytes of an update at which its own begin
    values: int

    @property
    def elements(self) -> slice:
        return slice(self.first, self.first + self.size)


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

    def spans(self) -> Iterator[Span]:
        """All elements, in their order."""
        first, at = 0, 1
        for tensor, size in enumerate(self.sizes):
            of_scales, of_values = self.lengths(size)
            for start in range(0, size, SPAN):
                scales = at + self.lengths(start)[0]
                values = at + of_scales + self.lengths(start)[1]
                yield Span(tensor, first + start, min(SPAN, size - start), scales, values)
            first, at = first + size, at + of_scales + of_values
