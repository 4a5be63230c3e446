"""What the numbers mean, each from its definition."""

import struct

import numpy as np
import pytest
import torch
from torch import Tensor

from node.kernels import Kernels, philox_words
from node.kernels.philox import DIGEST, DIRECTIONS, NOISE

# The interpreter computes with NumPy, which warns of infinities and NaNs; here they are meant.
pytestmark = pytest.mark.filterwarnings(
    "ignore:(invalid value|overflow) encountered:RuntimeWarning"
)


def direction(key: int, element: int) -> int:
    word = int(philox_words(key, element // 128, 1, DIRECTIONS)[0, element // 32 % 4])
    return 1 if word >> element % 32 & 1 else -1


def noise(key: int, element: int) -> int:
    word = int(philox_words(key, element // 8, 1, NOISE)[0, element // 2 % 4])
    return word >> 16 * (element % 2) & 0xFFFF


def coefficient(key: int, position: int) -> int:
    words = philox_words(key, position // 2, 1, DIGEST)[0].tolist()
    low, high = words[:2] if position % 2 == 0 else words[2:]
    return int(low | high << 32)


def pattern(value: float) -> int:
    return int(struct.unpack("<I", struct.pack("<f", value))[0])


def bits16(tensor: Tensor) -> list[int]:
    return [n & 0xFFFF for n in tensor.cpu().view(torch.int16).tolist()]


def bits32(tensor: Tensor) -> list[int]:
    return [n & 0xFFFFFFFF for n in tensor.cpu().view(torch.int32).tolist()]


def test_perturb_adds_plus_or_minus_scale(kernels: Kernels, device: torch.device) -> None:
    offset, key = 2000, 2**63 + 5
    weights = torch.randn(300, generator=torch.Generator().manual_seed(0))
    out = torch.empty_like(weights, device=device)
    kernels.perturb(weights.to(device), offset, key, 0.1, out)
    signs = np.array([direction(key, offset + i) for i in range(300)], dtype=np.float32)
    assert set(signs.tolist()) == {1.0, -1.0}
    assert bits32(out) == bits32(torch.from_numpy(weights.numpy() + np.float32(0.1) * signs))


def test_perturb_of_bf16_rounds_as_torch_does(kernels: Kernels, device: torch.device) -> None:
    weights = torch.randn(300, generator=torch.Generator().manual_seed(0)).bfloat16()
    out = torch.empty_like(weights, device=device)
    kernels.perturb(weights.to(device), 11, 3, 0.001, out)
    signs = torch.tensor([direction(3, 11 + i) for i in range(300)])
    assert bits16(out) == bits16((weights.float() + signs * 0.001).bfloat16())


def test_perturb_of_bf16_rounds_ties_to_even(kernels: Kernels, device: torch.device) -> None:
    """Half of the distance between two bf16 numbers above 1, added to an even and an odd one."""
    weights = torch.tensor([1.0, 1 + 2**-7] * 64).bfloat16()
    out = torch.empty_like(weights, device=device)
    kernels.perturb(weights.to(device), 0, 3, 2.0**-8, out)
    for i, after in enumerate(out.tolist()):
        if i % 2 == 0:
            assert after == (1.0 if direction(3, i) == 1 else 1 - 2**-8)
        else:
            assert after == (1 + 2**-6 if direction(3, i) == 1 else 1.0)


def test_perturb_in_place(kernels: Kernels, device: torch.device) -> None:
    weights = torch.randn(300, device=device)
    out = torch.empty_like(weights)
    kernels.perturb(weights, 5, 6, 0.5, out)
    kernels.perturb(weights, 5, 6, 0.5, weights)
    assert torch.equal(weights, out)


def test_merge_is_one_multiply_and_subtract(kernels: Kernels, device: torch.device) -> None:
    offset, keys, values, step = 4090, [1, 2**64 - 1, 7], [127, -3, 64], 2.0**-9 * 129
    weights = torch.randn(40, generator=torch.Generator().manual_seed(1))
    merged = weights.to(device, copy=True)
    kernels.merge(merged, offset, keys, values, step, 0)
    for i, (before, after) in enumerate(zip(weights.tolist(), bits32(merged), strict=True)):
        total = sum(v * direction(k, offset + i) for k, v in zip(keys, values, strict=True))
        # 24 and 23 significant bits of like size: Python's 53 hold the exact difference.
        assert after == pattern(before - step * total)


def test_merge_of_bf16_adds_noise_and_truncates(kernels: Kernels, device: torch.device) -> None:
    offset, step, noise_key = 4093, 2.0**-12, 2**64 - 9
    weights = torch.randn(40, generator=torch.Generator().manual_seed(1)).bfloat16()
    merged = weights.to(device, copy=True)
    kernels.merge(merged, offset, [3], [99], step, noise_key)
    for i, (before, after) in enumerate(zip(weights.tolist(), bits16(merged), strict=True)):
        exact = before - step * 99 * direction(3, offset + i)
        assert after == (pattern(exact) + noise(noise_key, offset + i)) >> 16


def test_stochastic_rounding_has_no_bias(kernels: Kernels, device: torch.device) -> None:
    """A step of 1/16 of the distance between two bf16 numbers: one element in 16 moves."""
    weights = torch.ones(20_000, dtype=torch.bfloat16, device=device)
    kernels.merge(weights, 0, [1], [1], 2.0**-11, 2)  # bf16 above 1: spacing 2^-7; below: 2^-8
    signs = np.unpackbits(philox_words(1, 0, 157, 0).view(np.uint8), bitorder="little")[:20_000]
    down, up = torch.from_numpy(signs == 1), torch.from_numpy(signs == 0)
    moved = weights.float().cpu() - 1
    assert set(moved[down].tolist()) == {0.0, -(2.0**-8)}
    assert set(moved[up].tolist()) == {0.0, 2.0**-7}
    assert (moved[down] != 0).float().mean().item() == pytest.approx(1 / 8, abs=0.014)  # 4 sigma
    assert (moved[up] != 0).float().mean().item() == pytest.approx(1 / 16, abs=0.01)


ODD = [float("inf"), float("-inf"), float("nan"), 3.4e38, -3.4e38, 1e-45, -0.0]


def test_odd_values_in_fp32(kernels: Kernels, device: torch.device) -> None:
    """Infinities stay, NaNs become the one pattern, a payload is not kept, subnormals count."""
    weights = torch.tensor(ODD)
    weights.view(torch.int32)[2] = -1  # a negative NaN with a payload
    out = torch.empty_like(weights, device=device)
    kernels.perturb(weights.to(device), 0, 4, 0.0, out)
    zeros = [pattern(direction(4, i) * 0.0 + ODD[i]) for i in range(7)]
    assert bits32(out) == [*zeros[:2], 0x7FC00000, *zeros[3:]]
    merged = weights.to(device, copy=True)
    kernels.merge(merged, 0, [1], [0], 1.0, 0)
    assert bits32(merged) == [*bits32(weights)[:2], 0x7FC00000, *bits32(weights)[3:]]


def test_odd_values_in_bf16(kernels: Kernels, device: torch.device) -> None:
    """What is past the largest finite bf16 may be rounded to infinity, never past it to a NaN."""
    weights = torch.tensor([0x7F80, -0x80, -1, 0x7F81, 0x7F7F, 1], dtype=torch.int16)
    weights = weights.view(torch.bfloat16)
    out = torch.empty_like(weights, device=device)
    kernels.perturb(weights.to(device), 0, 4, 1e38, out)
    assert bits16(out)[:4] == [0x7F80, 0xFF80, 0x7FC0, 0x7FC0]
    kernels.perturb(weights.to(device), 0, 4, -1e38 * direction(4, 4), out)
    assert bits16(out)[4] == 0x7F80 - 0x80 + bits16(out)[4] % 0x80  # one binade down, finite
    kernels.perturb(weights.to(device), 0, 4, 1e38 * direction(4, 4), out)
    assert bits16(out)[4] == 0x7F80
    merged = weights.to(device, copy=True)
    kernels.merge(merged, 0, [1], [0], 1.0, 0)
    assert bits16(merged) == [0x7F80, 0xFF80, 0x7FC0, 0x7FC0, 0x7F7F, 1]


def test_merge_of_nothing_changes_nothing(kernels: Kernels, device: torch.device) -> None:
    weights = torch.tensor(ODD, device=device)
    before = bits32(weights)
    kernels.merge(weights, 0, [], [], 1.0, 0)
    kernels.merge(weights[:0], 0, [1], [1], 1.0, 0)
    assert bits32(weights) == before


def test_merge_of_a_parameter(kernels: Kernels, device: torch.device) -> None:
    """Weights that require gradients, and any shape, are taken as they are."""
    weights = torch.nn.Parameter(torch.zeros(3, 5, device=device))
    kernels.merge(weights, 0, [1], [1], 1.0, 0)
    assert weights.flatten().tolist() == [-direction(1, i) for i in range(15)]


def test_accumulate_counts(kernels: Kernels, device: torch.device) -> None:
    total = torch.full((130,), 10, dtype=torch.int64, device=device)
    kernels.accumulate(total, 60, [1, 2], [2**60, -3])
    expected = [10 + 2**60 * direction(1, 60 + i) - 3 * direction(2, 60 + i) for i in range(130)]
    assert total.tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.bfloat16, torch.int64])
def test_digest_is_the_sum_of_products(
    kernels: Kernels, device: torch.device, dtype: torch.dtype
) -> None:
    key, offset = 2**64 - 3, 33
    patterns = torch.randint(-(2**63), 2**63 - 1, (10,), generator=torch.Generator().manual_seed(3))
    tensor = patterns.view(dtype)
    size = min(dtype.itemsize, 4)
    raw = tensor.view(torch.uint8).numpy().tobytes()
    words = [int.from_bytes(raw[i : i + size], "little") for i in range(0, len(raw), size)]
    first = offset * dtype.itemsize // size
    expected = sum(coefficient(key, first + j) * word for j, word in enumerate(words)) % 2**64
    assert kernels.digest(tensor.to(device), offset, key) == expected


def test_digest_sees_every_bit_and_place(kernels: Kernels, device: torch.device) -> None:
    tensor = torch.arange(40, dtype=torch.int32, device=device)
    digests = {
        kernels.digest(tensor, 0, 1),
        kernels.digest(tensor, 1, 1),
        kernels.digest(tensor, 0, 2),
    }
    for bit in (0, 1, 17, 31):
        changed = tensor.clone()
        changed[23] ^= -(2**31) if bit == 31 else 2**bit
        digests.add(kernels.digest(changed, 0, 1))
    swapped = tensor.clone()
    swapped[[3, 4]] = swapped[[4, 3]]
    digests.add(kernels.digest(swapped, 0, 1))
    assert len(digests) == 8


def test_golden_numbers(kernels: Kernels, device: torch.device) -> None:
    """Fixed answers for a second implementation: 1,000 weights -2.5, -2.495, ... at place 100."""
    weights = (torch.arange(1000) - 500).float().to(device) / 200
    half = weights.bfloat16()
    for tensor in (weights, half):
        kernels.merge(tensor, 100, [1, 2**63 + 2, 3], [127, -50, 1], 0.01171875, 4)
    assert kernels.digest(weights, 100, 5) == 1956411662828331294
    assert kernels.digest(half, 100, 5) == 2831466519538575291
