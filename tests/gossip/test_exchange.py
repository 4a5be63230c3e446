"""Exchanges of real peers: what one gains the other loses, stretch by stretch, whatever the
code."""

from itertools import count, pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from node.errors import ConfigError
from node.gossip.coding import Coder
from node.gossip.exchange import Exchange
from node.gossip.pairings import Meeting
from node.gossip.party import Party
from node.kernels import kernels_for
from node.methods.noloco import MOMENTUM, SLOW
from node.methods.parts.mixing import MODEL, toward_mean
from node.methods.parts.setup import Setup
from node.methods.parts.stretches import cut
from node.methods.push_sum import MASS, WEIGHT
from node.training.losses import batch_loss
from node.training.model_config import GptConfig
from node.training.models import build_model
from tests.gossip.swarm import config, meet, model, parties
from tests.methods.making import RUN, peer, tiny_setup

BITS = [32, 16, 8]
STRETCH = 4096  # the least: the model of these tests has one and a half


def wide(method: str, **settings: Any) -> list[Party]:  # noqa: ANN401 - as a run file may hold them
    """Two peers whose models take several stretches."""
    found = []
    for seed in range(2):
        shape = GptConfig(kind="gpt", layers=1, width=32, heads=1, context=8, seed=seed)
        built = build_model(shape)
        kernels = kernels_for(torch.device("cpu"))
        setup = Setup(built.module, tiny_setup().data, batch_loss, kernels, RUN)
        found.append(Party(config(method, stretch=STRETCH, **settings), setup))
    return found


def total(swarm: list[Party], name: str = MODEL) -> Tensor:
    return torch.stack([party.state[name].double() for party in swarm]).sum(0)


def rounding(swarm: list[Party], name: str = MODEL) -> float:
    """Two roundings of the largest element."""
    return 2 * 2**-24 * float(max(party.state[name].abs().max() for party in swarm))


# Arithmetic


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=2))
def test_of_two_one_gains_what_the_other_loses_to_the_bit(pair: list[float]) -> None:
    a, b = (torch.tensor([value]) for value in pair)
    assert torch.equal(toward_mean(a, [b]), -toward_mean(b, [a]))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("seats", [[0, 1], [2, 0, 1], [3, 1, 0, 2]])
def test_an_exchange_keeps_the_sum_with_every_code(bits: int, seats: list[int]) -> None:
    swarm = parties(config("d-psgd", value_bits=bits, pairing="groups", group=4), 4)
    before, apart = total(swarm), [model(party) for party in swarm]
    meet(swarm, seats)
    assert float((total(swarm) - before).abs().max()) <= len(seats) * rounding(swarm)
    assert all(not torch.equal(model(swarm[seat]), apart[seat]) for seat in seats)
    # Those who met are close: as far apart as the code is coarse.
    models = torch.stack([model(swarm[seat]) for seat in seats])
    limit = {32: 1e-6, 16: 2**-8, 8: 2**-6}[bits] * float(models.abs().max())
    assert float((models - models.mean(0)).abs().max()) < limit


@pytest.mark.parametrize("bits", BITS)
def test_a_move_may_come_later_than_it_was_made(bits: int) -> None:
    """Steps that one side takes between offer and commit stay with it, and the sum is theirs."""
    swarm = parties(config("d-psgd", value_bits=bits), 2)
    before = total(swarm)
    step = 0.01 * torch.ones_like(model(swarm[0]))
    meet(swarm, [0, 1], between=lambda: swarm[1].state[MODEL].add_(step))
    assert torch.allclose(total(swarm), before + step, atol=4 * rounding(swarm), rtol=0)


@pytest.mark.parametrize("stop", [0, 1, 2, 5])
def test_what_breaks_off_counts_stretch_by_stretch_on_both_sides_or_neither(stop: int) -> None:
    swarm = wide("d-psgd", value_bits=8)
    assert len(swarm[0].stretches) > 5
    before, each = total(swarm), [model(party) for party in swarm]
    sides = meet(swarm, [0, 1], stops=lambda number: number == stop)
    assert [side.committed for side in sides] == [set(range(stop))] * 2
    assert float((total(swarm) - before).abs().max()) <= 2 * rounding(swarm)
    border = swarm[0].stretches[stop].start
    for party, was in zip(swarm, each, strict=True):
        assert torch.equal(model(party)[border:], was[border:])
        assert not border or not torch.equal(model(party)[:border], was[:border])


def test_stretches_may_go_in_any_order_and_twice() -> None:
    swarm, twin = wide("d-psgd", value_bits=8), wide("d-psgd", value_bits=8)
    meet(twin, [0, 1])
    meeting = Meeting((peer(0), peer(1)))
    one, other = (Exchange(swarm[seat], peer(seat), meeting) for seat in (0, 1))
    for number in reversed(range(one.count)):
        mine, theirs = one.offer(number), other.offer(number)
        assert one.offer(number) == mine  # asked again
        for _ in range(2):
            one.receive(number, peer(1), theirs)
            other.receive(number, peer(0), mine)
        one.commit(number)
        one.receive(number, peer(1), theirs)  # it came late, once more
        other.commit(number)
    assert one.close()
    assert other.close()
    assert torch.equal(model(swarm[0]), model(twin[0]))
    assert one.sent_bytes == swarm[0].coder.bytes_in_all


def test_an_exchange_holds_the_open_stretches_only() -> None:
    swarm = wide("noloco")
    sides = meet(swarm, [0, 1])
    assert [side._open for side in sides] == [{}, {}]
    one = Exchange(swarm[0], peer(0), Meeting((peer(0), peer(1))))
    one.offer(2)
    held = one._open[2].mine
    assert held is not None
    assert sum(part.numel() for part in held) == STRETCH


# NoLoCo and push-sum across stretches


def test_noloco_goes_on_alone_where_its_partner_vanished() -> None:
    """D_i alone, and no spring: as if it had met nobody, from there on."""
    settings = {"learning_rate": 0.6, "spring": 0.4, "momentum": 0.5}
    swarm = wide("noloco", **settings)
    step = torch.linspace(-0.1, 0.1, model(swarm[0]).numel())
    for party in swarm:
        party.state[MODEL].add_(step)
        party.state[MOMENTUM].fill_(0.25)
    slow, moved = swarm[0].state[SLOW].clone(), model(swarm[0]) - swarm[0].state[SLOW]
    meet(swarm, [0, 1], stops=lambda number: number == 2)
    border = swarm[0].stretches[2].start
    momentum = 0.5 * 0.25 + 0.6 * moved
    rest = slice(border, None)
    assert torch.allclose(swarm[0].state[SLOW][rest], (slow + momentum)[rest], atol=1e-6)
    assert torch.allclose(model(swarm[0])[rest], swarm[0].state[SLOW][rest], atol=1e-6)
    assert not torch.allclose(swarm[0].state[SLOW][:border], (slow + momentum)[:border], atol=1e-4)


@pytest.mark.parametrize("kept", [None, 64])
def test_what_is_not_sent_of_nolocos_move_is_in_the_next_one(kept: int | None) -> None:
    """Rounding, and what the largest few leave out: theta - phi is the error feedback."""
    swarm = wide("noloco", value_bits=8, kept=kept, momentum=0.0, spring=0.0, learning_rate=1.0)
    start = torch.stack([party.state[SLOW].double() for party in swarm]).sum(0)
    chance = torch.Generator().manual_seed(0)
    moved = torch.zeros_like(start)
    for _ in range(20):
        for party in swarm:
            step = 0.01 * torch.randn(party.state[MODEL].shape, generator=chance)
            party.state[MODEL].add_(step)
            moved += step.double()
        meet(swarm, [0, 1])
    held = total(swarm, MODEL) - start
    assert float((held - moved).abs().max()) < 1e-5  # nothing is lost in twenty rounds


def test_the_largest_of_a_move_go_first_and_all_in_the_end() -> None:
    swarm = wide("noloco", kept=64, momentum=0.0, spring=0.0, learning_rate=1.0)
    move = 0.1 * torch.randn(model(swarm[0]).shape, generator=torch.Generator().manual_seed(1))
    for party in swarm:
        party.state[MODEL].add_(move)
    left = []
    for _ in range(40):
        sides = meet(swarm, [0, 1])
        left.append(float((model(swarm[0]) - swarm[0].state[SLOW]).norm()))
        assert 4 * len(move) < sides[0].sent_bytes < 1.02 * 4 * len(move)  # slow ones, and a few
    assert left[0] < 0.95 * float(move.norm())
    assert all(b < a for a, b in pairwise(left))
    assert left[-1] < 0.3 * left[0]


def test_slow_weights_travel_in_turns_and_where_they_do_not_there_is_no_spring() -> None:
    settings = {"slow_every": 3, "spring": 1.0, "momentum": 0.0, "learning_rate": 1.0}
    swarm = wide("noloco", **settings)
    count, apart = len(swarm[0].stretches), []
    for turn in range(3):
        slow = [party.state[SLOW].clone() for party in swarm]
        sides = meet(swarm, [0, 1], turn=turn)
        now = (swarm[0].state[SLOW] - slow[0]).abs()
        due = [bool(now[stretch.elements].max() > 0) for stretch in swarm[0].stretches]
        assert due == [(number + turn) % 3 == 0 for number in range(count)]
        apart.append(float((swarm[0].state[SLOW] - swarm[1].state[SLOW]).norm()))
        assert sides[0].sent_bytes < 4 * 1.5 * sum(swarm[0].sizes)
    assert apart[2] < 1e-5 < apart[1] < apart[0]  # a spring of 1 brings two together


@pytest.mark.parametrize("turn", [0, 1])
def test_hostile_sparse_bytes_are_refused(turn: int) -> None:
    party = wide("noloco", kept=64, slow_every=2)[0]
    party.state[MODEL].add_(0.1)
    offer = party.mixing.offer(party.part(0))
    data = party.coder.encode(0, offer, turn)
    assert len(data) <= party.coder.bytes_of(0, turn)
    here = torch.device("cpu")
    for hostile in (b"", data[:-1], data + b"\0", b"\xff" + data[1:], data[: len(data) // 2]):
        with pytest.raises(ValueError, match=r"."):
            party.coder.decode(0, hostile, here, turn)
    with pytest.raises(ValueError, match=r"."):
        party.coder.decode(0, data, here, turn + 1)  # others would have sent more, or less


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("stop", [0, 2, 99])
def test_push_sum_keeps_mass_and_weight_of_each_stretch(bits: int, stop: int) -> None:
    swarm = wide("push-sum", value_bits=bits)
    before, weights = total(swarm, MASS), total(swarm, WEIGHT)
    meet(swarm, [0, 1], directed=True, stops=lambda number: number == stop)
    assert float((total(swarm, MASS) - before).abs().max()) <= rounding(swarm, MASS)
    assert torch.equal(total(swarm, WEIGHT), weights)
    sent = min(stop, len(swarm[0].stretches))
    assert swarm[0].state[WEIGHT].tolist() == [0.5] * sent + [1.0] * (len(weights) - sent)
    assert swarm[1].state[WEIGHT].tolist() == [1.5] * sent + [1.0] * (len(weights) - sent)


# Bytes


@settings(max_examples=30)
@given(
    st.lists(st.integers(1, 9000), min_size=1, max_size=6),
    st.sampled_from(BITS),
    st.integers(0, 99),
)
def test_stretches_cover_the_model_and_rows_round_as_bytes_do(
    sizes: list[int], bits: int, seed: int
) -> None:
    stretches = cut(sizes, 4096)
    assert stretches[0].start == 0
    assert all(a.stop == b.start for a, b in pairwise(stretches))
    assert all(sum(part.sizes) == part.stop - part.start <= 4096 for part in stretches)
    per_tensor = [0] * len(sizes)
    for part in stretches:
        for tensor, size in zip(part.tensors, part.sizes, strict=True):
            per_tensor[tensor] += size
    assert per_tensor == sizes

    coder = Coder(config("noloco", value_bits=bits, slow_every=2), stretches)
    chance = torch.Generator().manual_seed(seed)
    for number, part in enumerate(stretches):
        offer = [torch.randn(3, part.stop - part.start, generator=chance) for _ in range(2)]
        rows = coder.rounded(number, offer, turn := seed % 2)
        for row in range(3):
            data = coder.encode(number, [vector[row] for vector in offer], turn)
            assert len(data) == coder.bytes_of(number, turn)
            decoded = coder.decode(number, data, torch.device("cpu"), turn)
            assert len(decoded) == (2 if (number + turn) % 2 == 0 else 1)
            assert all(torch.equal(d, r[row]) for d, r in zip(decoded, rows, strict=True))


def test_an_exchange_takes_as_many_bytes_as_the_settings_say() -> None:
    for name in ("d-psgd", "noloco", "push-sum"):
        for bits in BITS:
            party = wide(name, value_bits=bits)[0]
            shapes = [tuple(p.shape) for p in party.model.parameters()]
            said = party.config.exchange_bytes(shapes)
            assert said == party.coder.bytes_in_all
            coded = sum(party.sizes) * bits / 8
            assert said <= 1.01 * coded + 16 * len(party.stretches)


@settings(max_examples=200)
@given(st.binary(max_size=80), st.data())
def test_hostile_bytes_are_refused_and_move_nothing(data: bytes, draw: st.DataObject) -> None:
    swarm = parties(config("push-sum"), 1)
    party = swarm[0]
    good = bytearray(party.coder.encode(0, party.mixing.offer(party.part(0))))
    for at, value in enumerate(data):  # a few bytes of a good offer changed
        good[draw.draw(st.integers(0, len(good) - 1)) if at % 2 else at] = value
    before = model(party)
    one = Exchange(party, peer(0), Meeting((peer(1), peer(0)), directed=True))
    for hostile in (data, bytes(good)):
        try:
            one.receive(0, peer(1), hostile)
        except ValueError:
            continue
    if one.is_whole(0):
        one.commit(0)
        assert bool(model(party).isfinite().all())
    else:
        assert torch.equal(model(party), before)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf"), 2.0**-41, 2.0**21])
def test_a_weight_that_nobody_can_have_is_refused(weight: float) -> None:
    party = parties(config("push-sum"), 1)[0]
    offer = [torch.zeros(sum(party.sizes)), torch.tensor([weight], dtype=torch.float64)]
    data = party.coder.encode(0, offer)
    with pytest.raises(ValueError, match="weight"):
        party.coder.decode(0, data, torch.device("cpu"))


def test_who_has_nothing_to_send_is_refused() -> None:
    swarm = parties(config("push-sum"), 2)
    meeting = Meeting((peer(0), peer(1)), directed=True)
    sender, receiver = (Exchange(swarm[seat], peer(seat), meeting) for seat in (0, 1))
    data = sender.offer(0)
    assert receiver.offer(0) == b""
    with pytest.raises(ValueError, match="sends nothing"):
        sender.receive(0, peer(1), data)
    with pytest.raises(ValueError, match="sends nothing"):
        receiver.receive(0, peer(7), data)
    with pytest.raises(ValueError, match="stretch"):
        receiver.receive(1, peer(0), data)


# One peer


@pytest.mark.parametrize("name", ["d-psgd", "noloco", "push-sum"])
def test_a_peer_goes_on_from_what_it_saved(name: str) -> None:
    inner = {"steps": 3, "optimizer": {"name": "adamw", "lr": 0.01}}
    swarm, twin = (parties(config(name, inner=inner), 2) for _ in range(2))
    directed = name == "push-sum"
    for party in swarm:
        party.work(0, count(), lambda: False)
    meet(swarm, [0, 1], directed=directed)
    for party, other in zip(swarm, twin, strict=True):
        other.load_local_state({k: v.clone() for k, v in party.local_state().items()})
    for each in (swarm, twin):
        for party in each:
            party.work(1, count(5), lambda: False)
        meet(each, [0, 1], directed=directed)
    for party, other in zip(swarm, twin, strict=True):
        assert all(torch.equal(party.state[k], other.state[k]) for k in party.state)
        assert party.tokens == other.tokens == 2 * 3 * 2 * 8


def test_a_state_of_another_model_is_refused_and_changes_nothing() -> None:
    party = parties(config("noloco"), 1)[0]
    before, state = model(party), dict(party.local_state())
    for broken in (
        {k: v for k, v in state.items() if k != "gossip.slow"},
        state | {"gossip.slow": torch.zeros(3)},
        state | {"gossip.model": torch.full_like(before, float("nan"))},
        state | {"gossip.tokens": torch.tensor([-1])},
    ):
        with pytest.raises(ValueError, match="gossip"):
            party.load_local_state(broken)
    assert torch.equal(model(party), before)


def test_a_peer_of_bf16_weights_is_told_what_to_do() -> None:
    with pytest.raises(ConfigError, match="bfloat16"):
        Party(config("d-psgd"), tiny_setup("bf16"))
