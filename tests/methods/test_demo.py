"""DeMo and its relatives: against what they are in their limits, and what each keeps for itself."""

from dataclasses import dataclass, replace
from fractions import Fraction
from math import prod
from typing import get_args

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from node.methods.base import Contribution, RoundContext
from node.methods.demo import Demo
from node.methods.demo_config import DemoConfig
from node.methods.parts.dct import basis
from node.methods.parts.feedback import KEPT_ROUNDS
from node.methods.parts.header import decode_header
from node.methods.parts.masks import Mask
from node.methods.parts.outgoing import Outgoing
from node.methods.parts.tiles import Tiles
from node.training.losses import Batch, batch_loss
from tests.methods.conftest import MakeRound, MakeSetup
from tests.methods.inner_outer import contribution, gradient, sent, theta, waiting
from tests.methods.making import peer
from tests.training import modules

REPLICATORS = ("dct", *get_args(Mask))
LR = 0.01


def configured(**changes: object) -> DemoConfig:
    fields: dict[str, object] = {
        "name": "demo",
        "learning_rate": {"peak": str(LR)},
        "one_in": 4,
        "kept": 64,
        "gradient": {"batches": 1, "clip_norm": None},
    }
    return DemoConfig.model_validate({**fields, **changes})


def one_round(methods: list[Demo], make_round: MakeRound, number: int) -> list[Contribution]:
    contexts = [make_round(number, i, len(methods)) for i in range(len(methods))]
    made = [contribution(m, c) for m, c in zip(methods, contexts, strict=True)]
    for method, context in zip(methods, contexts, strict=True):
        method.merge(context, made)
    return made


# In the limits


@pytest.mark.parametrize("momentum", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("fields", [{"replicator": "dct", "kept": 4096}, {"replicator": "full"}])
def test_with_everything_sent_it_is_sign_sgd_on_the_mean_gradient(
    make_setup: MakeSetup, make_round: MakeRound, momentum: float, fields: dict[str, object]
) -> None:
    """METHODS C: for any momentum, because nothing waits. Up to what 8 bits leave open."""
    config = configured(values="int8", momentum=momentum, **fields)
    methods, reference = [Demo(config, make_setup()) for _ in range(2)], make_setup()
    sizes = methods[0]._weights.sizes
    for number in range(3):
        start = theta(methods[0])
        torch.nn.utils.vector_to_parameters(start, list(reference.model.parameters()))
        mean = (gradient(reference, 2 * number) + gradient(reference, 2 * number + 1)) / 2
        one_round(methods, make_round, number)
        moved = theta(methods[0]) - start
        for g, m in zip(torch.split(mean, sizes), torch.split(moved, sizes), strict=True):
            clear = g.abs() > 0.05 * g.abs().max()
            assert clear.any()
            torch.testing.assert_close(m[clear], -LR * g[clear].sign(), rtol=1e-4, atol=1e-6)
        for g, rest in zip(
            torch.split(mean, sizes),
            torch.split(waiting(methods[0]), methods[0]._layout.sizes),
            strict=True,
        ):
            assert rest.abs().max() < 0.1 * max(g.norm(), 1e-3)


@pytest.mark.parametrize("fields", [{"replicator": "dct", "kept": 4096}, {"replicator": "full"}])
def test_with_everything_sent_nothing_waits(
    make_setup: MakeSetup, make_round: MakeRound, fields: dict[str, object]
) -> None:
    """METHODS C: also of signs, which do not say how large they were."""
    me = Demo(configured(**fields), make_setup())
    for number in range(2):
        made = one_round([me], make_round, number)
        assert sent(me, made[0], number).any()
        assert not waiting(me).any()


@pytest.mark.parametrize("values", ["sign", "int8"])
@pytest.mark.parametrize("replicator", ["striding", "slicing", "random"])
def test_one_in_one_is_full(
    make_setup: MakeSetup, make_round: MakeRound, replicator: str, values: str
) -> None:
    """METHODS D, to the bit."""
    ends = []
    for fields in ({"replicator": replicator, "one_in": 1}, {"replicator": "full"}):
        methods = [Demo(configured(values=values, **fields), make_setup()) for _ in range(2)]
        for number in range(3):
            one_round(methods, make_round, number)
        ends.append(theta(methods[0]))
    assert torch.equal(*ends)


@pytest.mark.parametrize("values", ["sign", "int8"])
@pytest.mark.parametrize("replicator", REPLICATORS)
def test_a_constant_gradient_is_sent_in_full(
    make_setup: MakeSetup, replicator: str, values: str
) -> None:
    """METHODS C and D: with momentum 1, all that was sent and what waits is all that came."""
    me = Demo(configured(replicator=replicator, values=values, kept=1024), make_setup())
    constant = torch.linspace(-1, 1, me._layout.size)
    total = torch.zeros_like(constant)
    for number in range(9):
        me._feedback.add(number, 1.0, lambda values: values.add_(constant))
        one = Contribution(peer(0), b"", me._encode(number))
        total += sent(me, one, number)
        me._feedback.committed(number, one.attachment)
    assert (total != 0).float().mean() > 0.9, "everything had its turn"
    torch.testing.assert_close(total + waiting(me), 9 * constant, rtol=1e-4, atol=1e-4)


def test_it_is_the_method_of_the_paper(make_setup: MakeSetup, make_round: MakeRound) -> None:
    """METHODS C, step by step and in float64, with delta in the weights' own space and one peer."""
    config = configured(kept=40, tile=8, momentum=0.9)
    me, reference = Demo(config, make_setup()), make_setup()
    shapes, sizes = me._weights.shapes, me._weights.sizes
    at = theta(me)
    deltas = [torch.zeros(shape, dtype=torch.float64) for shape in shapes]
    for number in range(4):
        torch.nn.utils.vector_to_parameters(at, list(reference.model.parameters()))
        new = gradient(reference, number)
        for delta, g, p in zip(
            deltas, torch.split(new, sizes), torch.split(at, sizes), strict=True
        ):
            delta.mul_(0.9).add_(g.view(delta.shape))
            matrix = delta.view(delta.shape[0], -1)
            tiles, u = Tiles.of(delta.shape, 8, 40), torch.zeros_like(matrix)
            for i in range(0, matrix.shape[0], tiles.tall):
                for j in range(0, matrix.shape[1], tiles.wide):
                    _send(matrix[i : i + tiles.tall, j : j + tiles.wide], tiles, u, i, j)
            p -= LR * u.sign().flatten().float()
        one_round([me], make_round, number)
        assert (theta(me) != at).float().mean() < 0.01, "signs near 0 may differ"
        assert (theta(me) - at).abs().max() < 2.1 * LR * (number + 1)
        me._weights.theta.copy_(at)  # so that both go on from the same place
        me._weights.show()


def _send(block: Tensor, tiles: Tiles, u: Tensor, i: int, j: int) -> None:
    """One tile, padded with zeros: its signs go into u, and what was sent is taken off."""
    d, e = basis(tiles.tall), basis(tiles.wide)
    padded = torch.zeros(tiles.tall, tiles.wide, dtype=torch.float64)
    padded[: block.shape[0], : block.shape[1]] = block
    c = (d @ padded @ e.T).flatten()
    sparse = torch.zeros_like(c)
    largest = c.abs().topk(tiles.k).indices
    sparse[largest] = c[largest]
    sparse = sparse.view(tiles.tall, tiles.wide)
    inside = (slice(None, block.shape[0]), slice(None, block.shape[1]))
    u[i : i + tiles.tall, j : j + tiles.wide] = (d.T @ sparse.sign() @ e)[inside]
    block -= (d.T @ sparse @ e)[inside]


@pytest.mark.parametrize("values", ["sign", "int8"])
@pytest.mark.parametrize("average", ["senders", "peers"])
@pytest.mark.parametrize("replicator", ["dct", "random", "slicing"])
def test_the_update_is_the_mean_of_what_was_sent(
    make_setup: MakeSetup, make_round: MakeRound, replicator: str, average: str, values: str
) -> None:
    """By tokens, of which one peer says that it saw three times as many; with decay."""
    config = configured(
        replicator=replicator,
        average=average,
        values=values,
        update="magnitude",
        weight_decay="0.5",
        tile=8,
        kept=6,
    )
    methods = [Demo(config, make_setup()) for _ in range(2)]
    made = [contribution(m, make_round(5, i, 2)) for i, m in enumerate(methods)]
    header = decode_header(made[1].payload, config.inner)[0]
    made[1] = replace(made[1], payload=replace(header, tokens=3 * header.tokens).encode())
    reader = Demo(config, make_setup())
    coefficients = [sent(reader, one, 5) for one in made]  # as everybody decodes them
    by: Tensor | float = 4.0
    if replicator == "dct" and average == "senders":
        by = sum(w * (c != 0) for w, c in zip((1, 3), coefficients, strict=True))
        assert ((by == 1) | (by == 3)).any()
        assert (by == 4).any()
        by = by.clamp(min=1)
    mean = (coefficients[0] + 3 * coefficients[1]) / by
    start = theta(reader)
    reader.merge(make_round(5, 0, 2), made)
    parts = zip(torch.split(mean, reader._layout.sizes), reader._layout.tensors, strict=True)
    moves = torch.cat([_back(c, of) if isinstance(of, Tiles) else c for c, of in parts])
    wanted = start * (1 - LR * 0.5) - LR * moves
    assert moves.abs().max() > 0.01
    largest = max(float(c.abs().max()) for c in coefficients)
    torch.testing.assert_close(theta(reader), wanted, rtol=0, atol=1e-4 * LR * largest + 1e-7)


def test_signs_are_votes(make_setup: MakeSetup, make_round: MakeRound) -> None:
    """Ten times as large is no more than one of two: they cancel, and sign(0) = 0."""
    methods = [Demo(configured(replicator="full"), make_setup()) for _ in range(2)]
    for method, factor in zip(methods, (1.0, -10.0), strict=True):
        method._feedback.values.copy_(torch.linspace(-1, 1, method._layout.size) * factor)
    payload = methods[0].work(make_round(0, 0, 2)).payload
    methods[0]._feedback.values.copy_(methods[1]._feedback.values / -10)
    made = [Contribution(peer(i), payload, m._encode(0)) for i, m in enumerate(methods)]
    start = theta(methods[1])
    methods[1].merge(make_round(0, 1, 2), made)
    assert torch.equal(theta(methods[1]), start)


def _back(coefficients: Tensor, of: Tiles) -> Tensor:
    """The inverse transform, in floats."""
    d, e = basis(of.tall).float(), basis(of.wide).float()
    x = d.T @ coefficients.view(of.down, of.across, of.tall, of.wide) @ e
    x = x.transpose(1, 2).reshape(of.down * of.tall, of.across * of.wide)
    return x[: of.rows, : of.columns].reshape(-1)


@pytest.mark.parametrize("replicator", REPLICATORS)
def test_it_learns(make_setup: MakeSetup, make_round: MakeRound, replicator: str) -> None:
    config = configured(replicator=replicator, momentum=0.9)
    methods = [Demo(config, make_setup()) for _ in range(2)]
    losses = []
    for number in range(24):
        contexts = [make_round(number, i, 2) for i in range(2)]
        done = [m.work(c) for m, c in zip(methods, contexts, strict=True)]
        made = [Contribution(peer(i), d.payload, d.attachment) for i, d in enumerate(done)]
        for method, context in zip(methods, contexts, strict=True):
            method.merge(context, made)
        losses.append(done[0].loss)
    assert losses[0] is not None
    assert losses[-1] is not None
    assert losses[-1] < losses[0] - 0.8


# Any model


@dataclass
class Slots:
    private: bool = False

    def batch(self, slot: int) -> Batch:
        return modules.batch(slot)

    def held_out(self) -> list[Batch]:
        return [modules.batch(0)]


@pytest.mark.parametrize("replicator", REPLICATORS)
def test_every_kind_of_parameter_trains(
    make_setup: MakeSetup, make_round: MakeRound, replicator: str
) -> None:
    """P1: odd shapes, none at all, tied and frozen ones. What has no gradient does not move."""
    setups = [replace(make_setup(), model=modules.odd(), data=Slots()) for _ in range(2)]
    methods = [Demo(configured(replicator=replicator, tile=5, kept=3), s) for s in setups]
    before = {n: p.detach().clone() for n, p in setups[0].model.named_parameters()}
    for number in range(5):
        one_round(methods, make_round, number)
    assert methods[0].state_digest(3) == methods[1].state_digest(3)
    moved = {n for n, p in setups[0].model.named_parameters() if not torch.equal(p, before[n])}
    still = {n for n in before if n.startswith("frozen.")} | {"empty", "unused"}
    if replicator in ("random", "striding", "slicing"):
        assert moved <= before.keys() - still
        moved |= {"gain"}  # one number has its turn one round in four
    assert moved == before.keys() - still


def test_a_gradient_that_is_not_finite_moves_nobody(
    make_setup: MakeSetup, make_round: MakeRound
) -> None:
    """P3: and what waited still waits."""
    me = Demo(configured(gradient={"batches": 4}), make_setup())
    one_round([me], make_round, 0)
    broken = replace(make_setup(), loss=lambda model, batch: batch_loss(model, batch) * torch.nan)
    me._trainer = me._make_trainer(broken)
    before, start = waiting(me), theta(me)
    made = one_round([me], make_round, 1)
    header = decode_header(made[0].payload, me.config.inner)[0]
    assert (header.steps, header.tokens) == (0, 0)
    assert torch.equal(theta(me), start)
    torch.testing.assert_close(waiting(me), before * 0.999, rtol=0, atol=0)


# What each keeps for itself


@pytest.mark.parametrize("replicator", ["dct", "striding"])
def test_magnitudes_of_signs_outlive_the_process(
    make_setup: MakeSetup, make_round: MakeRound, replicator: str
) -> None:
    """P3: 1. A peer hands in its work, and is killed. 2. The round holds it. 3. It does not. 4. It
    was held twice.
    """
    config = configured(replicator=replicator)
    me, reborn = Demo(config, make_setup()), Demo(config, make_setup())
    one = contribution(me, make_round(0, 0))
    before = waiting(me)
    assert sent(me, one).any()
    reborn.load_local_state({name: t.clone() for name, t in me.local_state().items()})
    for _ in range(2):
        reborn.settled(0, one.payload, one.attachment)
        assert torch.equal(waiting(reborn), before - sent(me, one))
        assert not waiting(reborn)[sent(me, one) != 0].any(), "all of it, not a mean of it"
    again = Demo(config, make_setup())
    again.load_local_state({name: t.clone() for name, t in reborn.local_state().items()})
    for _ in range(2):
        again.give_back(0, one.payload, one.attachment)
        assert torch.equal(waiting(again), before)


def test_what_a_life_before_sent_later_does_not_wait_in_this_one(
    make_setup: MakeSetup, make_round: MakeRound
) -> None:
    """Killed after round 1; saved after round 0. What round 1 holds is not sent again."""
    before, reborn = (Demo(configured(), make_setup()) for _ in range(2))
    first = contribution(before, make_round(0, 0))
    saved = {name: tensor.clone() for name, tensor in before.local_state().items()}
    before.merge(make_round(0, 0), [first])
    second = contribution(before, make_round(1, 0))
    reborn.load_local_state(saved)
    for number, one in enumerate((first, second)):
        reborn.merge(make_round(number, 0), [one])
    positions, _ = reborn._sent_in(1, second.attachment)
    assert not waiting(reborn)[positions].any()
    assert waiting(reborn).any()
    assert reborn.state_digest(1) != before.state_digest(1)
    before.merge(make_round(1, 0), [second])
    assert reborn.state_digest(1) == before.state_digest(1)


def test_the_newest_magnitudes_are_kept() -> None:
    """P8: as many as fit, at least two, and none that no round can list any more."""
    outgoing = Outgoing(room=10)
    for number in range(4):
        outgoing.keep(number, b"%d" % number, torch.full((4,), float(number)))
    found = [outgoing.find(number, b"%d" % number) for number in range(4)]
    assert [one is None for one in found] == [True, True, False, False]
    assert outgoing.find(2, b"3") is None
    outgoing.keep(4, b"4", torch.ones(100))
    assert outgoing.find(3, b"3") is not None
    roomy = Outgoing(room=1000)
    for number in (3, 4, 3 + KEPT_ROUNDS):
        roomy.keep(number, b"5", torch.ones(1))
    assert roomy.find(3, b"5") is None
    assert roomy.find(4, b"5") is not None
    other = Outgoing(room=10)
    other.load(outgoing.state(), torch.device("cpu"))
    kept = other.find(4, b"4")
    assert kept is not None
    assert torch.equal(kept, torch.ones(100))
    assert list(other.state()) == list(outgoing.state())


@pytest.mark.parametrize(
    "broken",
    [
        {"outgoing.updates": None},
        {"outgoing.values": None},
        {"outgoing.updates": torch.zeros(1, 2, dtype=torch.int64)},
        {"outgoing.updates": torch.tensor([[0, 1, 1]])},
        {"outgoing.updates": torch.tensor([[0, 1, -1], [0, 2, 3]])},
        {"outgoing.values": torch.zeros(2, 1)},
        {"outgoing.values": torch.tensor([0.0, torch.nan])},
        {"outgoing.values": torch.zeros(2, dtype=torch.float64)},
    ],
)
def test_magnitudes_that_are_not_ours_are_refused(broken: dict[str, Tensor | None]) -> None:
    outgoing = Outgoing(room=10)
    outgoing.keep(0, b"0", torch.ones(2))
    state = {k: v for k, v in {**outgoing.state(), **broken}.items() if v is not None}
    with pytest.raises(ValueError, match=r"outgoing\."):
        outgoing.load(state, torch.device("cpu"))
    assert outgoing.find(0, b"0") is not None


def test_of_older_signs_what_everybody_decodes_is_taken_off(
    make_setup: MakeSetup, make_round: MakeRound
) -> None:
    me = Demo(configured(), make_setup())
    one = contribution(me, make_round(0, 0))
    before = waiting(me)
    me._outgoing = Outgoing(room=0)
    me.merge(make_round(0, 0), [one])
    decoded = sent(Demo(configured(), make_setup()), one)
    assert decoded.any()
    torch.testing.assert_close(waiting(me), before - decoded, rtol=0, atol=1e-7)


# The round


def test_a_round_s_gradient_ends_with_its_time(make_setup: MakeSetup) -> None:
    asked = iter([False, False, True])
    me = Demo(configured(gradient={"batches_max": 8}), make_setup())
    members = (peer(0),)
    done = me.work(RoundContext(bytes(range(32)), 0, peer(0), members, lambda: next(asked)))
    header = decode_header(done.payload, me.config.inner)[0]
    assert (header.steps, header.batches) == (3, 3)
    done = me.work(RoundContext(bytes(range(32)), 0, peer(0), members, lambda: False))
    assert decode_header(done.payload, me.config.inner)[0].batches == 8


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tile": 8, "kept": 65}, "square of `tile`"),
        ({"weight_decay": "100"}, "weight_decay"),
        ({"one_in": 0}, "one_in"),
        ({"tile": 65}, "tile"),
        ({"replicator": "none"}, "replicator"),
        ({"gradient": {"batches": 0}}, "batches"),
        ({"inner": {"steps": 1}}, "inner"),
    ],
)
def test_settings_that_make_no_sense_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        configured(**fields)


def test_the_largest_update_is_known_before(make_setup: MakeSetup) -> None:
    shapes = [(50_257, 64), (8191,), ()]
    config = configured(kept=4)
    chunks = 786 * 44 / 8 + 786 * 4 / 8
    assert chunks < config.attachment_bytes_max(shapes) < chunks + 128 * 8 / 8 + 40
    assert Fraction(config.learning_rate.peak) == Fraction(1, 100)
    assert configured(replicator="full", values="int8").attachment_bytes_max(shapes) == (
        1 + sum(2 + prod(shape) for shape in shapes)
    )
