"""The discrete cosine transform of tiles, and its exact inverse.

D[j, i] = sqrt(2 / c) * cos(pi * (i + 1/2) * j / c), the first row divided by sqrt(2), is the
orthonormal DCT-II of c numbers. A tile X has the coefficients D X E^T, with a D for each side.

Forward is one machine's own arithmetic, in float32. The inverse moves weights that all peers share,
so it is exact: coefficients are integers of at most COEFFICIENT_MAX, the basis is rounded to
integers, B = round(2^BASIS_BITS * D), and

    X = B^T C F        in float64, of which each product and each partial sum is an integer.

Why each is below 2^53, in whatever order a library sums, fused or not: a column of D has length 1,
so its magnitudes sum to at most sqrt(c) <= 8, and those of B to at most 8 * 2^15 + 64 / 2. Twice
that factor on 2^15 gives (2^18 + 32)^2 * 2^15 < 2^52. Rounding the basis changes X by less than a
thousandth of what one coefficient moves.
"""

import math
from functools import lru_cache
from typing import Final

import torch
from torch import Tensor

from node.methods.parts.tiles import SIDE_MAX, Tiles

BASIS_BITS: Final = 15
COEFFICIENT_MAX: Final = 1 << 15
assert COEFFICIENT_MAX * (8 * 2**BASIS_BITS + SIDE_MAX // 2) ** 2 < 2**52


@lru_cache(maxsize=SIDE_MAX)
def basis(c: int) -> Tensor:
    """(c, c) float64: D."""
    j, i = torch.arange(c, dtype=torch.float64)[:, None], torch.arange(c, dtype=torch.float64)
    d = math.sqrt(2 / c) * torch.cos(math.pi * (i + 0.5) * j / c)
    d[0] /= math.sqrt(2)
    return d


@lru_cache(maxsize=SIDE_MAX)
def integer_basis(c: int) -> Tensor:
    """(c, c) float64, whole numbers: B, the same on every machine: cosines of different libraries
    differ in their last bits, but no entry lies within 2^-12 of the half where it would round
    the other way.
    """
    return (basis(c) * 2**BASIS_BITS).round()


def forward(values: Tensor, tiles: Tiles) -> Tensor:
    """(tiles.size,) float32 coefficients of (tiles.elements,) float32."""
    t = tiles
    padded = values.new_zeros(t.down * t.tall, t.across * t.wide)
    padded[: t.rows, : t.columns] = values.view(t.rows, t.columns)
    x = padded.view(t.down, t.tall, t.across, t.wide).transpose(1, 2)
    d, e = (basis(c).to(values.device, values.dtype) for c in (t.tall, t.wide))
    return (d @ x @ e.T).reshape(-1)


def inverse(coefficients: Tensor, tiles: Tiles) -> Tensor:
    """(tiles.elements,) float64: whole numbers, exact, 2^(2 * BASIS_BITS) times the values.

    `coefficients`: (tiles.size,) int64, magnitudes up to COEFFICIENT_MAX.
    """
    t = tiles
    b, f = (integer_basis(c).to(coefficients.device) for c in (t.tall, t.wide))
    c = coefficients.double().view(t.down, t.across, t.tall, t.wide)
    x = (b.T @ c @ f).transpose(1, 2).reshape(t.down * t.tall, t.across * t.wide)
    return x[: t.rows, : t.columns].reshape(-1)
