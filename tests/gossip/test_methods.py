"""The methods against their equations, in float64 where a number is compared with one."""

import math
import random
from itertools import count

import pytest
import torch
from torch import Tensor

from node.gossip.consensus import distance
from node.gossip.pairings import View, meetings
from node.methods.ad_psgd import wait
from node.methods.ad_psgd_config import AdPsgdConfig
from node.methods.d_psgd import Averaging
from node.methods.dadao import MODEL_AHEAD, Z_AHEAD, Dadao, Z
from node.methods.noloco import MOMENTUM, SLOW, NoLoCo, NoLoCoInParts
from node.methods.parts.gossip_config import Kind
from node.methods.parts.mixing import MODEL
from node.methods.push_sum import MASS, WEIGHT, PushSum
from node.methods.variance_corrected import VarianceCorrected, factors
from node.training.inner import InnerTrainer
from node.training.inner_config import InnerConfig
from node.training.losses import batch_loss
from node.training.optimizer_config import SgdConfig
from node.training.sam import SamTrainer
from tests.gossip.swarm import config, meet, mix, model, parties, push, round_of, state_of
from tests.methods.making import tiny_setup

SEED = bytes(range(32))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def view_of(members: int, seed: bytes = SEED) -> View:
    return View.of(seed, [number.to_bytes(32, "big") for number in range(members)])


# NoLoCo


def noloco_rounds(rounds: int, seed: int) -> tuple[list[float], float]:
    """Dispersion of 8 peers' slow weights without gradients, and how far their mean went."""
    mixing, view = NoLoCo(0.7, 0.7, 0.5), view_of(8, seed.to_bytes(32, "big"))
    states = [state_of(mixing, row) for row in normal(8, 64, seed=seed)]
    slow = torch.stack([state[SLOW] for state in states])
    before, found = slow.mean(0), [distance(slow)]
    for round in range(rounds):
        for one in meetings("matching", view, round):
            mix(mixing, [states[view.members.index(member)] for member in one.peers])
        found.append(distance(torch.stack([state[SLOW] for state in states])))
    after = torch.stack([state[SLOW] for state in states]).mean(0)
    return found, float((after - before).abs().max())


def noloco_in_expectation(rounds: int, members: int, gamma: float, mu: float) -> list[float]:
    """Of the same: second moments of (deviation, momentum) of one peer, for random matchings.
    Those of two peers are -1/(N - 1) of them, because deviations sum to 0.
    """
    a, b, c = 1.0, 0.0, 0.0  # E d^2, E d m, E m^2
    more = members / (members - 1)
    found = [a]
    for _ in range(rounds):
        c = mu**2 * c - mu * gamma * more * b + gamma**2 * more * a / 2
        d_m = mu * b - gamma * more * a / 2
        a, b = a + 2 * d_m + c, d_m + c
        found.append(a)
    return found


def test_noloco_without_gradients_keeps_the_mean_and_loses_dispersion() -> None:
    """An independent run of such a swarm went from 4.3 to 0.59 in 10 rounds, and to 5e-4 in 50, as
    a norm.
    """
    wanted = noloco_in_expectation(50, 8, 0.7, 0.5)
    runs = [noloco_rounds(50 if seed < 8 else 4, seed) for seed in range(150)]
    assert max(moved for _, moved in runs) < 1e-15
    for round in (1, 2, 4):
        ratios = torch.tensor([found[round] / found[0] for found, _ in runs])
        error = float(ratios.std()) / math.sqrt(len(runs))
        assert float(ratios.mean()) == pytest.approx(wanted[round], abs=4 * error)
    norms = {at: [math.sqrt(found[at] / found[0]) for found, _ in runs[:8]] for at in (10, 50)}
    assert min(norms[10]) < 0.59 / 4.3 < 2 * max(norms[10])
    assert min(norms[50]) < 5e-4 / 4.3 < 4 * max(norms[50])


def test_noloco_of_equal_peers_is_heavy_ball() -> None:
    mixing = NoLoCo(0.7, 0.7, 0.5)
    start = normal(40)
    states = [state_of(mixing, start) for _ in range(2)]
    phi, m = start.clone(), torch.zeros_like(start)
    for round in range(20):
        step = normal(40, seed=round + 1)
        for state in states:
            state[MODEL] += step
        mix(mixing, states)
        m = 0.5 * m + 0.7 * step
        phi = phi + m
        for state in states:
            assert torch.allclose(state[SLOW], phi, atol=1e-13)
            assert torch.allclose(state[MODEL], phi, atol=1e-13)


def test_noloco_moves_as_its_code_does_and_not_as_its_second_equation() -> None:
    """m_i = mu m_i + alpha (D_i + D_j) / 2 - gamma (phi_i - phi_j) / 2, with D = theta - phi."""
    alpha, gamma, mu = 0.6, 0.3, 0.5
    mixing = NoLoCo(alpha, gamma, mu)
    phi, d, m = normal(2, 9, seed=1), normal(2, 9, seed=2), normal(2, 9, seed=3)
    states = [state_of(mixing, row) for row in phi]
    for state, moved, momentum in zip(states, d, m, strict=True):
        state[MODEL] += moved
        state[MOMENTUM].copy_(momentum)
    mix(mixing, states)
    for i, j in ((0, 1), (1, 0)):
        wanted = mu * m[i] + alpha * (d[i] + d[j]) / 2 - gamma * (phi[i] - phi[j]) / 2
        assert torch.allclose(states[i][MOMENTUM], wanted, atol=1e-14)
        assert torch.allclose(states[i][SLOW], phi[i] + wanted, atol=1e-14)
        assert torch.allclose(states[i][MODEL], states[i][SLOW], atol=1e-14)


def test_nesterovs_spring_holds_on_to_where_the_momentum_leads() -> None:
    """With gamma 1 both are in one place then, however different their momenta were."""
    mu, phi, d, m = 0.5, normal(2, 9, seed=1), normal(2, 9, seed=2), normal(2, 9, seed=3)
    for gamma in (0.3, 1.0):
        mixing = NoLoCo(0.6, gamma, mu, nesterov=True)
        states = [state_of(mixing, row) for row in phi]
        for state, moved, momentum in zip(states, d, m, strict=True):
            state[MODEL] += moved
            state[MOMENTUM].copy_(momentum)
        mix(mixing, states)
        u = phi + mu**2 * m
        for i, j in ((0, 1), (1, 0)):
            gain = 0.6 * (d[i] + d[j]) / 2 - gamma / (1 + mu) * (u[i] - u[j]) / 2
            momentum = mu * m[i] + gain
            assert torch.allclose(states[i][MOMENTUM], momentum, atol=1e-14)
            assert torch.allclose(states[i][SLOW], phi[i] + gain + mu * momentum, atol=1e-14)
            assert torch.allclose(states[i][MODEL], states[i][SLOW], atol=1e-14)
    assert torch.allclose(states[0][SLOW], states[1][SLOW], atol=1e-14)


@pytest.mark.parametrize("kind", ["matching", "hypercube"])
def test_with_nesterov_the_mean_moves_as_dilocos_weights_do(kind: Kind) -> None:
    """Under moves that have nothing to do with each other. That of `outer_step`, by PyTorch."""
    mixing, view = NoLoCo(0.4, 1.0, 0.8, nesterov=True), view_of(8)
    states = [state_of(mixing, torch.zeros(40, dtype=torch.float64)) for _ in range(8)]
    theta = torch.zeros(40, dtype=torch.float64, requires_grad=True)
    outer = torch.optim.SGD([theta], lr=0.4, momentum=0.8, nesterov=True)
    for round in range(30):
        steps = normal(8, 40, seed=round)
        for state, step in zip(states, steps, strict=True):
            state[MODEL] += step
        for one in meetings(kind, view, round):
            mix(mixing, [states[view.members.index(member)] for member in one.peers])
        theta.grad = -steps.mean(0)
        outer.step()
        mean = torch.stack([state[SLOW] for state in states]).mean(0)
        assert torch.allclose(mean, theta.detach(), atol=1e-12)


def test_with_nesterov_peers_stay_near_each_other_whatever_the_momentum() -> None:
    apart = []
    for nesterov in (False, True):
        mixing, view = NoLoCo(0.4, 0.7, 0.8, nesterov=nesterov), view_of(8)
        states = [state_of(mixing, torch.zeros(500, dtype=torch.float64)) for _ in range(8)]
        for round in range(60):
            for state, step in zip(states, normal(8, 500, seed=round), strict=True):
                state[MODEL] += step
            for one in meetings("matching", view, round):
                mix(mixing, [states[view.members.index(member)] for member in one.peers])
        apart.append(distance(torch.stack([state[SLOW] for state in states])))
    assert apart[1] < 0.7 * apart[0]


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("peers", [2, 3])
def test_one_vector_says_what_two_say(nesterov: bool, peers: int) -> None:
    """Moves and slow weights in one, or each by itself: the same step, round after round."""
    one, two = (kind(0.6, 0.3, 0.5, nesterov=nesterov) for kind in (NoLoCo, NoLoCoInParts))
    start = normal(peers, 30, seed=1)
    swarms = [[state_of(mixing, row) for row in start] for mixing in (one, two)]
    for round in range(5):
        steps = normal(peers, 30, seed=round + 2)
        for mixing, states in zip((one, two), swarms, strict=True):
            for state, step in zip(states, steps, strict=True):
                state[MODEL] += step
            mix(mixing, states)
        for a, b in zip(*swarms, strict=True):
            for name in (MODEL, SLOW, MOMENTUM):
                assert torch.allclose(a[name], b[name], atol=1e-13)
    with_theta = NoLoCo(0.6, 0.6, 0.5).offer(state := swarms[0][0])
    assert torch.allclose(with_theta[0], 0.6 * state[MODEL], atol=1e-14)


def test_noloco_of_groups_pulls_to_the_group_mean() -> None:
    mixing = NoLoCo(0.6, 0.3, 0.0)
    phi = normal(3, 9)
    states = [state_of(mixing, row) for row in phi]
    mix(mixing, states)
    for state, was in zip(states, phi, strict=True):
        assert torch.allclose(state[SLOW], was - 0.3 * (was - phi.mean(0)), atol=1e-14)


def test_noloco_alone_takes_its_own_step_without_a_spring() -> None:
    mixing = NoLoCo(0.6, 0.3, 0.5)
    state = state_of(mixing, normal(9))
    phi, d, m = state[SLOW].clone(), normal(9, seed=2), normal(9, seed=3)
    state[MODEL] += d
    state[MOMENTUM].copy_(m)
    mixing.alone(state)
    assert torch.allclose(state[MOMENTUM], 0.5 * m + 0.6 * d, atol=1e-14)
    assert torch.allclose(state[SLOW], phi + 0.5 * m + 0.6 * d, atol=1e-14)
    assert torch.allclose(state[MODEL], state[SLOW], atol=1e-14)


# Push-sum


def exponential(rank: int, round: int, members: int) -> int:
    view = view_of(members)
    return view.order.index(meetings("exponential", view, round)[rank].peers[1])


@pytest.mark.parametrize("q", [1, 2, 3, 4, 5])
def test_push_sum_on_the_exponential_graph_is_exact_after_q_rounds(q: int) -> None:
    mixing, members = PushSum(), 2**q
    vectors = normal(members, 30)
    states = [state_of(mixing, row) for row in vectors]
    for round in range(q):
        assert q == 1 or round == 0 or distance(torch.stack([s[MODEL] for s in states])) > 1e-3
        push(mixing, states, [exponential(rank, round, members) for rank in range(members)])
    for state in states:
        assert torch.allclose(state[MODEL], vectors.mean(0), atol=1e-15)


def test_push_sum_on_a_random_directed_graph_is_exact_where_x_alone_is_biased() -> None:
    mixing, members = PushSum(), 8
    vectors = normal(members, 30)
    chance = random.Random(5)
    graph = [[(i + 1) % members, (i + chance.randrange(1, members)) % members] for i in range(8)]
    states = [state_of(mixing, row) for row in vectors]
    for round in range(200):
        push(mixing, states, [targets[round % 2] for targets in graph])
    models = torch.stack([state[MODEL] for state in states])
    mass = torch.stack([state[MASS] for state in states])
    assert torch.allclose(models, vectors.mean(0).expand_as(models), atol=1e-7)
    assert float((mass - vectors.mean(0)).abs().max()) > 0.05
    assert float(sum(state[WEIGHT] for state in states)) == pytest.approx(members, abs=1e-12)
    assert torch.allclose(mass.sum(0), vectors.sum(0), atol=1e-12)


def test_inner_steps_move_the_mass_as_far_as_the_model() -> None:
    mixing = PushSum()
    states = [state_of(mixing, row) for row in normal(2, 5)]
    push(mixing, states, [1, 1])  # both send to the second: uneven weights
    before = sum(state[MASS] for state in states)
    step = normal(5, seed=9)
    for state in states:
        state[MODEL] += step
    push(mixing, states, [1, 0])
    assert torch.allclose(sum(state[MASS] for state in states), before + 2 * step, atol=1e-14)


# Averaging, several times, and SAM


def test_many_gossip_steps_tend_to_the_mean() -> None:
    method = config("dfedsam", gossip_steps=12)
    swarm = parties(method, 6)
    mean = torch.stack([model(party) for party in swarm]).mean(0)
    view = view_of(6)
    for step in range(method.exchanges_a_round):
        found = meetings("matching", view, step)
        round_of(swarm, [[view.members.index(member) for member in m.peers] for m in found])
    for party in swarm:
        assert torch.allclose(model(party), mean, atol=0.02)
    assert distance(torch.stack([model(party) for party in swarm])) > 0


def test_without_a_radius_and_with_one_step_it_is_decentralized_fedavg() -> None:
    inner = {"steps": 4, "optimizer": {"name": "sgd", "lr": 0.1}}
    sam = parties(config("dfedsam", radius=0, gossip_steps=1, inner=inner), 2)
    plain = parties(config("d-psgd", inner=inner), 2)
    for swarm in (sam, plain):
        for seat, party in enumerate(swarm):
            party.work(0, count(seat * 10), lambda: False)
        meet(swarm, [0, 1])
    for one, other in zip(sam, plain, strict=True):
        assert torch.equal(model(one), model(other))


@pytest.mark.parametrize("accumulation", [1, 3])
def test_sam_takes_the_gradient_of_the_same_batches_at_a_distance(accumulation: int) -> None:
    """y - eta grad F(y + rho g / ||g||), with the whole model's norm, by two autograd calls."""
    radius, eta = 0.3, 0.05
    sgd = InnerConfig(optimizer=SgdConfig(name="sgd", lr=eta), steps=1, accumulation=accumulation)
    setup, twin = tiny_setup(), tiny_setup()
    trainer = SamTrainer(sgd, setup.model, batch_loss, setup.data.batch, radius=radius)
    report = trainer.work(0, count(7), lambda: False)
    assert report.batches == accumulation
    assert report.tokens == accumulation * 16

    parameters = list(twin.model.parameters())

    def gradients() -> list[Tensor]:
        batches = [twin.data.batch(7 + at) for at in range(accumulation)]
        loss = sum(batch_loss(twin.model, batch) for batch in batches) / accumulation
        assert isinstance(loss, Tensor)
        return list(torch.autograd.grad(loss, parameters))

    start, first = [p.detach().clone() for p in parameters], gradients()
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in first))
    with torch.no_grad():
        for parameter, g in zip(parameters, first, strict=True):
            parameter.add_(radius * g / norm)
    there = gradients()
    moved = [a - b for a, b in zip(setup.model.parameters(), start, strict=True)]
    for step, g, at_y in zip(moved, there, first, strict=True):
        assert torch.allclose(step, -eta * g, atol=1e-7)
        if at_y.dim() > 1:
            assert not torch.allclose(step, -eta * at_y, atol=1e-5)


def test_sam_with_no_radius_is_the_ordinary_step_to_the_bit() -> None:
    inner = InnerConfig(steps=3)
    one, other = tiny_setup(), tiny_setup()
    SamTrainer(inner, one.model, batch_loss, one.data.batch, radius=0.0).work(
        0, count(), lambda: False
    )
    InnerTrainer(inner, other.model, batch_loss, other.data.batch).work(0, count(), lambda: False)
    pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


# Variance correction


def corrected(vectors: Tensor, cap: float) -> Tensor:
    """What the first of these peers holds after all of them met, one tensor each."""
    mixing = VarianceCorrected(cap)
    mine, others = [vectors[0]], [[row] for row in vectors[1:]]
    state = state_of(mixing, vectors[0])
    sums = mixing.sums(mine, others, [vectors.shape[1]])
    mixing.apply(state, mixing.moves(mine, others))
    mixing.correct(state[MODEL], sums[0])
    return state[MODEL]


def test_ten_gaussian_tensors_keep_their_variance() -> None:
    vectors = normal(10, 100_000) + 3
    usual = float(vectors.var(dim=1, correction=0).mean())
    assert float(vectors.mean(0).var(correction=0)) / usual == pytest.approx(0.10, abs=0.002)
    found = corrected(vectors, 10.0)
    assert float(found.var(correction=0)) / usual == pytest.approx(1.00, abs=1e-6)
    assert float(found.mean()) == pytest.approx(float(vectors.mean()), abs=1e-12)


def test_identical_models_stay_as_they_are() -> None:
    row = normal(1, 1000) + 3
    assert torch.allclose(corrected(row.expand(4, -1), 10.0), row[0], atol=1e-12)


def test_the_factor_is_capped_and_never_below_one() -> None:
    vectors = normal(10, 10_000)
    found = corrected(vectors, 1.5)
    plain = vectors.mean(0)
    assert float(found.std() / plain.std()) == pytest.approx(1.5, abs=1e-6)
    assert factors(torch.tensor([1.0, 0.5]), torch.tensor([0.0, 1.0]), 3.0).tolist() == [1.0, 1.0]


def test_exchanges_correct_tensor_by_tensor_and_only_when_whole() -> None:
    swarm, plain = (parties(config(name), 2) for name in ("variance-corrected", "d-psgd"))
    first = [model(party) for party in swarm]
    for each in (swarm, plain):
        meet(each, [0, 1])
    sizes = swarm[0].sizes
    parts = [torch.split(model(party), sizes) for party in (swarm[0], plain[0])]
    usual = [torch.split(vector, sizes) for vector in first]
    for number, (got, mean) in enumerate(zip(*parts, strict=True)):
        variance = sum(float(one[number].double().var(correction=0)) for one in usual) / 2
        factor = min(1.05, math.sqrt(variance / float(mean.double().var(correction=0))))
        assert torch.allclose(got, (mean - mean.mean()) * factor + mean.mean(), atol=1e-5)
    broken = parties(config("variance-corrected"), 2)
    meet(broken, [0, 1], stops=lambda number: True)
    assert torch.equal(model(broken[0]), first[0])


# Asynchrony


def test_a_poisson_clock_is_never_faster_than_the_work() -> None:
    ready, poisson = (AdPsgdConfig(name="ad-psgd", clock=c) for c in ("ready", "poisson"))
    waits = [wait(poisson, SEED, bytes(32), number, 1000) for number in range(500)]
    assert wait(ready, SEED, bytes(32), 0, 1000) == 1000
    assert min(waits) == 1000
    assert 150 < sum(one > 1000 for one in waits) < 220  # e^-1 of them
    assert waits == [wait(poisson, SEED, bytes(32), number, 1000) for number in range(500)]


# DADAO


def dadao_states(members: int) -> tuple[Dadao, list[dict[str, Tensor]]]:
    mixing = Dadao(smoothness=2.0, convexity=0.5, connectivity=1.0)
    return mixing, [state_of(mixing, row) for row in normal(members, 6)]


def test_dadao_keeps_its_invariants() -> None:
    """X + X~ between events; sum Z and sum Z~ at meetings."""
    mixing, states = dadao_states(2)
    for state in states:
        mixing.gradient(state, 2 * state[MODEL] - 1)
        mixing.flow(state, 0.7)
    for state in states:
        before, was = state[MODEL] + state[MODEL_AHEAD], state[MODEL].clone()
        mixing.flow(state, 1.3)
        assert torch.allclose(state[MODEL] + state[MODEL_AHEAD], before, atol=1e-15)
        assert float((state[MODEL] - was).abs().max()) > 1e-3
    for name in (Z, Z_AHEAD):
        before = sum(state[name] for state in states)
        mix(mixing, states)
        assert torch.allclose(sum(state[name] for state in states), before, atol=1e-14)


def test_dadaos_flow_is_the_equation_and_takes_any_pieces() -> None:
    mixing, (state, twin) = dadao_states(1)[0], dadao_states(2)[1]
    twin = {name: vector.clone() for name, vector in state.items()}
    mixing.gradient(state, state[MODEL] + 1)
    mixing.gradient(twin, twin[MODEL] + 1)
    mixing.flow(state, 0.9)
    for _ in range(3):
        mixing.flow(twin, 0.3)
    assert all(torch.allclose(state[name], twin[name], atol=1e-13) for name in state)
    small = 1e-6
    before = {name: vector.clone() for name, vector in state.items()}
    mixing.flow(state, small)
    slope = (state[MODEL] - before[MODEL]) / small
    assert torch.allclose(slope, mixing.eta * (before[MODEL_AHEAD] - before[MODEL]), atol=1e-5)


def test_dadao_finds_the_minimum_of_the_mean_where_its_assumptions_hold() -> None:
    """Quadratics of different curvature, gradients and meetings at Poisson times."""
    members, chance = 6, random.Random(4)
    curve = [0.5 + 1.5 * at / (members - 1) for at in range(members)]
    mixing, states = dadao_states(members)
    centres = normal(members, 6, seed=8)
    weighted = sum(c * x for c, x in zip(curve, centres, strict=True))
    wanted = weighted / sum(curve)
    last = [0.0] * members
    now, meetings_a_unit = 0.0, 2 * members
    while now < 150:
        now += chance.expovariate(members + meetings_a_unit)
        is_gradient = chance.random() < members / (members + meetings_a_unit)
        who = [chance.randrange(members)] if is_gradient else chance.sample(range(members), 2)
        for at in who:
            mixing.flow(states[at], now - last[at])
            last[at] = now
        if is_gradient:
            (at,) = who
            mixing.gradient(states[at], curve[at] * (states[at][MODEL] - centres[at]))
        else:
            mix(mixing, [states[at] for at in who])
    for state in states:
        assert torch.allclose(state[MODEL], wanted, atol=1e-2)


def test_dadao_trains_a_model_by_plain_gradients() -> None:
    dadao = {"smoothness": 5.0, "convexity": 5.0}
    swarm = parties(config("ad-psgd", dadao=dadao, inner={"steps": 20}), 2, noise=0.0)
    first = swarm[0].work(0, count(), lambda: False).loss
    for round in range(1, 6):
        meet(swarm, [0, 1])
        last = swarm[0].work(round, count(20 * round), lambda: False).loss
        swarm[1].work(round, count(20 * round + 9), lambda: False)
    assert first is not None
    assert last is not None
    assert last < first - 0.3


def test_averaging_alone_changes_nothing() -> None:
    state = state_of(Averaging(), normal(4))
    before = state[MODEL].clone()
    Averaging().alone(state)
    assert torch.equal(state[MODEL], before)
