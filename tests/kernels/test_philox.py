"""The generator against its authors' vectors and against a twin in plain integers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.kernels.philox import philox_words, scramble

MASK = 2**32 - 1

# Random123, tests/kat_vectors, "philox4x32 10": counter, key, answer.
KNOWN_ANSWERS = [
    (
        (0x00000000, 0x00000000, 0x00000000, 0x00000000),
        (0x00000000, 0x00000000),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def philox_plain(counter: tuple[int, ...], key: int) -> tuple[int, ...]:
    """Philox4x32-10 as the paper writes it, in Python's integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key & MASK, key >> 32
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & MASK, (p0 >> 32) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c0, c1, c2, c3


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_known_answers(
    counter: tuple[int, ...], key: tuple[int, int], answer: tuple[int, ...]
) -> None:
    packed = key[0] | key[1] << 32
    words = scramble(np.array(counter, dtype=np.uint64)[:, None], packed)
    assert tuple(words[:, 0].tolist()) == answer
    assert philox_plain(counter, packed) == answer


@settings(derandomize=True, deadline=None, max_examples=50)
@given(
    key=st.integers(0, 2**64 - 1),
    first=st.integers(0, 2**64 - 8),
    blocks=st.integers(0, 8),
    stream=st.integers(0, 2),
)
def test_words_are_those_of_the_plain_twin(key: int, first: int, blocks: int, stream: int) -> None:
    words = philox_words(key, first, blocks, stream)
    assert words.shape == (blocks, 4)
    for i, row in enumerate(words.tolist()):
        block = first + i
        assert tuple(row) == philox_plain((block & MASK, block >> 32, stream, 0), key)


def test_long_runs_do_not_depend_on_where_they_are_cut() -> None:
    whole = philox_words(7, 2**32 - 9000, 20_000, 0)
    parts = [philox_words(7, 2**32 - 9000, 1, 0), philox_words(7, 2**32 - 8999, 19_999, 0)]
    assert np.array_equal(whole, np.concatenate(parts))


@pytest.mark.parametrize(
    ("key", "first", "blocks", "stream"),
    [
        (-1, 0, 1, 0),
        (2**64, 0, 1, 0),
        (0, -1, 1, 0),
        (0, 2**64, 1, 0),
        (0, 0, -1, 0),
        (0, 0, 1, -1),
    ],
)
def test_numbers_that_do_not_fit_are_refused(
    key: int, first: int, blocks: int, stream: int
) -> None:
    with pytest.raises(ValueError, match="fit"):
        philox_words(key, first, blocks, stream)
