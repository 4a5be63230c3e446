"""How tensors are cut for sparse payloads: chunks of one size, of which each keeps a few elements.

A tensor is flattened and cut into chunks of `chunk` elements. The last one is shorter when the size
is no multiple, and keeps its share of `k`, at least 1. So any shape is sent equally sparsely: odd
and prime sizes, vectors, scalars. (Chunks that have to divide a tensor's sides fall back to sending
everything where nothing divides them.) A tensor without elements has no chunks.

The layout follows from the model and the run's settings alone. A payload says nothing about it, so
nothing that a stranger sends decides how much memory is taken.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Final

CHUNK: Final = 4096
KEPT: Final = 64
CHUNK_MAX: Final = 1 << 16
HEADER_BYTES: Final = 6  # of a coded tensor, beside four for each span
SPAN_ELEMENTS: Final = 1 << 20  # large, so that its header is nothing; many make work for threads


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive chunks of one tensor that are coded, and may be worked on, by themselves."""

    start: int  # its first element, in its tensor
    size: int  # elements
    first: int  # values that the tensor keeps before this span
    kept: int  # values


@dataclass(frozen=True, slots=True)
class TensorChunks:
    """The chunks of one tensor. Value i of those it keeps lies in chunk i // k."""

    size: int  # elements
    chunk: int  # elements, of all chunks but the last
    k: int  # kept of each of them

    @property
    def count(self) -> int:
        return -(-self.size // self.chunk)

    @property
    def last(self) -> int:
        """Elements of the last chunk; 0 when the tensor has none."""
        return self.size - max(0, self.count - 1) * self.chunk

    @property
    def kept_of_last(self) -> int:
        """k * last / chunk to the nearest, halves up; at least 1. 0 when there is no chunk."""
        if not self.size:
            return 0
        return max(1, (2 * self.k * self.last + self.chunk) // (2 * self.chunk))

    @property
    def kept(self) -> int:
        return max(0, self.count - 1) * self.k + self.kept_of_last

    def spans(self) -> Iterator[Span]:
        each = max(1, SPAN_ELEMENTS // self.chunk)  # chunks
        for chunk in range(0, self.count, each):
            start, first = chunk * self.chunk, chunk * self.k
            size = min(each * self.chunk, self.size - start)
            yield Span(start, size, first, min(each * self.k, self.kept - first))


@dataclass(frozen=True)
class Layout:
    """The chunks of all tensors of a model, in its own order, and what one value takes."""

    tensors: tuple[TensorChunks, ...]
    symbol_bits: int  # of one value: 2, a sign and one of two magnitudes; 1, a sign

    @staticmethod
    def of(
        sizes: Iterable[int],  # elements of each tensor
        chunk: int = CHUNK,
        k: int = KEPT,
        symbol_bits: int = 2,
    ) -> "Layout":
        """Raises ValueError for settings that make no payload."""
        if not 1 <= chunk <= CHUNK_MAX:
            raise ValueError(f"a chunk of {chunk} elements; it has 1 to {CHUNK_MAX}")
        if not 1 <= k <= chunk:
            raise ValueError(f"{k} values kept of a chunk of {chunk}; at least 1, at most all")
        if symbol_bits not in (1, 2):
            raise ValueError(f"{symbol_bits} bits a value; 1 or 2")
        tensors = tuple(TensorChunks(size, chunk, k) for size in sizes)
        if any(tensor.size < 0 for tensor in tensors):
            raise ValueError("a tensor has a negative size")
        return Layout(tensors, symbol_bits)

    @cached_property
    def size(self) -> int:
        """Elements of all tensors."""
        return sum(tensor.size for tensor in self.tensors)

    @cached_property
    def count(self) -> int:
        """Chunks of all tensors."""
        return sum(tensor.count for tensor in self.tensors)

    @cached_property
    def kept(self) -> int:
        """Values that a payload holds."""
        return sum(tensor.kept for tensor in self.tensors)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each tensor begins in the flat vector of all parameters."""
        return tuple(accumulate((t.size for t in self.tensors), initial=0))[:-1]

    @cached_property
    def spans(self) -> tuple[tuple[Span, ...], ...]:
        """The spans of each tensor."""
        return tuple(tuple(tensor.spans()) for tensor in self.tensors)

    @cached_property
    def bytes_max(self) -> int:
        """No update that is coded is longer."""
        total = 1
        for number, (tensor, spans) in enumerate(zip(self.tensors, self.spans, strict=True)):
            if tensor.size:
                # What the best divisor takes is no more than with one of a whole chunk: a gap, and
                # the bit that ends a quotient of 0.
                bits = (min(tensor.chunk, tensor.size) - 1).bit_length() + 1
                total += HEADER_BYTES + self.symbol_bytes(number)
                total += sum(4 + -(-span.kept * bits // 8) for span in spans)
        return total

    def symbol_bytes(self, tensor: int) -> int:
        """Bytes that the symbols of one tensor take."""
        return -(-self.tensors[tensor].kept * self.symbol_bits // 8)
