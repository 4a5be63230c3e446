"""How far peers are apart: estimates against exact numbers, and mixing against theory."""

from math import sqrt

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from node.gossip.consensus import (
    COORDINATES,
    coordinates,
    distance,
    estimate,
    expected,
    rate,
    read_sketch,
    sketch,
)
from node.gossip.merge import WEIGHT_MAX, merged, work_weights
from node.gossip.pairings import View, meetings
from node.methods.d_psgd import Averaging
from node.methods.parts.gossip_config import Kind
from node.methods.parts.mixing import MODEL
from tests.gossip.swarm import mix, state_of

SEED = bytes(range(32))


def mixed(models: Tensor, kind: Kind, rounds: int, group: int = 2) -> list[float]:
    """Distances before each round and after the last, of plain averaging."""
    states = [state_of(Averaging(), row) for row in models]
    view = View.of(SEED, [at.to_bytes(32, "big") for at in range(len(models))])
    found = [distance(models)]
    for round in range(rounds):
        for one in meetings(kind, view, round, group):
            mix(Averaging(), [states[view.members.index(member)] for member in one.peers])
        found.append(distance(torch.stack([state[MODEL] for state in states])))
    return found


@pytest.mark.parametrize(
    ("kind", "members", "group"),
    [("matching", 16, 2), ("matching", 5, 2), ("groups", 12, 4), ("groups", 11, 3)],
)
def test_mixing_is_as_fast_as_theory_says(kind: Kind, members: int, group: int) -> None:
    factor = expected(kind, members, group)
    assert factor is not None
    chance = torch.Generator().manual_seed(1)
    trials = []
    for trial in range(300):
        models = torch.randn(members, 20, generator=chance, dtype=torch.float64)
        view = View.of(trial.to_bytes(32, "big"), [n.to_bytes(32, "big") for n in range(members)])
        states = [state_of(Averaging(), row) for row in models]
        for one in meetings(kind, view, 0, group):
            mix(Averaging(), [states[view.members.index(member)] for member in one.peers])
        after = distance(torch.stack([state[MODEL] for state in states]))
        trials.append(after / distance(models))
    mean, spread = torch.tensor(trials).mean(), torch.tensor(trials).std()
    assert float(mean) == pytest.approx(factor, abs=4 * float(spread) / sqrt(len(trials)))


def test_the_factors_of_small_swarms() -> None:
    assert expected("matching", 2) == 0.0
    assert expected("matching", 4) == pytest.approx(1 / 3)
    assert expected("matching", 5) == pytest.approx(0.5)
    assert expected("groups", 9, 9) == 0.0
    assert expected("matching", 1) == 1.0
    assert expected("ring", 8) is None


@pytest.mark.parametrize("q", [1, 2, 3, 4])
def test_a_ring_mixes_slower_than_a_matching(q: int) -> None:
    models = torch.randn(2**q, 30, generator=torch.Generator().manual_seed(q), dtype=torch.float64)
    ring, matching = mixed(models, "ring", 8), mixed(models, "matching", 8)
    assert ring[-1] < ring[0]
    if q > 2:
        assert ring[-1] > matching[-1]


@pytest.mark.parametrize("q", [1, 2, 3, 4])
def test_a_hypercube_has_the_mean_after_q_rounds(q: int) -> None:
    models = torch.randn(2**q, 30, generator=torch.Generator().manual_seed(q), dtype=torch.float64)
    found = mixed(models, "hypercube", q)
    assert found[-1] < 1e-25 * found[0]
    assert q == 1 or found[-2] > 0.01 * found[0]


def test_the_estimate_is_unbiased_and_as_good_as_its_size() -> None:
    models = torch.randn(12, 5000, generator=torch.Generator().manual_seed(0))
    models *= torch.linspace(0.1, 2, 5000)  # coordinates are not alike
    exact = distance(models)
    found = []
    for look in range(400):
        places = coordinates(5000, SEED, look)
        told = [read_sketch(sketch(row, places), COORDINATES) for row in models]
        found.append(estimate(told, 5000))
    errors = torch.tensor(found) / exact - 1
    assert float(errors.mean().abs()) < 4 * float(errors.std()) / 20
    assert 0.05 < float(errors.std()) < 0.2
    assert len(sketch(models[0], coordinates(5000, SEED, 0))) == 4 * COORDINATES == 256


@given(st.integers(1, 5000), st.integers(0, 1 << 30))
def test_all_peers_look_at_the_same_places_each_once(size: int, look: int) -> None:
    places = coordinates(size, SEED, look)
    assert torch.equal(places, coordinates(size, SEED, look))
    assert len(set(places.tolist())) == len(places) == min(size, COORDINATES)
    assert 0 <= int(places.min()) <= int(places.max()) < size


def test_each_look_is_at_other_places_and_of_other_runs_too() -> None:
    first = coordinates(5000, SEED, 0)
    assert not torch.equal(first, coordinates(5000, SEED, 1))
    assert not torch.equal(first, coordinates(5000, bytes(32), 0))


@pytest.mark.parametrize("data", [b"", bytes(12), b"\x00\x00\xc0\x7f" * 4, bytes(17)])
def test_hostile_sketches_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="sketch"):
        read_sketch(data, 4)


def test_a_rate_is_known_once_there_are_two_looks() -> None:
    assert rate([8.0, 4.0, 2.0]) == pytest.approx(0.5)
    assert rate([8.0]) is None
    assert rate([8.0, 0.0]) is None


# The end


@given(st.lists(st.integers(0, WEIGHT_MAX), min_size=1, max_size=6).filter(any), st.integers(0, 9))
def test_the_merge_is_the_weighted_mean_and_the_same_of_any_range(
    weights: list[int], seed: int
) -> None:
    models = torch.randn(len(weights), 50, generator=torch.Generator().manual_seed(seed))
    found = merged(models, weights)
    w = torch.tensor(weights, dtype=torch.float64)
    wanted = (models.double() * w[:, None]).sum(0) / w.sum()
    assert torch.allclose(found.double(), wanted, rtol=2**-23, atol=1e-12)
    parts = [merged(models[:, at : at + 7], weights) for at in range(0, 50, 7)]
    assert torch.equal(torch.cat(parts), found)


def test_weights_are_work() -> None:
    assert work_weights([100, 0, 300]) == [100, 0, 300]
    assert work_weights([0, 0]) == [1, 1]
    large = work_weights([1 << 40, 1 << 39])
    assert large == [WEIGHT_MAX, WEIGHT_MAX // 2]
    models = torch.tensor([[1.0], [5.0]])
    assert merged(models, work_weights([3, 1])).tolist() == [2.0]
    assert merged(models, [0, 7]).tolist() == [5.0]
