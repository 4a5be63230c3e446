"""How tensors are cut for payloads of few coefficients, and how long such a payload is.

Two ways, of which a run has one:

* tiles: a tensor is a matrix, with all sides but the first run together; a vector is a column. Both
  sides are cut evenly into pieces of at most `side`, which are padded with zeros to one size: 65 is
  two times 33, 50257 is 786 times 64. So no shape, be it prime, is sent whole, and next to nothing
  is padding. A tile keeps k of `side` * `side` coefficients, in proportion to its size, at least 1;
* strides: of a tensor, one element in so many, wherever a round's mask says.

All of it follows from the model and the run's settings alone: nothing that a stranger sends decides
how much memory is taken.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import comb, prod
from typing import Final, Literal

Values = Literal["sign", "int8"]

SIDE_MAX: Final = 64
RANK_BITS_MAX: Final = 62  # of the number of a tile's subset; the compiled loops sum in int64
SCALE_BYTES: Final = 2
STREAM_BYTES: Final = 6  # divisor and length of positions that are coded as gaps


@dataclass(frozen=True)
class Tiles:
    """One tensor as tiles of coefficients, tile by tile, row by row."""

    rows: int
    columns: int
    side: int
    kept: int  # of side * side coefficients

    @staticmethod
    def of(shape: Sequence[int], side: int, kept: int) -> "Tiles":
        if not shape:
            return Tiles(1, 1, side, kept)
        return Tiles(shape[0], prod(shape[1:]), side, kept)

    @property
    def elements(self) -> int:
        return self.rows * self.columns

    @property
    def down(self) -> int:
        """Tiles on top of each other."""
        return -(-self.rows // self.side)

    @property
    def across(self) -> int:
        return -(-self.columns // self.side)

    @property
    def tall(self) -> int:
        """Rows of a tile; 0 when the tensor has none."""
        return -(-self.rows // self.down) if self.down else 0

    @property
    def wide(self) -> int:
        return -(-self.columns // self.across) if self.across else 0

    @property
    def count(self) -> int:
        return self.down * self.across

    @property
    def length(self) -> int:
        """Coefficients of a tile."""
        return self.tall * self.wide

    @property
    def size(self) -> int:
        """Coefficients of all tiles: elements and padding."""
        return self.count * self.length

    @cached_property
    def k(self) -> int:
        """kept * length / side**2 to the nearest, halves up; at least 1."""
        whole = self.side * self.side
        return max(1, (2 * self.kept * self.length + whole) // (2 * whole))

    @cached_property
    def rank_bits(self) -> int | None:
        """Of a number that says which coefficients of a tile are sent, at most k of them. None:
        there are too many subsets to number.
        """
        subsets = 0
        for size in range(self.k + 1):
            subsets += comb(self.length, size)
            if subsets > 1 << RANK_BITS_MAX:
                return None
        return (subsets - 1).bit_length()

    def positions_bytes_max(self) -> int:
        if self.rank_bits is not None:
            return -(-self.count * self.rank_bits // 8)
        # A gap takes no more than with a divisor of a whole tile, and the bit that ends a quotient.
        gap_bits = (self.length - 1).bit_length() + 1
        return STREAM_BYTES + -(-self.count * self.k * gap_bits // 8)

    def bytes_max(self, values: Values) -> int:
        most = self.count * self.k
        numbered = self.rank_bits is not None
        of_values = nonzero_bytes(most, values) if numbered else any_bytes_max(most, values)
        return SCALE_BYTES + self.positions_bytes_max() + of_values


@dataclass(frozen=True)
class Strides:
    """One tensor, of which a round sends one element in `one_in`: the j-th slot holds one of the
    j-th group of so many. Slots behind the last element hold nothing.
    """

    elements: int
    one_in: int

    @property
    def size(self) -> int:
        return self.elements

    @property
    def slots(self) -> int:
        return -(-self.elements // self.one_in)

    def bytes_max(self, values: Values) -> int:
        return SCALE_BYTES + any_bytes_max(self.slots, values)


def nonzero_bytes(count: int, values: Values) -> int:
    """Of so many values, none of which is 0."""
    return -(-count // 8) if values == "sign" else count


def any_bytes_max(count: int, values: Values) -> int:
    """Of so many values, some of which may be 0."""
    return 1 + -(-count // 8) + -(-(count - 1) // 8) if values == "sign" else count


@dataclass(frozen=True)
class CoefficientLayout:
    """The coefficients of all tensors of a model, in its own order: one flat vector."""

    tensors: tuple[Tiles | Strides, ...]
    values: Values

    @staticmethod
    def tiled(
        shapes: Iterable[Sequence[int]], side: int, kept: int, values: Values
    ) -> "CoefficientLayout":
        assert 1 <= side <= SIDE_MAX
        assert 1 <= kept <= side * side
        return CoefficientLayout(tuple(Tiles.of(s, side, kept) for s in shapes), values)

    @staticmethod
    def strided(
        shapes: Iterable[Sequence[int]], one_in: int, values: Values
    ) -> "CoefficientLayout":
        return CoefficientLayout(tuple(Strides(prod(s), one_in) for s in shapes), values)

    @cached_property
    def sizes(self) -> list[int]:
        """Coefficients of each tensor."""
        return [tensor.size for tensor in self.tensors]

    @cached_property
    def size(self) -> int:
        return sum(self.sizes)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each tensor begins in the flat vector."""
        return tuple(accumulate(self.sizes, initial=0))[:-1]

    @cached_property
    def bytes_max(self) -> int:
        """No update is longer."""
        return 1 + sum(t.bytes_max(self.values) for t in self.tensors if t.elements)
