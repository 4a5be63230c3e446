"""Every back end gives the same bits as the reference, wherever the work is cut."""

from dataclasses import dataclass
from random import Random

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from node.kernels import Kernels

# The interpreter computes with NumPy, which warns of infinities and NaNs; here they are meant.
pytestmark = pytest.mark.filterwarnings(
    "ignore:(invalid value|overflow) encountered:RuntimeWarning"
)

CHECKS = settings(
    derandomize=True,
    deadline=None,
    max_examples=12,  # the interpreted Triton kernels take most of the time
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

U64 = st.integers(0, 2**64 - 1)
# Near the edges of blocks (128), tiles (2048) and the counter's first word (2^32 blocks).
OFFSETS = st.one_of(
    st.integers(0, 5000),
    st.sampled_from([2**32 - 1, 2**39 - 700, 2**45 + 77]),
)
SIZES = st.one_of(st.integers(1, 400), st.sampled_from([2047, 2048, 2049, 4500]))
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])
STEPS = st.builds(lambda m, e: m * 2.0**e, st.integers(-255, 255), st.integers(-40, 4))


@dataclass(frozen=True)
class Terms:
    keys: list[int]
    values: list[int]


def terms(bound: int, count_max: int = 9) -> st.SearchStrategy[Terms]:
    pairs = st.lists(st.tuples(U64, st.integers(-bound, bound)), min_size=1, max_size=count_max)
    return pairs.map(lambda p: Terms([key for key, _ in p], [value for _, value in p]))


def weights_of(size: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Ordinary numbers and random bit patterns: all magnitudes, infinities and NaNs."""
    generator = torch.Generator().manual_seed(seed)
    word = torch.int32 if dtype == torch.float32 else torch.int16
    info = torch.iinfo(word)
    patterns = torch.randint(info.min, info.max, (size,), generator=generator).to(word)
    ordinary = torch.randn(size, generator=generator).to(dtype)
    odd = torch.arange(size) % 3 == 1
    return torch.where(odd, patterns.view(dtype), ordinary)


def same_bits(a: Tensor, b: Tensor) -> bool:
    word = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.cpu().view(word), b.cpu().view(word))


@CHECKS
@given(size=SIZES, offset=OFFSETS, dtype=DTYPES, key=U64, scale=st.floats(-8, 8), seed=U64)
def test_perturb(
    fast: Kernels,
    reference: Kernels,
    device: torch.device,
    size: int,
    offset: int,
    dtype: torch.dtype,
    key: int,
    scale: float,
    seed: int,
) -> None:
    weights = weights_of(size, dtype, seed)
    expected, out = torch.empty_like(weights), torch.empty_like(weights, device=device)
    reference.perturb(weights, offset, key, scale, expected)
    fast.perturb(weights.to(device), offset, key, scale, out)
    assert same_bits(out, expected)


@CHECKS
@given(
    size=SIZES,
    offset=OFFSETS,
    dtype=DTYPES,
    given_terms=terms(127),
    step=STEPS,
    noise_key=U64,
    seed=U64,
    shuffle=st.randoms(use_true_random=False),
)
def test_merge_in_any_order(
    fast: Kernels,
    reference: Kernels,
    device: torch.device,
    size: int,
    offset: int,
    dtype: torch.dtype,
    given_terms: Terms,
    step: float,
    noise_key: int,
    seed: int,
    shuffle: Random,
) -> None:
    expected = weights_of(size, dtype, seed)
    merged = expected.to(device, copy=True)
    reference.merge(expected, offset, given_terms.keys, given_terms.values, step, noise_key)
    pairs = list(zip(given_terms.keys, given_terms.values, strict=True))
    shuffle.shuffle(pairs)
    fast.merge(merged, offset, [k for k, _ in pairs], [v for _, v in pairs], step, noise_key)
    assert same_bits(merged, expected)


@pytest.mark.parametrize(("sign", "dtype"), [(1, torch.float32), (-1, torch.bfloat16)])
def test_merge_of_the_most_and_largest_contributions(
    fast: Kernels, reference: Kernels, device: torch.device, sign: int, dtype: torch.dtype
) -> None:
    """One key 256 times, so that A reaches +-32,512: the most that 16 bits have to hold."""
    expected = weights_of(300, dtype, 1)
    merged = expected.to(device, copy=True)
    reference.merge(expected, 77, [5] * 256, [127 * sign] * 256, 0.5, 9)
    fast.merge(merged, 77, [5] * 256, [127 * sign] * 256, 0.5, 9)
    assert same_bits(merged, expected)


@CHECKS
@given(
    size=SIZES,
    offset=OFFSETS,
    given_terms=st.one_of(terms(127), terms(2**40), terms((2**62 - 1) // 9)),
    seed=U64,
)
def test_accumulate(
    fast: Kernels,
    reference: Kernels,
    device: torch.device,
    size: int,
    offset: int,
    given_terms: Terms,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    expected = torch.randint(-(2**61), 2**61, (size,), generator=generator)
    total = expected.to(device, copy=True)
    reference.accumulate(expected, offset, given_terms.keys, given_terms.values)
    fast.accumulate(total, offset, given_terms.keys, given_terms.values)
    assert same_bits(total, expected)


def test_accumulate_takes_more_keys_than_one_pass(
    fast: Kernels, reference: Kernels, device: torch.device
) -> None:
    keys, values = list(range(300)), [(-1) ** i * i * 1000 for i in range(300)]
    expected = torch.zeros(200, dtype=torch.int64)
    total = expected.to(device, copy=True)
    reference.accumulate(expected, 100, keys, values)
    fast.accumulate(total, 100, keys, values)
    assert same_bits(total, expected)


@CHECKS
@given(
    size=SIZES,
    offset=OFFSETS,
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.int32, torch.int64]),
    key=U64,
    seed=U64,
)
def test_digest(
    fast: Kernels,
    reference: Kernels,
    device: torch.device,
    size: int,
    offset: int,
    dtype: torch.dtype,
    key: int,
    seed: int,
) -> None:
    source = torch.float32 if dtype == torch.int32 else dtype
    source = torch.bfloat16 if dtype == torch.int64 else source
    tensor = weights_of(size * dtype.itemsize // source.itemsize, source, seed).view(dtype)
    assert fast.digest(tensor.to(device), offset, key) == reference.digest(tensor, offset, key)


@pytest.mark.parametrize("cut", [1, 100, 128, 2048, 4999])
def test_a_vector_may_be_cut_anywhere(kernels: Kernels, device: torch.device, cut: int) -> None:
    offset, keys, values = 1000, [3, 4], [5, -127]
    for dtype in (torch.float32, torch.bfloat16):
        whole = weights_of(5000, dtype, 2).to(device)
        parts = whole.clone()
        kernels.merge(whole, offset, keys, values, 0.25, 6)
        kernels.merge(parts[:cut], offset, keys, values, 0.25, 6)
        kernels.merge(parts[cut:], offset + cut, keys, values, 0.25, 6)
        assert same_bits(whole, parts)
        digests = (
            kernels.digest(parts[:cut], offset, 8),
            kernels.digest(parts[cut:], offset + cut, 8),
        )
        assert kernels.digest(whole, offset, 8) == sum(digests) % 2**64
