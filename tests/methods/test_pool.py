"""FedKSeed: the model is K integers."""

import random
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch

from node.methods.base import Contribution, RoundContext
from node.methods.parts.pool import (
    Pool,
    Sums,
    multiplier,
    quantum_exponent,
    significance,
)
from node.methods.parts.probes import Probe, decode, encode
from node.methods.parts.schedule import Schedule
from node.methods.parts.setup import Setup
from node.methods.spsa import Spsa
from node.methods.spsa_config import SeedPool, SpsaConfig

MakeSetup = Callable[..., Setup]
MakeRound = Callable[..., RoundContext]

RATE = Schedule(peak="0.05", warmup_rounds=3, decay_rounds=9)


def config(pool: int, significance: bool = False) -> SpsaConfig:
    seeds = SeedPool(pool=pool, significance=significance)
    return SpsaConfig(learning_rate=RATE, epsilon=0.01, probes=6, seeds=seeds)


@pytest.mark.parametrize("significant", [False, True])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_followed_and_rebuilt_models_have_the_same_bits(
    dtype: str, significant: bool, make_setup: MakeSetup, make_round: MakeRound
) -> None:
    """1. Two peers train, one is late now and then, the rate changes every round. 2. A newcomer is
    handed the integers alone.
    """
    chosen = config(16, significant)
    peers = [Spsa(chosen, make_setup(dtype), random.Random(i)) for i in range(2)]
    for number in range(12):
        contexts = [make_round(number, i, 2) for i in range(2)]
        payloads = [p.work(c).payload for p, c in zip(peers, contexts, strict=True)]
        late = number % 3 == 1
        if late:
            peers[0].give_back(number, payloads[0])
        listed = [
            Contribution(c.peer, payload) for c, payload in zip(contexts, payloads, strict=True)
        ][late:]
        for p, c in zip(peers, contexts, strict=True):
            p.merge(c, listed)
    state = peers[0].replicated_state()
    assert not any(name.startswith("weights") for name in state)
    newcomer = Spsa(chosen, make_setup(dtype))
    assert newcomer.state_digest() != peers[0].state_digest()
    for _ in range(2):  # the second time over a model that has moved already
        newcomer.load_replicated_state(state)
    assert len({p.state_digest() for p in [*peers, newcomer]}) == 1
    for a, b in zip(peers[0]._view.weights, newcomer._view.weights, strict=True):
        assert torch.equal(a.tensor, b.tensor)


def test_one_direction_never_leaves_its_line(make_setup: MakeSetup, make_round: MakeRound) -> None:
    """K = 1: theta_0 - theta is a multiple of one vector of signs."""
    me = Spsa(config(1), make_setup(), random.Random(1))
    start = torch.cat([w.tensor.flatten() for w in me._view.weights]).double()
    for number in range(8):
        context = make_round(number, 0, 1)
        me.merge(context, [Contribution(context.peer, me.work(context).payload)])
    moved = torch.cat([w.tensor.flatten() for w in me._view.weights]).double() - start
    assert float(moved.abs().max()) > 1e-4
    assert float(moved.abs().std()) < 1e-6


def test_two_clients_on_disjoint_directions_equal_the_sum(
    make_setup: MakeSetup, make_round: MakeRound
) -> None:
    """Accumulators add: a model rebuilt from A_1 + A_2 equals the one that merged both."""
    chosen = config(64)
    context = make_round(0, 0, 2)
    lists = [
        Contribution(context.seats[i], encode([Probe(0, j, 7 * i + j) for j in range(9)]))
        for i in range(2)
    ]
    both, first, second = (Spsa(chosen, make_setup()) for _ in range(3))
    both.merge(context, lists)
    # Alone, each client's mean is over half as many probes: twice the weight.
    first.merge(context, lists[:1])
    second.merge(context, lists[1:])
    total = {
        n: first.replicated_state()[n] + second.replicated_state()[n]
        for n in ("pool.accumulators", "pool.magnitudes", "pool.counts")
    }
    ours = both.replicated_state()["pool.accumulators"]
    assert int((total["pool.accumulators"] - 2 * ours).abs().max()) <= 32
    total["pool.accumulators"] = ours
    rebuilt = Spsa(chosen, make_setup())
    rebuilt.load_replicated_state(both.replicated_state() | total)
    for a, b in zip(both._view.weights, rebuilt._view.weights, strict=True):
        assert torch.equal(a.tensor, b.tensor)


def test_significance_is_softmax_of_minmax() -> None:
    magnitudes = np.array([0, 500, 1000, 10, 0], dtype=np.int64)
    counts = np.array([5, 5, 5, 5, 0], dtype=np.int64)
    means = magnitudes[:4] / 5
    expected = np.exp((means - means.min()) / (means.max() - means.min()))
    got = significance(magnitudes, counts) / 65536
    assert got[:4] == pytest.approx(expected, rel=1e-3)
    assert got[4] == pytest.approx(np.exp(0.5), rel=1e-3)


def test_significant_directions_are_drawn_more_often() -> None:
    pool = Pool.empty(bytes(32), 2, significance=True)
    pool.counts[:], pool.magnitudes[:] = 10, [0, 900]
    chooser = pool.chooser()
    drawn = sum(chooser.choose(0, bytes(32), i) for i in range(4000)) / 4000
    assert drawn == pytest.approx(np.e / (1 + np.e), abs=0.03)


def test_late_probes_carry_their_choice(make_setup: MakeSetup, make_round: MakeRound) -> None:
    """The weights they were drawn with are gone by then."""
    me = Spsa(config(16, True), make_setup(), random.Random(1))
    me.give_back(0, me.work(make_round(0, 0)).payload)
    chosen = [m.choice for m in me._backlog._waiting.values()]
    late = [p for p in decode(me.work(make_round(1, 0)).payload, pool=16) if p.age]
    assert [p.choice for p in late] == chosen
    assert None not in chosen


def test_the_multiplier_keeps_a_byte_s_precision() -> None:
    rate = Fraction("0.0003")
    quantum = quantum_exponent(rate, -4)
    for probes in (1, 30, 4096):
        exact = rate * Fraction(2) ** (-4 - quantum) / probes
        assert abs(multiplier(rate / probes, -4, quantum) - exact) <= exact / 4096


def test_sums_leave_out_what_cancels() -> None:
    sums = Sums()
    for index, change in [(5, 3), (2, 1), (5, -3), (1, 4)]:
        sums.add(index, change)
    assert sums.moved() == [(1, 4), (2, 1)]
