"""SparseLoCo: what it sends, what waits, and what all peers hold alike."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from node.methods.base import Contribution, RoundContext
from node.methods.parts.header import decode_header
from node.methods.parts.shared import SharedWeights
from node.methods.sparseloco import SparseLoco
from node.methods.sparseloco_config import SparseLocoConfig
from tests.methods.conftest import MakeRound, MakeSetup, peer

CONFIG = SparseLocoConfig.model_validate(
    {
        "name": "sparseloco",
        "inner": {"steps": 2, "optimizer": {"name": "adamw", "lr": 0.01}},
        "chunk": 64,
        "kept": 4,
        "feedback_decay": 1.0,
    }
)


def configured(**changes: object) -> SparseLocoConfig:
    return SparseLocoConfig.model_validate({**CONFIG.model_dump(), **changes})


def contribution(method: SparseLoco, context: RoundContext) -> Contribution:
    done = method.work(context)
    assert len(done.attachment) <= method.config.attachment_bytes_max(method._weights.sizes)
    method.check(done.payload, done.attachment)
    return Contribution(context.peer, done.payload, done.attachment)


def waiting(method: SparseLoco) -> Tensor:
    return method._feedback.values.clone()


def theta(method: SparseLoco) -> Tensor:
    return method._weights.theta.clone()


def sent(method: SparseLoco, one: Contribution) -> Tensor:
    """Dense, as everybody decodes it."""
    positions, values = method._sent(one.attachment)
    dense = torch.zeros(method._layout.size)
    dense[positions] = values
    return dense


@dataclass
class Swarm:
    make_round: MakeRound
    methods: list[SparseLoco]
    round: int = 0
    committed: Tensor | float = 0.0
    losses: list[float] = field(default_factory=list)

    def close(self, listed: Sequence[int], working: Sequence[int] | None = None) -> None:
        """One round; who worked and is not listed missed it. Only `working` merge."""
        working = range(len(self.methods)) if working is None else working
        seats = len(self.methods)
        made = {
            i: contribution(self.methods[i], self.make_round(self.round, i, seats)) for i in working
        }
        entry = [made[i] for i in sorted(listed)]
        for i in working:
            self.methods[i].merge(self.make_round(self.round, i, seats), entry)
            if i not in listed:
                self.methods[i].give_back(self.round, made[i].payload, made[i].attachment)
        for i in listed:
            self.committed = self.committed + sent(self.methods[i], made[i])
        self.round += 1

    def catch_up(self, late: int, teacher: int) -> None:
        state = {k: v.clone() for k, v in self.methods[teacher].replicated_state().items()}
        self.methods[late].load_replicated_state(state)


@pytest.fixture
def swarm(make_setup: MakeSetup, make_round: MakeRound) -> Swarm:
    return Swarm(make_round, [SparseLoco(CONFIG, make_setup()) for _ in range(3)])


def test_all_hold_the_same_and_it_learns(swarm: Swarm) -> None:
    """P1: late ones, absent ones and a newcomer included."""
    start = theta(swarm.methods[0])
    for listed, working in (
        ((0, 1, 2), (0, 1, 2)),
        ((0, 2), (0, 1, 2)),
        ((1,), (0, 1)),
        ((0, 1), (0, 1)),
    ):
        swarm.close(listed, working)
    swarm.catch_up(2, 0)
    for _ in range(20):
        swarm.close((0, 1, 2))
    assert len({method.state_digest(7) for method in swarm.methods}) == 1
    assert not torch.equal(theta(swarm.methods[0]), start)
    shown = torch.cat([p.detach().flatten() for p in swarm.methods[0]._trainer._model.parameters()])
    assert torch.equal(shown, theta(swarm.methods[0])), "the model shows what all hold"


def test_nothing_computed_is_lost(swarm: Swarm) -> None:
    """P3: what all committed, and what waits on each, is what all computed, however rounds went."""
    computed = torch.zeros(swarm.methods[0]._layout.size)
    for method in swarm.methods:
        count(method._weights, computed)
    for listed in ((0, 1, 2), (1,), (0, 2), (2,), (0, 1, 2)):
        swarm.close(listed)
    there = sum((waiting(method) for method in swarm.methods), start=torch.zeros_like(computed))
    torch.testing.assert_close(there + swarm.committed, computed, rtol=0, atol=1e-6)


def count(weights: SharedWeights, computed: Tensor) -> None:
    add = weights.add_difference

    def counted(total: Tensor) -> None:
        add(total)
        add(computed)

    weights.add_difference = counted  # type: ignore[method-assign]


def test_the_update_is_the_mean_over_peers_by_their_tokens(
    make_setup: MakeSetup, make_round: MakeRound
) -> None:
    """Two peers; one took three times as many steps."""
    quick = {**CONFIG.inner.model_dump(), "steps": None, "steps_max": 6}
    config = configured(inner=quick, learning_rate={"peak": "0.5"})
    methods = [SparseLoco(config, make_setup()) for _ in range(2)]
    contexts = [make_round(0, i, 2) for i in range(2)]
    contexts[1] = RoundContext(*_place(contexts[1]), lambda: False)
    made = [contribution(m, context) for m, context in zip(methods, contexts, strict=True)]
    steps = [decode_header(one.payload, config.inner)[0].steps for one in made]
    assert steps == [1, 6]
    start = theta(methods[0])
    wanted = start - 0.5 * (sent(methods[0], made[0]) * 1 + sent(methods[0], made[1]) * 4) / 5
    methods[0].merge(contexts[0], made)
    torch.testing.assert_close(theta(methods[0]), wanted, rtol=0, atol=1e-7)
    # 4 and not 6: nobody counts for more than four times the median, which the lower one is here.


def _place(context: RoundContext) -> tuple[bytes, int, bytes, tuple[bytes, ...]]:
    return context.run, context.round, context.peer, context.seats


def test_the_mean_over_senders_divides_by_who_sent(
    make_setup: MakeSetup, make_round: MakeRound
) -> None:
    methods = [SparseLoco(configured(average="senders"), make_setup()) for _ in range(2)]
    made = [contribution(m, make_round(0, i, 2)) for i, m in enumerate(methods)]
    values = [sent(methods[0], one) for one in made]
    senders = sum((value != 0).float() for value in values)
    assert isinstance(senders, Tensor)
    assert (senders == 1).any()
    assert (senders == 2).any()
    start = theta(methods[0])
    methods[0].merge(make_round(0, 0, 2), made)
    wanted = start - (values[0] + values[1]) / senders.clamp(min=1)
    torch.testing.assert_close(theta(methods[0]), wanted, rtol=0, atol=1e-7)


def test_a_peer_that_says_it_did_everything_is_not_believed(
    make_setup: MakeSetup, make_round: MakeRound
) -> None:
    """P6: its tokens count for four times the median at most."""
    methods = [SparseLoco(CONFIG, make_setup()) for _ in range(3)]
    made = [contribution(m, make_round(0, i)) for i, m in enumerate(methods)]
    liar = methods[2]
    claimed = decode_header(made[2].payload, CONFIG.inner)[0]
    more = type(claimed)(claimed.steps, claimed.batches, 1 << 40).encode()
    start = theta(liar)
    values = [sent(liar, one) for one in made]
    liar.merge(make_round(0, 2), [*made[:2], Contribution(peer(2), more, made[2].attachment)])
    wanted = start - (values[0] + values[1] + 4 * values[2]) / 6
    torch.testing.assert_close(theta(liar), wanted, rtol=0, atol=1e-7)


# What waits


def test_what_was_sent_waits_until_it_is_committed(
    make_setup: MakeSetup, make_round: MakeRound
) -> None:
    """P3, and METHODS: a message that was rejected is not taken off."""
    me = SparseLoco(CONFIG, make_setup())
    one = contribution(me, make_round(0, 0))
    before = waiting(me)
    me.give_back(0, one.payload, one.attachment)
    assert torch.equal(waiting(me), before), "it was never taken off"
    me.merge(make_round(0, 0), [one])
    torch.testing.assert_close(waiting(me), before - sent(me, one), rtol=0, atol=0)
    me.settled(0, one.payload, one.attachment)
    torch.testing.assert_close(waiting(me), before - sent(me, one), rtol=0, atol=0)
    me.give_back(0, one.payload, one.attachment)
    torch.testing.assert_close(waiting(me), before, rtol=0, atol=1e-7)


def test_a_constant_difference_is_sent_in_full(
    make_setup: MakeSetup, make_round: MakeRound
) -> None:
    """METHODS E4: one peer, decay 1: after T rounds, all that was sent and what waits is T times
    the difference.
    """
    me = SparseLoco(CONFIG, make_setup())
    size = me._layout.size
    constant = torch.linspace(-1, 1, size)
    total = torch.zeros(size)
    for number in range(12):
        me._feedback.add(number, 1.0, lambda values: values.add_(constant))
        one = Contribution(peer(0), b"", me._encode())
        total += sent(me, one)
        me._feedback.committed(number, one.attachment)
    torch.testing.assert_close(total + waiting(me), 12 * constant, rtol=1e-5, atol=1e-5)


def test_what_a_life_before_sent_later_does_not_wait_in_this_one(
    make_setup: MakeSetup, make_round: MakeRound
) -> None:
    """Killed after round 1; saved after round 0. What round 1 holds is not sent again."""
    before, reborn = SparseLoco(CONFIG, make_setup()), SparseLoco(CONFIG, make_setup())
    first = contribution(before, make_round(0, 0))
    saved = {name: tensor.clone() for name, tensor in before.local_state().items()}
    before.merge(make_round(0, 0), [first])
    second = contribution(before, make_round(1, 0))
    reborn.load_local_state(saved)
    for number, one in enumerate((first, second)):
        reborn.merge(make_round(number, 0), [one])
    positions, _ = reborn._sent(second.attachment)
    assert not waiting(reborn)[positions].any()
    assert waiting(reborn).any()


def test_it_goes_on_after_a_restart_as_if_it_had_not_stopped(
    make_setup: MakeSetup, make_round: MakeRound
) -> None:
    """P3: feedback and the optimizer's state; bit for bit."""
    me, reborn = (SparseLoco(CONFIG, make_setup()) for _ in range(2))
    for number in range(3):
        one = contribution(me, make_round(number, 0))
        me.merge(make_round(number, 0), [one])
    reborn.load_local_state({k: v.clone() for k, v in me.local_state().items()})
    reborn.load_replicated_state({k: v.clone() for k, v in me.replicated_state().items()})
    ours, theirs = (contribution(m, make_round(3, 0)) for m in (me, reborn))
    assert ours == theirs


@pytest.mark.parametrize(
    "broken",
    [
        {"feedback.values": torch.zeros(3)},
        {"feedback.values": None},
        {"feedback.round": torch.zeros(1)},
        {"feedback.taken": torch.zeros(2, dtype=torch.int64)},
    ],
)
def test_a_local_state_that_is_not_ours_is_refused(
    make_setup: MakeSetup, broken: dict[str, Tensor | None]
) -> None:
    me = SparseLoco(CONFIG, make_setup())
    state = {k: v for k, v in {**me.local_state(), **broken}.items() if v is not None}
    with pytest.raises(ValueError, match=r"feedback\."):
        me.load_local_state(state)


# What strangers may send


def test_payloads_that_no_honest_peer_writes(make_setup: MakeSetup, make_round: MakeRound) -> None:
    """P6"""
    me = SparseLoco(CONFIG, make_setup())
    one = contribution(me, make_round(0, 0))
    weigh = CONFIG.weigh
    assert weigh(one.payload) == me.weigh(one.payload) == 2
    for bad in (b"", one.payload[:-1], one.payload + b"x", b"\x02" + one.payload[1:]):
        with pytest.raises(ValueError, match=r"."):
            weigh(bad)
    for bad in (b"", one.attachment[:-1], one.attachment + b"x"):
        with pytest.raises(ValueError, match=r"."):
            me.check(one.payload, bad)


def test_a_snapshot_of_something_else_leaves_everything_as_it_was(make_setup: MakeSetup) -> None:
    me = SparseLoco(CONFIG, make_setup())
    before = me.state_digest(3)
    state = {name: tensor.clone() for name, tensor in me.replicated_state().items()}
    name = next(name for name in state if name.startswith("weights."))
    state[name] = state[name][:1]
    with pytest.raises(ValueError, match="float32"):
        me.load_replicated_state(state)
    assert me.state_digest(3) == before
