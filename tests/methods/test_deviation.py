"""Steps that go on while a round is exchanged: in the limits, as if there were no exchange."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from node.methods.base import GoesOn, RoundContext
from node.methods.diloco import Diloco
from node.methods.diloco_config import DilocoConfig
from node.methods.parts.deviation import Deviation
from node.methods.parts.header import decode_header
from node.methods.parts.setup import Setup
from node.methods.parts.shared import SharedWeights
from node.training.inner import InnerReport
from node.training.inner_config import InnerSchedule
from node.training.losses import Batch
from tests.methods.conftest import MakeRound, MakeSetup
from tests.methods.inner_outer import contribution, dealt, go_on, theta

ADAMW = {"name": "adamw", "lr": 0.01}
SGD = {"name": "sgd", "lr": 0.05}


def configured(optimizer: dict[str, object], steps: int = 3, **changes: object) -> DilocoConfig:
    """Moves to the peers' average; nothing is rounded away."""
    fields = {"learning_rate": {"peak": "1"}, "momentum": "0", "overlap": True} | changes
    inner = {"steps": steps, "optimizer": optimizer}
    return DilocoConfig.model_validate({"name": "diloco", "inner": inner, **fields})


def rounds(
    methods: Sequence[Diloco], make_round: MakeRound, ahead: Sequence[int], count: int
) -> list[Tensor]:
    """Theta after each round; peer i takes `ahead[i]` steps of the next one meanwhile, is
    interrupted, and takes as many again.
    """
    seen = []
    for number in range(count):
        contexts = [make_round(number, i, len(methods)) for i in range(len(methods))]
        made = [contribution(m, c) for m, c in zip(methods, contexts, strict=True)]
        for method, context, steps in zip(methods, contexts, ahead, strict=True):
            go_on(method, context, steps)
            go_on(method, context, steps)
        for method, context in zip(methods, contexts, strict=True):
            method.merge(context, made)
        seen.append(theta(methods[0]))
    return seen


def shown(method: Diloco) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in method._trainer._model.parameters()])


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_alone_it_is_the_inner_optimizer(
    ahead: int, make_setup: MakeSetup, make_round: MakeRound
) -> None:
    """No step is lost or taken twice, however they fall. Even and odd slots take turns."""
    config = configured(ADAMW)
    falling = InnerSchedule(decay="linear", decay_rounds=4)
    inner_config = config.inner.model_copy(update={"schedule": falling})
    config = config.model_copy(update={"inner": inner_config})
    me, reference = Diloco(config, make_setup()), make_setup()
    inner = reference.inner(inner_config)
    for number, at in enumerate(rounds([me], make_round, [ahead], 4)):
        slots = [2 * (3 * (number // 2) + i) + number % 2 for i in range(3)]
        inner.work(number, iter(slots), lambda: False)
        alone = torch.cat([p.detach().reshape(-1) for p in reference.model.parameters()])
        torch.testing.assert_close(at, alone, rtol=0, atol=1e-6)


def test_a_constant_gradient_cannot_tell(make_setup: MakeSetup, make_round: MakeRound) -> None:
    """Only what the others did meanwhile is missing from the steps ahead, and here that changes
    no gradient: no round comes out otherwise.
    """

    def linear(model: nn.Module, batch: Batch) -> Tensor:
        return sum((p.sum() for p in model.parameters()), start=torch.zeros(()))

    def trained(overlap: bool) -> list[Tensor]:
        config = configured(SGD, overlap=overlap, momentum="0.5", learning_rate={"peak": "0.7"})
        setups = [replace(make_setup(), loss=linear) for _ in range(2)]
        return rounds([Diloco(config, setup) for setup in setups], make_round, [1, 2], 4)

    for ours, plain in zip(trained(True), trained(False), strict=True):
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-6)


def test_the_others_moves_come_on_top(make_setup: MakeSetup, make_round: MakeRound) -> None:
    """A step ahead is taken from where the own ones led, and lands on the new theta in full."""
    config = configured(SGD, steps=2)
    mine, theirs = (Diloco(config, make_setup()) for _ in range(2))
    contexts = [make_round(0, i, 2) for i in range(2)]
    made = [contribution(m, c) for m, c in zip((mine, theirs), contexts, strict=True)]
    start = shown(mine)
    assert not torch.equal(start, theta(mine)), "its own move was applied at once"
    go_on(mine, contexts[0], steps=1)
    moved = start - shown(mine)
    assert moved.any()
    mine.merge(contexts[0], made)
    assert torch.equal(shown(mine), theta(mine)), "what is looked at between rounds is theta"
    assert mine._deviation is not None
    mine._deviation.resume()
    torch.testing.assert_close(theta(mine) - shown(mine), moved, rtol=0, atol=1e-6)


def until(context: RoundContext, steps: int) -> RoundContext:
    """Its window is over after so many steps."""
    left = iter(range(steps - 1))
    return replace(context, expired=lambda: next(left, None) is None)


def test_no_batch_is_seen_twice_at_any_pace(make_setup: MakeSetup, make_round: MakeRound) -> None:
    """Three peers, each round at another pace, before and behind its beginning."""
    seen: list[int] = []

    def watched(setup: Setup) -> Setup:
        batch = setup.data.batch

        def looked_up(slot: int) -> Batch:
            seen.append(slot)
            return batch(slot)

        setup.data.batch = looked_up  # type: ignore[method-assign]
        return setup

    config = configured(SGD)
    inner = config.inner.model_copy(update={"steps": None, "steps_max": 9})
    config = config.model_copy(update={"inner": inner})
    methods = [Diloco(config, watched(make_setup())) for _ in range(3)]
    paces = [[(1, 4), (3, 0), (2, 1)], [(5, 0), (1, 0), (1, 2)], [(2, 2), (2, 5), (4, 1)]]
    for number, pace in enumerate(paces * 2):
        contexts = [make_round(number, i) for i in range(3)]
        made = []
        for method, context, (steps, ahead) in zip(methods, contexts, pace, strict=True):
            made.append(contribution(method, until(context, steps)))
            go_on(method, context, ahead)
        for method, context in zip(methods, contexts, strict=True):
            method.merge(context, made)
    assert len(seen) == len(set(seen))
    last = [make_round(2 * len(paces), i) for i in range(3)]
    made = [contribution(m, c) for m, c in zip(methods, last, strict=True)]
    methods[0].merge(last[0], made)
    assert sorted(seen) == dealt(methods[0]._feed), "none is left out"


def test_private_data_is_gone_through_in_order(
    make_setup: MakeSetup, make_round: MakeRound
) -> None:
    me = Diloco(configured(SGD), make_setup(private=True))
    rounds([me], make_round, [1], 3)
    assert int(me.local_state()["feed.cursor"]) == 3 * 3 + 2


def test_a_window_ends_when_it_is_over_whatever_was_done_ahead(
    make_setup: MakeSetup, make_round: MakeRound
) -> None:
    """And a round has no more than the most, wherever they fall; all are reported with it."""
    config = configured(SGD)
    config = config.model_copy(
        update={"inner": config.inner.model_copy(update={"steps": None, "steps_max": 5})}
    )
    me = Diloco(config, make_setup())
    told = []
    for number, ahead in enumerate((2, 9, 0)):
        context = make_round(number, 0, 1)
        one = contribution(me, context)
        header = decode_header(one.payload, config.inner)[0]
        told.append((header.steps, header.batches, header.tokens))
        go_on(me, context, ahead)
        me.merge(context, [one])
    assert told == [(1, 1, 16), (2, 2, 32), (5, 5, 80)]


def test_late_work_and_steps_ahead_both_wait(make_setup: MakeSetup, make_round: MakeRound) -> None:
    """P3: a round without us. Its difference waits in the feedback, and the steps ahead go on."""
    mine, theirs = (Diloco(configured(SGD), make_setup()) for _ in range(2))
    contexts = [make_round(0, i, 2) for i in range(2)]
    made = [contribution(m, c) for m, c in zip((mine, theirs), contexts, strict=True)]
    late = mine._feedback.values.clone()
    go_on(mine, contexts[0], steps=2)
    mine.merge(contexts[0], made[1:])
    mine.give_back(0, made[0].payload, made[0].attachment)
    assert torch.equal(mine._feedback.values, late)
    assert mine._deviation is not None
    ahead = mine._deviation._vector.clone()
    assert ahead.any()
    before = theta(mine)
    mine.work(make_round(1, 0, 2))
    moved = mine._feedback.values - late
    assert not torch.equal(moved, ahead), "one more step"
    torch.testing.assert_close(moved, before - shown(mine), rtol=0, atol=1e-6)


def test_a_snapshot_takes_the_steps_along(make_setup: MakeSetup, make_round: MakeRound) -> None:
    """Another state of the run, in the middle of steps ahead: they are taken from there."""
    me = Diloco(configured(SGD), make_setup())
    contribution(me, make_round(0, 0, 1))
    start = shown(me)
    go_on(me, make_round(0, 0, 1), steps=2)
    moved = start - shown(me)
    state = {name: tensor + 1 for name, tensor in me.replicated_state().items()}
    state |= {name: torch.tensor([[7, 0]]) for name in ("feed.slots", "feed.slots.odd")}
    me.load_replicated_state(state)
    assert torch.equal(shown(me), theta(me))
    assert me._deviation is not None
    torch.testing.assert_close(me._deviation._vector, moved, rtol=0, atol=1e-6)


@pytest.mark.parametrize("is_away", [True, False])
def test_steps_ahead_outlive_the_process(
    is_away: bool, make_setup: MakeSetup, make_round: MakeRound
) -> None:
    """P3. Stopped in the middle of them, or after the round."""
    me, reborn = (Diloco(configured(ADAMW), make_setup()) for _ in range(2))
    one = contribution(me, make_round(0, 0, 1))
    go_on(me, make_round(0, 0, 1), steps=2)
    if not is_away:
        me.merge(make_round(0, 0, 1), [one])
    reborn.load_local_state({k: v.clone() for k, v in me.local_state().items()})
    reborn.load_replicated_state({k: v.clone() for k, v in me.replicated_state().items()})
    for method in (me, reborn):
        if is_away:
            method.merge(make_round(0, 0, 1), [one])
    ours, theirs = (contribution(m, make_round(1, 0, 1)) for m in (me, reborn))
    assert ours == theirs
    assert decode_header(ours.payload, me.config.inner)[0].steps == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("deviation.kept", torch.zeros(3)),
        ("deviation.kept", torch.full((1,), float("nan"))),
        ("deviation.counts", torch.zeros(4, dtype=torch.int64)),
        ("deviation.loss", torch.zeros(1)),
    ],
)
def test_a_state_that_is_not_ours_is_refused(
    name: str, value: Tensor, make_setup: MakeSetup
) -> None:
    setup = make_setup()
    mine = Deviation(SharedWeights(setup.model, setup.kernels))
    state = mine.state()
    mine.report = InnerReport(1, 1, 16, 2.0, 0, 1)
    broken = value.expand_as(state[name]) if value.isnan().any() else value
    with pytest.raises(ValueError, match=r"deviation\."):
        mine.load({**state, name: broken})
    assert mine.report.steps == 1
    mine.load({})
    assert mine.report.steps == 1, "a run that did not overlap before says nothing of it"


def test_who_does_not_deviation_waits(make_setup: MakeSetup) -> None:
    plain, overlapping = (Diloco(configured(SGD, overlap=o), make_setup()) for o in (False, True))
    assert plain.goes_on is GoesOn.NEVER
    assert overlapping.goes_on is GoesOn.AT_ONCE
    assert not any(name.startswith("deviation.") for name in plain.local_state())


def test_each_round_moves(make_setup: MakeSetup, make_round: MakeRound) -> None:
    """And the loss falls, with half of the steps taken ahead."""
    methods = [Diloco(configured(ADAMW, steps=4), make_setup()) for _ in range(3)]
    seen = rounds(methods, make_round, [1, 1, 1], 12)
    assert all(not torch.equal(a, b) for a, b in pairwise(seen))
    assert len({method.state_digest(1) for method in methods}) == 1
    loss = methods[0].work(make_round(12, 0)).loss
    first = Diloco(configured(ADAMW, steps=4), make_setup()).work(make_round(0, 0)).loss
    assert loss is not None
    assert first is not None
    assert loss < first - 0.5
