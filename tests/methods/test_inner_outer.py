"""Laws that every method of inner steps obeys, whatever it sends and however it moves."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from node.methods.demo_config import DemoConfig
from node.methods.diloco_config import DilocoConfig
from node.methods.parts.header import decode_header
from node.methods.parts.setup import Setup
from node.methods.registry import build_method
from node.methods.sparseloco_config import SparseLocoConfig
from tests.methods.conftest import MakeRound, MakeSetup
from tests.methods.inner_outer import Method, contribution, go_on, sent, theta, waiting

Config = SparseLocoConfig | DilocoConfig | DemoConfig

INNER = {"steps": 2, "optimizer": {"name": "adamw", "lr": 0.01}}
DEMO = {
    "name": "demo",
    "learning_rate": {"peak": "0.003"},
    "momentum": 1.0,
    "kept": 64,
    "one_in": 3,
    "gradient": {"batches": 2},
}
CONFIGS: dict[str, Config] = {
    "sparseloco": SparseLocoConfig.model_validate(
        {"name": "sparseloco", "inner": INNER, "chunk": 64, "kept": 4, "feedback_decay": 1.0}
    ),
    "sparseloco-overlap": SparseLocoConfig.model_validate(
        {"name": "sparseloco", "inner": INNER, "chunk": 64, "kept": 4, "feedback_decay": 1.0}
        | {"overlap": True}
    ),
    "sparseloco-fragments": SparseLocoConfig.model_validate(
        {"name": "sparseloco", "inner": INNER, "chunk": 64, "kept": 4, "feedback_decay": 1.0}
        | {"fragments": 3}
    ),
    "diloco-fragments-overlap": DilocoConfig.model_validate(
        {"name": "diloco", "inner": INNER, "fragments": 2, "overlap": True}
    ),
    "diloco-overlap": DilocoConfig.model_validate(
        {"name": "diloco", "inner": INNER, "value_bits": 8, "overlap": True}
    ),
    **{
        f"diloco-{bits}": DilocoConfig.model_validate(
            {"name": "diloco", "inner": INNER, "value_bits": bits}
        )
        for bits in (32, 16, 8, 4)
    },
    "demo-overlap": DemoConfig.model_validate(DEMO | {"overlap": True}),
    **{
        f"demo-{replicator}-{values}": DemoConfig.model_validate(
            DEMO | {"replicator": replicator, "values": values}
        )
        for replicator, values in (
            ("dct", "sign"),
            ("dct", "int8"),
            ("random", "sign"),
            ("striding", "int8"),
        )
    },
}


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> Config:
    return CONFIGS[request.param]


def built(config: Config, setup: Setup) -> Method:
    method = build_method(config, setup)
    assert isinstance(method, Method)
    return method


@dataclass
class Swarm:
    make_round: MakeRound
    methods: list[Method]
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
        for i in working:
            go_on(self.methods[i], self.make_round(self.round, i, seats), steps=i)
        entry = [made[i] for i in sorted(listed)]
        for i in working:
            self.methods[i].merge(self.make_round(self.round, i, seats), entry)
            if i not in listed:
                self.methods[i].give_back(self.round, made[i].payload, made[i].attachment)
        for i in listed:
            self.committed = self.committed + sent(self.methods[i], made[i], self.round)
        self.round += 1

    def catch_up(self, late: int, teacher: int) -> None:
        state = {k: v.clone() for k, v in self.methods[teacher].replicated_state().items()}
        self.methods[late].load_replicated_state(state)


@pytest.fixture
def swarm(config: Config, make_setup: MakeSetup, make_round: MakeRound) -> Swarm:
    return Swarm(make_round, [built(config, make_setup()) for _ in range(3)])


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
    computed = torch.zeros_like(waiting(swarm.methods[0]))
    for method in swarm.methods:
        count(method, computed)
    for listed in ((0, 1, 2), (1,), (0, 2), (2,), (0, 1, 2)):
        swarm.close(listed)
    there = sum((waiting(method) for method in swarm.methods), start=torch.zeros_like(computed))
    torch.testing.assert_close(there + swarm.committed, computed, rtol=0, atol=1e-6)


def count(method: Method, computed: Tensor) -> None:
    add = method._add_work

    def counted(round: int, total: Tensor) -> None:
        before = total.clone()
        add(round, total)
        computed[method._where_due(round)] += total - before

    method._add_work = counted  # type: ignore[method-assign]


def test_what_was_sent_waits_until_it_is_committed(
    config: Config, make_setup: MakeSetup, make_round: MakeRound
) -> None:
    """P3, and METHODS: a message that was rejected is not taken off."""
    me = built(config, make_setup())
    one = contribution(me, make_round(0, 0))
    before = waiting(me)
    me.give_back(0, one.payload, one.attachment)
    assert torch.equal(waiting(me), before), "it was never taken off"
    me.merge(make_round(0, 0), [one])
    assert not me._checked, "nothing decoded is kept for long"
    torch.testing.assert_close(waiting(me), before - sent(me, one), rtol=0, atol=0)
    me.settled(0, one.payload, one.attachment)
    torch.testing.assert_close(waiting(me), before - sent(me, one), rtol=0, atol=0)
    me.give_back(0, one.payload, one.attachment)
    torch.testing.assert_close(waiting(me), before, rtol=0, atol=1e-7)


def test_it_goes_on_after_a_restart_as_if_it_had_not_stopped(
    config: Config, make_setup: MakeSetup, make_round: MakeRound
) -> None:
    """P3: feedback and the optimizer's state; bit for bit."""
    me, reborn = (built(config, make_setup()) for _ in range(2))
    for number in range(3):
        one = contribution(me, make_round(number, 0))
        go_on(me, make_round(number, 0), steps=1)
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
    config: Config, make_setup: MakeSetup, broken: dict[str, Tensor | None]
) -> None:
    me = built(config, make_setup())
    state = {k: v for k, v in {**me.local_state(), **broken}.items() if v is not None}
    with pytest.raises(ValueError, match=r"feedback\."):
        me.load_local_state(state)


# What strangers may send


def test_payloads_that_no_honest_peer_writes(
    config: Config, make_setup: MakeSetup, make_round: MakeRound
) -> None:
    """P6"""
    me = built(config, make_setup())
    one = contribution(me, make_round(0, 0))
    weigh = config.weigh
    assert weigh(one.payload) == me.weigh(one.payload) == 2
    for bad in (b"", one.payload[:-1], one.payload + b"x", b"\x02" + one.payload[1:]):
        with pytest.raises(ValueError, match=r"."):
            weigh(bad)
    for bad in (b"", one.attachment[:-1], one.attachment + b"x"):
        with pytest.raises(ValueError, match=r"."):
            me.check(0, one.payload, bad)


def test_a_snapshot_of_something_else_leaves_everything_as_it_was(
    config: Config, make_setup: MakeSetup
) -> None:
    me = built(config, make_setup())
    before = me.state_digest(3)
    state = {name: tensor.clone() for name, tensor in me.replicated_state().items()}
    name = next(name for name in state if name.startswith("weights."))
    state[name] = state[name][:1]
    with pytest.raises(ValueError, match="float32"):
        me.load_replicated_state(state)
    assert me.state_digest(3) == before


def test_who_moved_nobody_s_weights_still_has_what_it_offered(
    config: Config, make_setup: MakeSetup, make_round: MakeRound
) -> None:
    """P3: a round that held no finite gradient counts for nothing, although it is listed."""
    me = built(config, make_setup())
    one = contribution(me, make_round(0, 0))
    before, start = waiting(me), theta(me)
    nothing = replace(decode_header(one.payload, config.inner)[0], steps=0, tokens=0)
    me.merge(make_round(0, 0), [replace(one, payload=nothing.encode())])
    assert torch.equal(waiting(me), before)
    assert torch.equal(theta(me), start)
