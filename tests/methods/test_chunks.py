"""Every shape is cut, and sent as sparsely as any other."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.methods.parts import chunks
from node.methods.parts.chunks import Layout, TensorChunks
from tests.methods import sparse_twin as twin

tensors = st.builds(
    lambda size, chunk, share: TensorChunks(size, chunk, max(1, chunk * share // 100)),
    st.integers(0, 3000),
    st.integers(1, 300),
    st.integers(0, 100),
)


@pytest.mark.parametrize(
    ("size", "count", "last", "kept"),
    [
        (0, 0, 0, 0),
        (1, 1, 1, 1),
        (31, 1, 31, 1),
        (96, 1, 96, 2),  # 1.5, halves up
        (576, 1, 576, 9),
        (4095, 1, 4095, 64),
        (4096, 1, 4096, 64),
        (4097, 2, 1, 65),
        (8191, 2, 4095, 128),  # a prime
        (50257, 13, 1105, 12 * 64 + 17),
        (49152 * 576, 6912, 4096, 6912 * 64),
    ],
)
def test_sizes_of_models(size: int, count: int, last: int, kept: int) -> None:
    tensor = Layout.of([size]).tensors[0]
    assert (tensor.count, tensor.last, tensor.kept) == (count, last, kept)


@settings(derandomize=True)
@given(tensors)
def test_each_chunk_keeps_its_share(tensor: TensorChunks) -> None:
    lengths = twin.chunk_lengths(tensor)
    assert tensor.count == len(lengths)
    assert tensor.kept == sum(kept for _, kept in lengths)
    assert all(1 <= kept <= length for length, kept in lengths)
    assert all(kept == tensor.k for _, kept in lengths[:-1])
    assert abs(tensor.kept * tensor.chunk - tensor.k * tensor.size) <= tensor.chunk


@settings(derandomize=True)
@given(tensors, st.integers(1, 700))
def test_spans_are_whole_chunks_and_cover_everything_once(
    tensor: TensorChunks, elements: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "SPAN_ELEMENTS", elements)
        spans = list(tensor.spans())
    start = first = 0
    for span in spans:
        assert (span.start, span.first) == (start, first)
        assert span.start % tensor.chunk == 0
        assert span.size > 0
        assert span.kept > 0
        start, first = start + span.size, first + span.kept
    assert (start, first) == (tensor.size, tensor.kept)


def test_a_layout_adds_up() -> None:
    layout = Layout.of([10, 0, 25], chunk=10, k=3)
    assert (layout.size, layout.count, layout.kept) == (35, 4, 3 + 3 + 3 + 2)
    assert layout.offsets == (0, 10, 10)
    assert [len(spans) for spans in layout.spans] == [1, 0, 1]
    assert [layout.symbol_bytes(tensor) for tensor in range(3)] == [1, 0, 2]


@pytest.mark.parametrize(
    ("sizes", "chunk", "k", "bits"),
    [
        ([5], 0, 1, 2),
        ([5], 2**16 + 1, 1, 2),
        ([5], 10, 0, 2),
        ([5], 10, 11, 2),
        ([5], 10, 1, 3),
        ([-1], 10, 1, 2),
    ],
)
def test_settings_that_make_no_payload_are_refused(
    sizes: list[int], chunk: int, k: int, bits: int
) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        Layout.of(sizes, chunk, k, bits)
