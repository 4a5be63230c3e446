"""A model exchanged part by part: METHODS E2."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from node.errors import ConfigError
from node.methods.diloco import Diloco
from node.methods.diloco_config import DilocoConfig
from node.methods.econtrol_config import EControlConfig
from node.methods.parts.fragments import cut
from node.methods.sparseloco import SparseLoco
from node.methods.sparseloco_config import SparseLocoConfig
from tests.methods.conftest import MakeRound, MakeSetup
from tests.methods.inner_outer import contribution, go_on, sent, theta, waiting

SGD = {"name": "sgd", "lr": 0.05}


def configured(optimizer: dict[str, object] = SGD, **changes: object) -> DilocoConfig:
    """Moves to the peers' average; nothing is rounded away."""
    fields = {"learning_rate": {"peak": "1"}, "momentum": "0", "fragments": 3} | changes
    inner = {"steps": 2, "optimizer": optimizer}
    return DilocoConfig.model_validate({"name": "diloco", "inner": inner, **fields})


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=30), st.data())
def test_fragments_are_even_runs_of_whole_tensors(sizes: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(sizes)))
    parts = cut(sizes, count)
    assert len(parts) == count
    assert [size for part in parts for size in part.sizes] == sizes
    assert all(part.sizes for part in parts)
    at = 0
    for part in parts:
        assert (part.elements.start, part.elements.stop) == (at, at + sum(part.sizes))
        assert list(part.sizes) == sizes[part.tensors]
        at += sum(part.sizes)
    if len(set(sizes)) == 1 and len(sizes) % count == 0:
        assert len({len(part.sizes) for part in parts}) == 1


def test_large_tensors_decide_where_to_cut() -> None:
    assert [part.sizes for part in cut([1, 1, 1, 100, 100, 1], 2)] == [(1, 1, 1, 100), (100, 1)]


def test_more_fragments_than_tensors() -> None:
    with pytest.raises(ConfigError, match="2 trained tensors, too few for 3"):
        cut([5, 7], 3)


@pytest.mark.parametrize("overlap", [False, True])
def test_alone_it_is_the_inner_optimizer(
    overlap: bool, make_setup: MakeSetup, make_round: MakeRound
) -> None:
    """One peer, rate 1, no momentum: whatever the turns, it goes on where its steps led. Theta is
    there whenever the last fragment had its turn and nothing has moved since.
    """
    adamw: dict[str, object] = {"name": "adamw", "lr": 0.01}
    setup, reference = make_setup(private=True), make_setup()  # private data come in their order
    me = Diloco(configured(adamw, overlap=overlap), setup)
    inner = reference.inner(me.config.inner)
    for number in range(7):
        context = make_round(number, 0, 1)
        one = contribution(me, context)
        inner.work(number, iter(range(2 * number, 2 * number + 2)), lambda: False)
        at = torch.cat([p.detach().reshape(-1) for p in me._trainer._model.parameters()])
        alone = torch.cat([p.detach().reshape(-1) for p in reference.model.parameters()])
        torch.testing.assert_close(at, alone, rtol=0, atol=1e-6)
        go_on(me, context, steps=1)
        me.merge(context, [one])
        due = me._due(number).elements
        torch.testing.assert_close(theta(me)[due], alone[due], rtol=0, atol=1e-6)


def test_one_fragment_is_plain_diloco(make_setup: MakeSetup, make_round: MakeRound) -> None:
    """METHODS E2: F = 1, bit for bit; and with overlap, but without steps ahead, on the same data
    in the same order.
    """
    states = []
    for changes in ({"fragments": 1}, {"fragments": 1, "overlap": True}):
        config = configured(momentum="0.5", **changes)
        methods = [Diloco(config, make_setup(private=True)) for _ in range(2)]
        for number in range(4):
            contexts = [make_round(number, i, 2) for i in range(2)]
            made = [contribution(m, c) for m, c in zip(methods, contexts, strict=True)]
            for method, context in zip(methods, contexts, strict=True):
                method.merge(context, made)
        states.append(theta(methods[0]))
    assert torch.equal(*states)


def test_each_takes_its_turn(make_setup: MakeSetup, make_round: MakeRound) -> None:
    """Only what is due moves, by all that was done to it since its last turn, and all of it takes
    as many bytes as without turns. Nesterov's momentum of a fragment moves in its turns alone.
    """
    config = configured(momentum="0.5", learning_rate={"peak": "0.7"})
    methods = [Diloco(config, make_setup()) for _ in range(2)]
    whole = Diloco(configured(fragments=1), make_setup())
    at = [torch.nn.Parameter(theta(methods[0])[part.elements]) for part in methods[0]._fragments]
    outer = [torch.optim.SGD([p], lr=0.7, momentum=0.5, nesterov=True) for p in at]
    taken = 0
    for number in range(9):
        contexts = [make_round(number, i, 2) for i in range(2)]
        made = [contribution(m, c) for m, c in zip(methods, contexts, strict=True)]
        taken += len(made[0].attachment) - 1 if number < 3 else 0
        turn, due = number % 3, methods[0]._due(number).elements
        both = [sent(methods[0], one, number)[due] for one in made]
        at[turn].grad = (both[0] + both[1]) / 2
        outer[turn].step()
        before = theta(methods[0])
        for method, context in zip(methods, contexts, strict=True):
            method.merge(context, made)
        after = theta(methods[0])
        torch.testing.assert_close(after[due], at[turn].detach(), rtol=1e-6, atol=1e-6)
        after[due] = before[due]
        assert torch.equal(after, before), "the others have not moved"
    assert taken == len(contribution(whole, make_round(0, 0, 1)).attachment) - 1
    assert len({method.state_digest(3) for method in methods}) == 1


def test_what_a_peer_did_to_the_others_stays_with_it(
    make_setup: MakeSetup, make_round: MakeRound
) -> None:
    me, other = (Diloco(configured(), make_setup()) for _ in range(2))
    context = make_round(0, 0, 2)
    made = [contribution(me, context), contribution(other, make_round(0, 1, 2))]
    did = theta(me) - torch.cat([p.detach().reshape(-1) for p in me._trainer._model.parameters()])
    me.merge(context, made)
    assert me._deviation is not None
    me._deviation.resume()
    shown = torch.cat([p.detach().reshape(-1) for p in me._trainer._model.parameters()])
    kept = theta(me) - shown
    due = me._due(0).elements
    assert not kept[due].any(), "what had its turn is as all have it"
    did[due] = 0
    torch.testing.assert_close(kept, did, rtol=0, atol=1e-6)
    assert did.any()


def test_what_is_taken_off_is_what_moved(make_setup: MakeSetup, make_round: MakeRound) -> None:
    """SparseLoCo, alone: theta moves by what was sent, and where; and no longer waits for it."""
    fields = {"name": "sparseloco", "chunk": 64, "kept": 4, "fragments": 3, "feedback_decay": 1}
    inner = {"steps": 1, "optimizer": SGD}
    me = SparseLoco(SparseLocoConfig.model_validate(fields | {"inner": inner}), make_setup())
    for number in range(4):
        one = contribution(me, make_round(number, 0, 1))
        before, waited = theta(me), waiting(me)
        me.merge(make_round(number, 0, 1), [one])
        moved = sent(me, one, number)
        assert moved[me._due(number).elements].any()
        torch.testing.assert_close(before - theta(me), moved, rtol=0, atol=1e-7)
        torch.testing.assert_close(waited - waiting(me), moved, rtol=0, atol=1e-7)


def test_what_waits_fades_in_its_turn_alone(make_setup: MakeSetup, make_round: MakeRound) -> None:
    """Else it would be forgotten as many times faster."""
    me = Diloco(configured(feedback_decay=0.5), make_setup())
    contribution(me, make_round(0, 0, 1))
    first = me._due(0).elements
    waited = waiting(me)[first]
    assert waited.any()
    for number in (1, 2):
        contribution(me, make_round(number, 0, 1))
        assert torch.equal(waiting(me)[first], waited)


def test_a_payload_of_another_turn_is_refused(make_setup: MakeSetup, make_round: MakeRound) -> None:
    """P6"""
    inner = {"steps": 1, "optimizer": SGD}
    sparse = SparseLocoConfig.model_validate(
        {"name": "sparseloco", "inner": inner, "chunk": 64, "kept": 4, "fragments": 3}
    )
    for me in (Diloco(configured(), make_setup()), SparseLoco(sparse, make_setup())):
        one = contribution(me, make_round(3, 0))
        me.check(6, one.payload, one.attachment)
        for round in (4, 5):
            with pytest.raises(ValueError, match=r"."):
                me.check(round, one.payload, one.attachment)


def test_what_all_remember_has_no_turns() -> None:
    with pytest.raises(ValidationError, match="fragments"):
        EControlConfig.model_validate({"name": "econtrol", "feedback_decay": 1, "fragments": 2})
