"""One-byte SPSA: the paper's identities, and that peers stay equal whatever happens."""

import dataclasses
import math
import random
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from node.kernels import kernels_for
from node.methods.base import Contribution, GoesOn, RoundContext
from node.methods.parts import perturbed, seeds
from node.methods.parts.perturbed import Perturbed
from node.methods.parts.probes import Probe, decode, encode
from node.methods.parts.schedule import Schedule
from node.methods.parts.setup import Setup
from node.methods.spsa import Spsa
from node.methods.spsa_config import SpsaConfig

MakeSetup = Callable[..., Setup]
MakeRound = Callable[..., RoundContext]

CONFIG = SpsaConfig(learning_rate=Schedule(peak="0.05"), epsilon=0.01, probes=6)


class Quadratic(nn.Module):
    """x'Ax / 2 in float64, whatever the type of x."""

    def __init__(self, size: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(4)
        self.x = nn.Parameter(torch.randint(-8, 9, (size,), generator=draw).float() / 8)
        a = torch.randint(-4, 5, (size, size), generator=draw).double()
        self.register_buffer("a", a + a.t())

    def forward(self) -> Tensor:
        x = self.x.double()
        return x @ self.get_buffer("a") @ x / 2


@pytest.mark.parametrize("epsilon", [2.0**-10, 1.0, 8.0])
def test_a_quadratic_s_slope_is_exact_for_any_epsilon(epsilon: float) -> None:
    """g = z'Ax. Epsilon is a power of two and x has few bits, so that theta +- epsilon z is exact
    in float32.
    """
    model = Quadratic(24)
    kernels = kernels_for(torch.device("cpu"))
    view = Perturbed(model, kernels, model)
    z = torch.zeros(24)
    kernels.perturb(torch.zeros(24), 0, 99, 1.0, z)
    with torch.no_grad():
        with view.at(99, epsilon):
            up = float(model())
        with view.at(99, -epsilon):
            down = float(model())
        expected = float(z.double() @ model.get_buffer("a") @ model.x.double())
    assert (up - down) / (2 * epsilon) == pytest.approx(expected, rel=1e-12)


def run_round(
    methods: list[Spsa], make_round: MakeRound, number: int, in_time: set[int] | None = None
) -> list[Contribution]:
    """All work, those in time are merged by all."""
    contexts = [make_round(number, i, len(methods)) for i in range(len(methods))]
    payloads = [m.work(c).payload for m, c in zip(methods, contexts, strict=True)]
    listed = [
        Contribution(contexts[i].peer, payload)
        for i, payload in enumerate(payloads)
        if in_time is None or i in in_time
    ]
    for i, (method, context) in enumerate(zip(methods, contexts, strict=True)):
        if in_time is not None and i not in in_time:
            method.give_back(number, payloads[i])
        method.merge(context, listed)
    return listed


def test_work_beyond_the_window_rides_along_with_the_next_round(
    make_setup: MakeSetup, make_round: MakeRound
) -> None:
    """P3: three more probes while round 4 is overdue; round 5 carries them, once."""
    config = CONFIG.model_copy(update={"probes": None})
    method = Spsa(config, make_setup())
    context = make_round(4, 0)
    payload = method.work(context).payload
    expired = iter([False, False, False, True])
    method.overtime(dataclasses.replace(context, expired=lambda: next(expired)))
    method.merge(context, [Contribution(context.peer, payload)])
    carried = decode(method.work(make_round(5, 0)).payload)
    assert [(p.age, p.index) for p in carried] == [(0, 0), (1, 1), (1, 2), (1, 3)]
    again = decode(method.work(make_round(6, 0)).payload)
    assert [(p.age, p.index) for p in again] == [(0, 0)]


def test_a_fixed_number_of_probes_is_not_exceeded(
    make_setup: MakeSetup, make_round: MakeRound
) -> None:
    fixed = Spsa(CONFIG.model_copy(update={"probes": 2}), make_setup())
    assert fixed.goes_on is GoesOn.NEVER
    method = Spsa(CONFIG.model_copy(update={"probes": None, "probes_max": 1}), make_setup())
    assert method.goes_on is GoesOn.WHEN_OVERDUE
    method.work(make_round(4, 0))
    method.overtime(dataclasses.replace(make_round(4, 0), expired=lambda: False))
    assert all(p.age == 0 for p in decode(method.work(make_round(5, 0)).payload))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_peer_that_replays_the_ledger_has_the_same_bits(
    dtype: str, make_setup: MakeSetup, make_round: MakeRound
) -> None:
    """P1:
    1. Three peers train online, one often late. 2. A snapshot is taken on the way. 3. A newcomer
    replays everything, another one the snapshot and the tail.
    """
    online = [Spsa(CONFIG, make_setup(dtype), random.Random(i)) for i in range(3)]
    before = online[0].state_digest(5)
    ledger: list[list[Contribution]] = []
    for number in range(12):
        if number == 6:
            snapshot = {n: t.clone() for n, t in online[0].replicated_state().items()}
        late = {0, 1, 2} if number % 3 else {0, 2}
        ledger.append(run_round(online, make_round, number, late))
    newcomer, joiner = Spsa(CONFIG, make_setup(dtype)), Spsa(CONFIG, make_setup(dtype))
    joiner.load_replicated_state(snapshot)
    for number, listed in enumerate(ledger):
        newcomer.merge(make_round(number, 9), listed)
        if number >= 6:
            joiner.merge(make_round(number, 9), listed)
    digests = {m.state_digest(5) for m in [*online, newcomer, joiner]}
    assert len(digests) == 1
    assert before not in digests
    states = [m.replicated_state() for m in [*online, newcomer, joiner]]
    for name, tensor in states[0].items():
        assert all(torch.equal(tensor, other[name]) for other in states[1:]), name


def test_training_lowers_the_loss(make_setup: MakeSetup, make_round: MakeRound) -> None:
    methods = [Spsa(CONFIG, make_setup(), random.Random(i)) for i in range(2)]
    context = make_round(0, 0, 2)
    first = methods[0].work(context).loss
    for number in range(60):
        run_round(methods, make_round, number)
    last = methods[0].work(make_round(60, 0, 2)).loss
    assert first is not None
    assert last is not None
    assert last < first - 0.5


def test_a_probe_s_byte_is_the_slope_in_units(make_setup: MakeSetup, make_round: MakeRound) -> None:
    """On the quadratic, through the method itself: byte * 2**exponent is z'Ax up to one unit."""
    model = Quadratic(24)
    setup = dataclasses.replace(make_setup(), model=model, loss=lambda m, _: m())
    method = Spsa(CONFIG.model_copy(update={"unit_exponent": 2}), setup)
    context = make_round(3, 1)
    for probe in decode(method.work(context).payload):
        z = torch.zeros(24)
        key = seeds.probe_key(context.run, 3, context.peer, probe.index)
        setup.kernels.perturb(torch.zeros(24), 0, key, 1.0, z)
        slope = float(z.double() @ model.get_buffer("a") @ model.x.detach().double())
        assert abs(slope) < 127 * 4
        assert probe.value * 4 == pytest.approx(slope, abs=4.01)


def test_the_update_is_the_mean_over_probes(make_setup: MakeSetup, make_round: MakeRound) -> None:
    """P2, by hand in float64: theta - rate * unit / n * sum b s, up to the rounding of the step.
    Late probes move along the directions of the round that measured them."""
    method = Spsa(CONFIG, make_setup())
    context = make_round(7, 0)
    flat = torch.cat([w.tensor.flatten() for w in method._view.weights]).double()
    probes = [[Probe(j % 2 * 3, j, 10 * i + j - 9) for j in range(5)] for i in range(3)]
    listed = [Contribution(context.seats[i], encode(probes[i])) for i in range(3)]
    expected = flat.clone()
    for i in range(3):
        for probe in probes[i]:
            s = torch.zeros(len(flat))
            key = seeds.probe_key(context.run, 7 - probe.age, context.seats[i], probe.index)
            kernels_for(torch.device("cpu")).perturb(torch.zeros(len(flat)), 0, key, 1.0, s)
            expected -= 0.05 * 2.0**CONFIG.unit_exponent / 15 * probe.value * s.double()
    method.merge(context, listed)
    moved = torch.cat([w.tensor.flatten() for w in method._view.weights]).double()
    torch.testing.assert_close(moved - flat, expected - flat, rtol=1e-2, atol=1e-7)


def test_a_round_that_is_not_full_moves_less(make_setup: MakeSetup, make_round: MakeRound) -> None:
    """5 of 20 probes: a quarter of the mean's step. From 20 on, the mean."""
    moved = []
    for full, count in [(1, 5), (20, 5), (1, 25), (20, 25)]:
        method = Spsa(CONFIG.model_copy(update={"full_round": full}), make_setup())
        before = torch.cat([w.tensor.flatten() for w in method._view.weights])
        context = make_round(0, 0)
        payload = encode([Probe(0, j, j + 40) for j in range(count)])
        method.merge(context, [Contribution(context.peer, payload)])
        after = torch.cat([w.tensor.flatten() for w in method._view.weights])
        moved.append(float((after - before).norm()))
    assert moved[1] == pytest.approx(moved[0] / 4, rel=1e-2)
    assert moved[3] == moved[2]


def test_more_probes_than_a_batch_merge_piece_by_piece_as_whole(
    make_setup: MakeSetup, make_round: MakeRound, monkeypatch: pytest.MonkeyPatch
) -> None:
    """600 probes make three passes; and one flat vector moves like the separate tensors."""
    listed = [
        Contribution(
            make_round(0, 0).seats[1], encode([Probe(0, i, i % 200 - 100) for i in range(600)])
        )
    ]
    whole = Spsa(CONFIG, make_setup())
    monkeypatch.setattr(perturbed, "FLAT_BYTES", 0)
    pieces = Spsa(CONFIG, make_setup())
    for method in (whole, pieces):
        method.merge(make_round(0, 0), listed)
    assert whole.state_digest(1) == pieces.state_digest(1)


def test_rounds_without_news_change_nothing(make_setup: MakeSetup, make_round: MakeRound) -> None:
    method = Spsa(CONFIG, make_setup())
    before = {w.name: w.tensor.clone() for w in method._view.weights}
    method.merge(make_round(0, 0), [])
    nothing = encode([Probe(0, i, 0) for i in range(20)])
    method.merge(make_round(1, 0), [Contribution(make_round(1, 0).seats[0], nothing)])
    assert all(torch.equal(before[w.name], w.tensor) for w in method._view.weights)


def test_a_model_that_gives_nan_abstains(make_setup: MakeSetup, make_round: MakeRound) -> None:
    setup = make_setup()
    method = Spsa(CONFIG, setup)
    with torch.no_grad():
        next(setup.model.parameters())[0, 0] = math.nan
    for number in range(3):
        result = method.work(make_round(number, 0, 1))
        probes = decode(result.payload)
        assert result.loss is None
        assert [p.value for p in probes if p.age == 0] == [0] * 6
        method.merge(
            make_round(number, 0, 1), [Contribution(make_round(0, 0).peer, result.payload)]
        )


def test_a_window_ends_after_at_least_one_probe(
    make_setup: MakeSetup, make_round: MakeRound
) -> None:
    method = Spsa(SpsaConfig(learning_rate=Schedule(peak="0.1")), make_setup())
    assert method.weigh(method.work(make_round(0, 0)).payload) == 1
    calls = iter([False, False, True])
    base = make_round(1, 0)
    context = RoundContext(base.run, 1, base.peer, base.seats, lambda: next(calls))
    assert method.weigh(method.work(context).payload) == 3


def test_late_probes_ride_along_with_their_own_directions(
    make_setup: MakeSetup, make_round: MakeRound
) -> None:
    """P3: what was given back is offered again."""
    late, other = Spsa(CONFIG, make_setup(), random.Random(1)), Spsa(CONFIG, make_setup())
    run_round([late, other], make_round, 0, in_time={1})
    payload = late.work(make_round(1, 0, 2)).payload
    probes = decode(payload)
    assert [p.age for p in probes] == [0] * 6 + [1] * 6
    assert late.weigh(payload) == 12


def test_nothing_is_committed_twice_after_a_fork(
    make_setup: MakeSetup, make_round: MakeRound
) -> None:
    """1. Rounds 0 to 3 on the losing side. 2. The winning side holds our round 0, but not the rest.
    3. We rewind, merge the winners' rounds, and offer again what they lack, and only that.
    """
    me = Spsa(CONFIG, make_setup(), random.Random(1))
    start = {n: t.clone() for n, t in me.replicated_state().items()}
    payloads = []
    for number in range(4):
        context = make_round(number, 0, 1)
        payloads.append(me.work(context).payload)
        me.merge(context, [Contribution(context.peer, payloads[-1])])
    for number, payload in enumerate(payloads):
        me.give_back(number, payload)
    me.load_replicated_state(start)
    winners = make_round(0, 0, 2)
    me.merge(winners, [Contribution(winners.peer, payloads[0])])
    for number in range(1, 5):
        me.merge(make_round(number, 0, 2), [])
    offered = decode(me.work(make_round(5, 0, 2)).payload)
    assert [(5 - p.age, p.index) for p in offered if p.age] == [
        (origin, i) for origin in (3, 2, 1) for i in range(6)
    ]


def test_what_a_snapshot_holds_is_not_offered_again(
    make_setup: MakeSetup, make_round: MakeRound
) -> None:
    me = Spsa(CONFIG, make_setup(), random.Random(1))
    first, second = (me.work(make_round(number, 0)).payload for number in range(2))
    me.give_back(0, first)
    me.give_back(1, second)
    me.settled(0, first)
    offered = decode(me.work(make_round(2, 0)).payload)
    assert [p.age for p in offered] == [0] * 6 + [1] * 6


def test_a_second_try_at_a_round_uses_new_directions(
    make_setup: MakeSetup, make_round: MakeRound
) -> None:
    me = Spsa(CONFIG, make_setup(), random.Random(1))
    me.give_back(0, me.work(make_round(0, 0)).payload)
    again = decode(me.work(make_round(0, 0)).payload)
    assert [p.index for p in again] == list(range(6, 12))
    assert {p.age for p in again} == {0}


def test_the_backlog_survives_a_restart(make_setup: MakeSetup, make_round: MakeRound) -> None:
    """Killed after a payload was made, and after another was given back."""
    me = Spsa(CONFIG, make_setup(), random.Random(1))
    first = me.work(make_round(0, 0)).payload
    me.give_back(0, first)
    second = me.work(make_round(1, 0)).payload
    reborn = Spsa(CONFIG, make_setup(), random.Random(2))
    reborn.load_local_state(me.local_state())
    reborn.give_back(1, second)
    ages = [p.age for p in decode(reborn.work(make_round(2, 0)).payload)]
    assert ages == [0] * 6 + [1] * 6 + [2] * 6


def test_what_was_offered_in_another_life_is_not_lost(
    make_setup: MakeSetup, make_round: MakeRound
) -> None:
    """P3: the process was killed; the payload is on disk, and the ledger tells the unit."""
    before = Spsa(CONFIG, make_setup(), random.Random(1))
    before._exponent += 2  # as it was in round 0, when the run is that far
    payload = before.work(make_round(0, 0)).payload
    values = [p.value for p in decode(payload)]
    reborn = Spsa(CONFIG, make_setup(), random.Random(2))
    reborn.give_back(0, payload)
    assert len(decode(reborn.work(make_round(0, 0)).payload)) == 6, "the unit is not known yet"
    reborn._exponent += 2
    reborn.merge(make_round(0, 0), [])
    reborn._exponent -= 2
    reborn.give_back(0, payload)
    late = [p.value for p in decode(reborn.work(make_round(1, 0)).payload) if p.age]
    assert late == [max(-127, min(127, 4 * value)) for value in values]


def test_late_bytes_are_coded_in_the_unit_of_the_day(
    make_setup: MakeSetup, make_round: MakeRound
) -> None:
    me = Spsa(CONFIG, make_setup(), random.Random(1))
    payload = me.work(make_round(0, 0)).payload
    values = [p.value for p in decode(payload)]
    me.give_back(0, payload)
    me._exponent += 2
    late = [p.value for p in decode(me.work(make_round(1, 0)).payload) if p.age]
    assert late == [round(Fraction(v, 4)) for v in values]


def test_slots_are_shared_out(make_setup: MakeSetup, make_round: MakeRound) -> None:
    methods = [Spsa(CONFIG, make_setup()) for _ in range(3)]
    seen: list[int] = []
    for number in range(3):
        for i, method in enumerate(methods):
            context = make_round(number, i)
            seen += [method._slot(context, j) for j in range(6)]
        run_round(methods, make_round, number)
    assert sorted(seen) == list(range(54))


def test_private_data_has_its_own_order(make_setup: MakeSetup, make_round: MakeRound) -> None:
    method = Spsa(CONFIG, make_setup(private=True))
    assert [method._slot(make_round(0, 1), j) for j in (0, 1, 7)] == [0, 1, 2]
    run_round([method], make_round, 0)
    assert method._queue.frontier == 0


@pytest.mark.parametrize("break_it", ["shape", "dtype", "exponent", "slots"])
def test_a_broken_snapshot_leaves_everything_as_it_was(
    break_it: str, make_setup: MakeSetup
) -> None:
    method = Spsa(CONFIG, make_setup())
    before = method.state_digest(3)
    state = {n: t.clone() for n, t in method.replicated_state().items()}
    name = next(iter(state))
    state[name] += 1
    match break_it:
        case "shape":
            state[name] = state[name][:-1]
        case "dtype":
            state[name] = state[name].double()
        case "exponent":
            state["spsa.exponent"] += 100
        case _:
            state["spsa.slots"] -= 1
    with pytest.raises(ValueError, match=r"\w"):
        method.load_replicated_state(state)
    assert method.state_digest(3) == before
