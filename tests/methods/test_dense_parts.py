"""Dense updates that are cut, coded and summed part by part."""

import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from node.compare import exchange
from node.compare.exchange import Seat
from node.compare.timing import Clock
from node.methods.base import Contribution, RoundContext
from node.methods.diloco import Diloco
from node.methods.diloco_config import DilocoConfig
from node.methods.parts.dense_codec import decode, encode
from node.methods.parts.dense_layout import CUT_BYTES, Bits, DenseLayout
from node.methods.parts.dense_parts import decode_parts, runs, weighted_sum
from node.methods.parts.header import decode_header
from protocol.codec import CHUNK_BYTES, PARTS_MAX
from tests.methods.conftest import MakeRound, MakeSetup
from tests.methods.inner_outer import theta, waiting
from tests.methods.making import peer

CPU = torch.device("cpu")
LAYOUTS = st.builds(
    DenseLayout,
    st.lists(st.integers(0, 9_000), min_size=1, max_size=5).map(tuple),
    st.sampled_from([32, 16, 8, 4]),
)


@settings(deadline=None)
@given(LAYOUTS, st.integers(1, 12))
def test_parts_are_the_whole_once(layout: DenseLayout, count: int) -> None:
    found = runs(layout, count)
    size = sum(layout.sizes)
    places = [at for run in found for at in range(*run.elements.indices(size))]
    assert places == list(range(size))
    lengths = [run.elements.stop - run.elements.start for run in found]
    assert max(lengths) - min(lengths) <= 2 * 4096
    values = torch.linspace(-1, 1, size)
    parts = [run.encode(values[run.elements]) for run in found]
    assert all(parts)
    assert sum(map(len, parts)) <= layout.bytes + CUT_BYTES * count
    pieces = [piece for one in decode_parts(layout, b"".join(parts)) for piece in one.values(CPU)]
    back = torch.cat([values[:0], *pieces])
    torch.testing.assert_close(back, values, rtol=0, atol=0.5 if layout.bits == 4 else 0.01)
    if layout.bits == 32:
        assert torch.equal(back, values.masked_fill(values.abs() < 2.0**-60, 0.0))


def test_an_update_that_was_not_cut_is_read_as_before() -> None:
    layout, values = DenseLayout((5000, 3), 8), torch.linspace(-1, 1, 5003)
    data = encode(layout, torch.split(values, [5000, 3]))
    (one,) = decode_parts(layout, data)
    assert torch.equal(
        torch.cat(list(one.values(CPU))), torch.cat(list(decode(layout, data).values(CPU)))
    )


@pytest.mark.parametrize("how", ["short", "long", "count", "none", "empty"])
def test_other_bytes_are_refused(how: str) -> None:
    layout = DenseLayout((9000,), 8)
    found = runs(layout, 2)
    parts = [run.encode(torch.ones(run.elements.stop - run.elements.start)) for run in found]
    whole = b"".join(parts)
    bad = {
        "short": whole[:-1],
        "long": whole + b"\0",
        "count": b"\0" + struct.pack(">H", 3) + whole[3:],
        "none": b"\0\0\0" + whole[3:],
        "empty": b"",
    }[how]
    with pytest.raises(ValueError, match=r"."):
        decode_parts(layout, bad)
    with pytest.raises(ValueError, match=r"."):
        found[0].decode(bad)
    with pytest.raises(ValueError, match="of 2 begins otherwise"):
        found[0].decode(b"\1" + parts[0][1:])


@pytest.mark.parametrize("bits", [32, 16, 8, 4])
def test_a_sum_is_the_weighted_mean(bits: Bits) -> None:
    """And what its own coding takes away is all that is missing."""
    (run,) = runs(DenseLayout((6000, 77), bits), 1)
    made = [torch.randn(6077, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    parts = [run.encode(values) for values in made]
    data, rounded = weighted_sum(run, parts, [1, 5, 2], CPU)
    read = [torch.cat(list(run.decode(part).values(CPU))).double() for part in parts]
    wanted = (read[0] + 5 * read[1] + 2 * read[2]) / 8
    mean = torch.cat(list(run.decode(data).values(CPU)))
    torch.testing.assert_close((mean + rounded).double(), wanted, rtol=0, atol=1e-6)
    assert bool(rounded.any()) == (bits < 32)
    assert weighted_sum(run, parts, [1, 5, 2], CPU)[0] == data


def test_what_cannot_be_read_counts_for_nothing() -> None:
    """P1: for nobody, so the others' mean is the same everywhere."""
    (run,) = runs(DenseLayout((500,), 32), 1)
    good = [run.encode(torch.full((500,), float(n))) for n in (1, 3)]
    bad = bytearray(good[0])
    bad[-4:] = np.float32(np.nan).tobytes()
    data, _ = weighted_sum(run, [good[0], bytes(bad), b"", good[1]], [1, 7, 7, 3], CPU)
    assert torch.equal(next(run.decode(data).values(CPU)), torch.full((500,), 2.5))
    nothing, _ = weighted_sum(run, [bytes(bad)], [1], CPU)
    assert not next(run.decode(nothing).values(CPU)).any()
    late, _ = weighted_sum(run, good, [0, 2], CPU)
    assert torch.equal(next(run.decode(late).values(CPU)), torch.full((500,), 3.0))


# DiLoCo


def configured(**changes: object) -> DilocoConfig:
    inner = {"steps": 2, "optimizer": {"name": "sgd", "lr": 0.05}}
    return DilocoConfig.model_validate({"name": "diloco", "inner": inner, **changes})


def by_parts(
    methods: list[Diloco], contexts: list[RoundContext], parts: int, tokens: list[int] | None = None
) -> list[Contribution]:
    """One round as a swarm closes it: all work, one each adds up, all merge. Its lines."""
    made = [m.work(replace(c, parts=parts)) for m, c in zip(methods, contexts, strict=True)]
    payloads = [done.payload for done in made]
    if tokens is not None:
        headers = [decode_header(payload, methods[0].config.inner)[0] for payload in payloads]
        payloads = [
            replace(header, tokens=count, steps=header.steps if count else 0).encode()
            for header, count in zip(headers, tokens, strict=True)
        ]
    sums = []
    for number in range(parts):
        context = replace(contexts[number], parts=parts, answers_for=number)
        lines = [
            Contribution(c.peer, payload, done.parts[number])
            for c, payload, done in zip(contexts, payloads, made, strict=True)
        ]
        sums.append(methods[number].add_up(context, number, lines))
        other = methods[number - 1].add_up(
            replace(contexts[number - 1], parts=parts), number, lines
        )
        assert sums[-1] == other, "P1: whoever adds it up"
    for method, context in zip(methods, contexts, strict=True):
        one = replace(context, parts=parts)
        lines = [
            Contribution(c.peer, payload, b"".join(done.parts) if c.peer == one.peer else b"")
            for c, payload, done in zip(contexts, payloads, made, strict=True)
        ]
        for number, data in enumerate(sums):
            method.check_sum(one, number, data)
        method.merge_sums(one, lines, sums)
    return [
        Contribution(c.peer, p, b"".join(d.parts))
        for c, p, d in zip(contexts, payloads, made, strict=True)
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"fragments": 2},
        {"momentum": "0"},
        {"overlap": True},
        {"overlap": True, "gap_penalty": "2", "momentum_clip": "0.0002"},
    ],
)
def test_by_parts_is_as_in_one_piece(
    make_setup: MakeSetup, make_round: MakeRound, changes: dict[str, object]
) -> None:
    """Where nothing is rounded away, to the rounding of one sum; and all hold the same bits."""
    one, other = ([Diloco(configured(**changes), make_setup()) for _ in range(3)] for _ in range(2))
    for number in range(4):
        contexts = [make_round(number, i) for i in range(3)]
        by_parts(one, contexts, 3)
        made = []
        for method, context in zip(other, contexts, strict=True):
            done = method.work(context)
            made.append(Contribution(context.peer, done.payload, done.attachment))
        for method, context in zip(other, contexts, strict=True):
            method.merge(context, made)
        assert len({method.state_digest(1) for method in one}) == 1
        torch.testing.assert_close(theta(one[0]), theta(other[0]), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(waiting(one[1]), waiting(other[1]), rtol=0, atol=1e-6)


def tally(method: Diloco, computed: Tensor) -> None:
    """computed += a third of what each round's steps come to."""
    original = method._add_work

    def note(round: int, total: Tensor) -> None:
        before = total.clone()
        original(round, total)
        computed.add_((total - before).double() / 3)

    method._add_work = note  # type: ignore[method-assign]


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_nothing_is_lost_in_sums(make_setup: MakeSetup, make_round: MakeRound, bits: Bits) -> None:
    """P3: what all computed is what the weights moved by, and what still waits."""
    config = configured(value_bits=bits, learning_rate={"peak": "1"}, momentum="0")
    methods = [Diloco(config, make_setup()) for _ in range(3)]
    start, computed = theta(methods[0]).double(), torch.zeros(methods[0]._size).double()
    for method in methods:
        tally(method, computed)
    for number in range(6):
        by_parts(methods, [make_round(number, i) for i in range(3)], 3)
    still = torch.stack([waiting(method).double() for method in methods]).mean(0)
    moved = start - theta(methods[0]).double()
    torch.testing.assert_close(moved + still, computed, rtol=0, atol=2e-6)
    assert still.abs().max() > 1e-6


def test_a_sum_that_another_added_up_leaves_nothing_here(
    make_setup: MakeSetup, make_round: MakeRound
) -> None:
    """What it took away would come back twice."""
    config = configured(value_bits=4)
    me = Diloco(config, make_setup())
    context = replace(make_round(0, 0, 2), parts=1)
    done = me.work(context)
    lines = [Contribution(peer(n), done.payload, done.parts[0]) for n in range(2)]
    before = waiting(me)
    mine = me.add_up(replace(context, answers_for=0), 0, lines)
    mute = [Contribution(one.peer, one.payload, b"") for one in lines]
    other = runs(config.layout(me._weights.sizes), 1)[0].encode(torch.zeros(me._size))
    me.merge_sums(context, mute, [other])
    assert torch.equal(waiting(me), before)
    assert not me._rounded
    assert mine != other


def test_a_round_of_no_tokens_moves_nothing(make_setup: MakeSetup, make_round: MakeRound) -> None:
    methods = [Diloco(configured(), make_setup()) for _ in range(2)]
    contexts = [make_round(0, i, 2) for i in range(2)]
    before = methods[0].state_digest(1)
    waited = [waiting(method) for method in methods]
    made = by_parts(methods, contexts, 2, tokens=[0, 0])
    assert made
    assert torch.equal(theta(methods[0]), theta(Diloco(configured(), make_setup())))
    assert methods[0].state_digest(1) != before, "the queue went on"
    assert not torch.equal(waiting(methods[0]), waited[0]), "its work waits"
    by_parts(methods, [make_round(1, i, 2) for i in range(2)], 2)
    moved = theta(methods[0])
    by_parts(methods, [make_round(2, i, 2) for i in range(2)], 2, tokens=[0, 0])
    assert torch.equal(theta(methods[0]), moved), "nor does momentum by itself"


def test_what_is_no_sum_is_refused(make_setup: MakeSetup, make_round: MakeRound) -> None:
    """P6."""
    method = Diloco(configured(), make_setup())
    context = replace(make_round(0, 0, 2), parts=2)
    done = method.work(context)
    lines = [Contribution(context.peer, done.payload, done.parts[0])]
    method.check_sum(context, 0, method.add_up(context, 0, lines))
    for bad in (done.parts[0][:-1], b"\1" + done.parts[0][1:], b""):
        with pytest.raises(ValueError, match=r"."):
            method.check_sum(context, 0, bad)


def test_a_comparison_sums_as_a_swarm_does(make_setup: MakeSetup, make_round: MakeRound) -> None:
    """P3, P7: what rounding takes away waits where it would; and all bytes are counted."""
    one, other = ([Diloco(configured(value_bits=4), make_setup()) for _ in "ab"] for _ in "ab")
    contexts = [replace(make_round(0, i, 2), parts=2) for i in range(2)]
    made = by_parts(one, contexts, 2)
    seats = [Seat(m, c, m.work(c)) for m, c in zip(other, contexts, strict=True)]
    traffic = exchange.by_parts(seats, Clock(CPU))
    for a, b in zip(one, other, strict=True):
        assert torch.equal(waiting(a), waiting(b))
    sums = sum(run.length for run in one[0]._runs(contexts[0]))
    crossed = [len(seats[0].work.parts[1]), len(seats[1].work.parts[0])]
    payloads = [len(line.payload) for line in made]
    assert traffic.sent == traffic.received == (sum(crossed) + sum(payloads) + sums) / 2


def test_small_ones_go_whole() -> None:
    """Another hop would cost more than it spares."""
    assert configured(value_bits=8).parts_max([(CHUNK_BYTES - 200,)]) == 0
    assert configured(value_bits=8).parts_max([(CHUNK_BYTES, 3)]) == 4
    assert configured(value_bits=8, reduce_scatter=False).parts_max([(CHUNK_BYTES, 3)]) == 0
    assert configured().parts_max([(1 << 30,)]) == PARTS_MAX
