"""DiLoCo against what it should be: PyTorch's own optimizers, in the limits where they meet."""

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from node.methods.base import Contribution
from node.methods.diloco import Diloco
from node.methods.diloco_config import DilocoConfig
from node.methods.parts.dense_codec import decode, encode
from node.methods.parts.header import decode_header
from node.methods.parts.outer_step import TINY, outer_step
from tests.methods.conftest import MakeRound, MakeSetup
from tests.methods.inner_outer import contribution, gradient, sent, theta
from tests.methods.making import peer

SGD = {"name": "sgd", "lr": 0.05}
MOVES = {"learning_rate": {"peak": "1"}, "momentum": "0"}  # to the peers' average


def configured(steps: int, optimizer: dict[str, object], **changes: object) -> DilocoConfig:
    inner = {"steps": steps, "optimizer": optimizer}
    return DilocoConfig.model_validate({"name": "diloco", "inner": inner, **changes})


def test_one_inner_step_is_synchronous_sgd(make_setup: MakeSetup, make_round: MakeRound) -> None:
    """METHODS E1: H = 1, inner SGD, rate 1, no momentum: the mean gradient of all batches."""
    methods = [Diloco(configured(1, SGD, **MOVES), make_setup()) for _ in range(3)]
    reference = make_setup()
    at = torch.cat([p.detach().reshape(-1).clone() for p in reference.model.parameters()])
    for number in range(4):
        contexts = [make_round(number, i) for i in range(3)]
        mean = sum(gradient(reference, 3 * number + seat) for seat in range(3)) / 3
        assert isinstance(mean, Tensor)
        at -= 0.05 * mean
        torch.nn.utils.vector_to_parameters(at, list(reference.model.parameters()))
        made = [contribution(m, c) for m, c in zip(methods, contexts, strict=True)]
        for method, context in zip(methods, contexts, strict=True):
            method.merge(context, made)
        torch.testing.assert_close(theta(methods[0]), at, rtol=0, atol=2e-7)


def test_alone_it_is_the_inner_optimizer(make_setup: MakeSetup, make_round: MakeRound) -> None:
    """METHODS E1: one peer, rate 1, no momentum."""
    adamw: dict[str, object] = {"name": "adamw", "lr": 0.01}
    me = Diloco(configured(3, adamw, **MOVES), make_setup())
    reference = make_setup()
    inner = reference.inner(configured(3, adamw).inner)
    for number in range(3):
        one = contribution(me, make_round(number, 0, 1))
        me.merge(make_round(number, 0, 1), [one])
        inner.work(number, iter(range(3 * number, 3 * number + 3)), lambda: False)
        alone = torch.cat([p.detach().reshape(-1) for p in reference.model.parameters()])
        torch.testing.assert_close(theta(me), alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mu", ["0", "0.5", "0.9"])
def test_the_outer_step_is_pytorch_s_nesterov(
    make_setup: MakeSetup, make_round: MakeRound, mu: str
) -> None:
    config = configured(2, SGD, learning_rate={"peak": "0.7"}, momentum=mu)
    methods = [Diloco(config, make_setup()) for _ in range(2)]
    at = torch.nn.Parameter(theta(methods[0]))
    outer = torch.optim.SGD([at], lr=0.7, momentum=float(mu), nesterov=mu != "0")
    for number in range(5):
        contexts = [make_round(number, i, 2) for i in range(2)]
        made = [contribution(m, c) for m, c in zip(methods, contexts, strict=True)]
        at.grad = (sent(methods[0], made[0]) + sent(methods[0], made[1])) / 2
        outer.step()
        for method, context in zip(methods, contexts, strict=True):
            method.merge(context, made)
        torch.testing.assert_close(theta(methods[0]), at.detach(), rtol=1e-6, atol=1e-6)


def test_contributions_count_by_their_tokens(make_setup: MakeSetup, make_round: MakeRound) -> None:
    """One said that it saw three times as many as the other."""
    config = configured(1, SGD, **MOVES)
    methods = [Diloco(config, make_setup()) for _ in range(2)]
    made = [contribution(m, make_round(0, i, 2)) for i, m in enumerate(methods)]
    header = decode_header(made[1].payload, config.inner)[0]
    payload = replace(header, tokens=3 * header.tokens).encode()
    made[1] = Contribution(peer(1), payload, made[1].attachment)
    wanted = theta(methods[0])
    wanted -= (sent(methods[0], made[0]) + 3 * sent(methods[0], made[1])) / 4
    methods[0].merge(make_round(0, 0, 2), made)
    torch.testing.assert_close(theta(methods[0]), wanted, rtol=0, atol=1e-7)


def test_the_momentum_is_part_of_what_all_hold(
    make_setup: MakeSetup, make_round: MakeRound
) -> None:
    """P1: a flipped bit in it is found, and a snapshot without one of its shape is refused."""
    me = Diloco(configured(2, SGD), make_setup())
    me.merge(make_round(0, 0, 1), [contribution(me, make_round(0, 0, 1))])
    before = me.state_digest(5)
    momentum = me.replicated_state()["outer.momentum"]
    assert momentum.any()
    state = {name: tensor.clone() for name, tensor in me.replicated_state().items()}
    with pytest.raises(ValueError, match=r"outer\.momentum"):
        me.load_replicated_state({**state, "outer.momentum": momentum[:1].clone()})
    assert me.state_digest(5) == before
    momentum[7] += 1
    assert me.state_digest(5) != before
    me.load_replicated_state(state)
    assert me.state_digest(5) == before


def test_muon_inside_is_muloco(make_setup: MakeSetup, make_round: MakeRound) -> None:
    config = configured(4, {"name": "muon", "lr": 0.02}, value_bits=4, feedback_decay=0.9)
    me = Diloco(config, make_setup())
    losses = []
    for number in range(12):
        done = me.work(make_round(number, 0, 1))
        losses.append(done.loss)
        me.merge(make_round(number, 0, 1), [Contribution(peer(0), done.payload, done.attachment)])
    assert losses[0] is not None
    assert losses[-1] is not None
    assert losses[-1] < losses[0] - 0.5


def test_penalty_and_clip_are_those_of_co2(make_setup: MakeSetup, make_round: MakeRound) -> None:
    """METHODS H: the average over Lambda enters the momentum, of which each element is limited."""
    config = configured(2, SGD, momentum="0.5", gap_penalty="2", momentum_clip="0.002")
    me = Diloco(config, make_setup())
    at, m = theta(me), torch.zeros(me._size)
    limited = 0
    for number in range(4):
        one = contribution(me, make_round(number, 0, 1))
        average = sent(me, one) / 2
        m = (0.5 * m + average).clamp(-0.002, 0.002)
        limited += int((m.abs() == m.abs().max()).sum() > 1)
        at -= 0.7 * (average + 0.5 * m)
        me.merge(make_round(number, 0, 1), [one])
        torch.testing.assert_close(theta(me), at, rtol=1e-6, atol=1e-6)
    assert limited == 4, "some elements are at the limit"


@pytest.mark.parametrize(
    "fields",
    [
        {"gap_penalty": "0.5"},
        {"momentum_clip": "1e-12"},
        {"momentum_clip": "1", "momentum": "0"},
    ],
)
def test_penalties_that_lead_nowhere_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(fields))):
        configured(1, SGD, **fields)


def test_what_would_be_subnormal_is_nothing() -> None:
    """Some devices flush such numbers, others keep them: weights must not depend on it."""
    config = configured(1, SGD, momentum="0.5")
    layout = config.layout([3])
    theta, momentum = torch.zeros(3), torch.tensor([3 * TINY, 2.0**-126, 2.0**-140])
    nothing = decode(layout, encode(layout, [torch.zeros(3)]))
    outer_step(theta, momentum, [nothing], [Fraction(1)], Fraction(1), Fraction(1, 2))
    assert momentum.tolist() == [1.5 * TINY, 0.0, 0.0]
    assert theta.tolist() == [0.0, 0.0, 0.0]
    assert not theta.signbit().any()


@pytest.mark.parametrize("momentum", ["1", "0.0001", "nan", "-0.1"])
def test_a_momentum_that_leads_nowhere_is_refused(momentum: str) -> None:
    with pytest.raises(ValidationError, match="momentum"):
        configured(1, SGD, momentum=momentum)
