"""Transforms of tiles: orthonormal at home, and exact where they move what all share."""

from itertools import product
from math import prod

import pytest
import torch

from node.methods.parts.dct import (
    BASIS_BITS,
    COEFFICIENT_MAX,
    basis,
    forward,
    integer_basis,
    inverse,
)
from node.methods.parts.tiles import SIDE_MAX, Tiles

SHAPES = [
    (),
    (1,),
    (64,),
    (65,),
    (50_257,),
    (1, 1),
    (3, 5),
    (64, 64),
    (127, 131),  # primes
    (65, 7),
    (8191, 1),
    (5, 3, 7),
    (2, 3, 4, 5),
]


@pytest.mark.parametrize("c", [1, 2, 3, 33, 58, 64])
def test_the_basis_is_orthonormal(c: int) -> None:
    """METHODS C: D D^T = I to 1e-12."""
    torch.testing.assert_close(
        basis(c) @ basis(c).T, torch.eye(c, dtype=torch.float64), rtol=0, atol=1e-12
    )


def test_a_constant_tile_has_one_coefficient() -> None:
    """METHODS C: 64 a."""
    found = forward(torch.full((64 * 64,), 0.37), Tiles.of((64, 64), 64, 4))
    assert found[0].item() == pytest.approx(64 * 0.37, rel=1e-6)
    assert found[1:].abs().max() < 1e-5


def test_the_integer_basis_is_the_same_on_every_machine() -> None:
    """P1: no entry lies near a half, so cosines that differ in the last bits round alike."""
    for c in range(1, SIDE_MAX + 1):
        exact = basis(c) * 2**BASIS_BITS
        assert (exact - exact.floor() - 0.5).abs().min() > 2.0**-12
        assert torch.equal(integer_basis(c), exact.round())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("side", [64, 5])
def test_every_shape_comes_back(shape: tuple[int, ...], side: int) -> None:
    tiles = Tiles.of(shape, side, 1)
    drawn = torch.Generator().manual_seed(1)
    values = torch.randn(prod(shape), generator=drawn)
    found = forward(values, tiles)
    assert found.shape == (tiles.size,)
    assert found.square().sum().item() == pytest.approx(values.square().sum().item(), rel=1e-4)
    unit = found.abs().max() / COEFFICIENT_MAX
    back = inverse((found / unit).round().long(), tiles) * unit * 2.0 ** (-2 * BASIS_BITS)
    torch.testing.assert_close(back.float(), values, rtol=0, atol=2e-2)
    assert (back.float() - values).square().mean() < 1e-6


@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0)])
def test_nothing_has_no_coefficients(shape: tuple[int, ...]) -> None:
    tiles = Tiles.of(shape, 64, 4)
    assert tiles.size == tiles.count == 0


@pytest.mark.parametrize("c", [1, 58, 64])
def test_the_largest_sums_are_exact(c: int) -> None:
    """P1: all coefficients as large as can be, with the signs that make one element largest; in
    integers of any size, and in another order of sums.
    """
    tiles = Tiles.of((c, c), 64, 64 * 64)
    b = integer_basis(c)
    column = b.abs().sum(0).argmax()
    signs = torch.where(b[:, column] < 0, -1, 1)
    c_max = COEFFICIENT_MAX * signs[:, None] * signs[None, :]
    found = inverse(c_max.flatten(), tiles)
    rows = [[int(x) for x in row] for row in b.tolist()]
    values = [[int(x) for x in row] for row in c_max.tolist()]
    half = [
        [sum(v * r[m] for v, r in zip(value, rows, strict=True)) for m in range(c)]
        for value in values
    ]
    for i, m in product({0, int(column), c - 1}, range(c)):
        assert int(found.view(c, c)[i, m]) == sum(rows[j][i] * half[j][m] for j in range(c))
    assert found.abs().max() == found.view(c, c)[column, column]
    assert found.abs().max() < 2**52
    flipped = b.flip(0).T @ c_max.flip(0).flip(1).double() @ b.flip(0)
    assert torch.equal(flipped.flatten(), found)


@pytest.mark.parametrize(
    ("shape", "side", "tall", "wide", "count", "k"),
    [
        ((50_257, 64), 64, 64, 64, 786, 8),
        ((65, 64), 64, 33, 64, 2, 4),
        ((172, 64), 64, 58, 64, 3, 7),
        ((8191,), 64, 64, 1, 128, 1),
        ((7,), 64, 7, 1, 1, 1),
        ((), 64, 1, 1, 1, 1),
        ((6, 2, 10), 8, 6, 7, 3, 5),
    ],
)
def test_no_shape_is_sent_whole(
    shape: tuple[int, ...], side: int, tall: int, wide: int, count: int, k: int
) -> None:
    """METHODS C: sides that nothing divides do not fall back to sending everything."""
    tiles = Tiles.of(shape, side, 8)
    assert (tiles.tall, tiles.wide, tiles.count, tiles.k) == (tall, wide, count, k)
    assert tiles.size >= prod(shape)
    assert tiles.elements == prod(shape)
