"""EControl and EF21: their limits, what nobody loses, and what happens when members change."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from node.methods.base import Contribution, RoundContext
from node.methods.econtrol import EControl
from node.methods.econtrol_config import ANEW, GOES_ON, EControlConfig
from node.methods.parts.header import decode_header
from tests.methods.conftest import MakeRound, MakeSetup
from tests.methods.inner_outer import contribution, go_on, theta, waiting


def configured(**changes: object) -> EControlConfig:
    fields = {
        "name": "econtrol",
        "inner": {"steps": 2, "optimizer": {"name": "adamw", "lr": 0.01}},
        "chunk": 64,
        "kept": 4,
        "learning_rate": {"peak": "0.5"},
    }
    return EControlConfig.model_validate(fields | changes)


class Crew:
    """Peers in step. `close` is one round: who worked and is not listed missed it."""

    def __init__(
        self, config: EControlConfig, make_setup: MakeSetup, make_round: MakeRound
    ) -> None:
        self.make_round = make_round
        self.peers = [EControl(config, make_setup()) for _ in range(3)]
        self.computed = torch.zeros_like(theta(self.peers[0]))
        self.applied = torch.zeros_like(self.computed)
        self.round = 0

    def contexts(self, seats: int) -> list[RoundContext]:
        return [self.make_round(self.round, i, seats) for i in range(seats)]

    def close(self, listed: Sequence[int], seats: int = 3) -> list[Contribution]:
        contexts, made = self.contexts(seats), []
        for peer, context in zip(self.peers, contexts, strict=False):
            before = waiting(peer)
            made.append(contribution(peer, context))
            self.computed += waiting(peer) - before
        entry = [made[i] for i in listed]
        start = theta(self.peers[0])
        for i, context in enumerate(contexts):
            self.peers[i].merge(context, entry)
            if i not in listed:
                self.peers[i].give_back(self.round, made[i].payload, made[i].attachment)
        self.applied += (start - theta(self.peers[0])) / 0.5 * seats
        self.round += 1
        return made

    def digests(self, seats: int = 3) -> set[int]:
        return {peer.state_digest(5) for peer in self.peers[:seats]}


Make = Callable[..., Crew]


@pytest.fixture
def make_crew(make_setup: MakeSetup, make_round: MakeRound) -> Make:
    return lambda **changes: Crew(configured(**changes), make_setup, make_round)


def constant(peer: EControl, values: Tensor) -> None:
    """All inner steps of a round move the weights by `values`."""
    peer._weights.add_difference = lambda total, _: total.add_(values)  # type: ignore[method-assign,assignment,misc]


def test_what_arrives_whole_is_remembered_whole(
    make_setup: MakeSetup, make_round: MakeRound
) -> None:
    """METHODS H: when compression is the identity, h = g and e = 0. Each tensor holds two
    magnitudes that bf16 holds, and everything is kept.
    """
    me = EControl(configured(kept=64), make_setup())
    values = torch.arange(me._size) % 4 / 2 - 0.75
    values = values.sign() * torch.where(values.abs() > 0.5, 0.5, 0.25)
    constant(me, values)
    start = theta(me)
    for number in range(4):
        context = make_round(number, 0, 1)
        me.merge(context, [contribution(me, context)])
        assert torch.equal(me._mine, values)
        assert torch.equal(me._total, values)
        assert not waiting(me).any()
    torch.testing.assert_close(theta(me), start - 4 * 0.5 * values, rtol=0, atol=1e-6)


def test_what_is_remembered_comes_near_what_a_peer_does(
    make_setup: MakeSetup, make_round: MakeRound
) -> None:
    """EF21: a constant difference, of which 4 in 64 are sent each round."""
    me = EControl(configured(error_share=0), make_setup())
    torch.manual_seed(1)
    values = torch.randn(me._size)
    constant(me, values)
    distance = []
    for number in range(60):
        context = make_round(number, 0, 1)
        me.merge(context, [contribution(me, context)])
        distance.append(float((me._mine - values).norm() / values.norm()))
    assert distance[0] > 0.8
    assert distance[-1] < 0.05
    assert distance == sorted(distance, reverse=True)


@pytest.mark.parametrize("error_share", [0.0, 0.01])
def test_nothing_computed_is_lost(error_share: float, make_crew: Make) -> None:
    """P3: what was applied for all, and what waits on each, is what all computed: also when rounds
    miss contributions, and members leave.
    """
    crew = make_crew(error_share=error_share)
    for listed in ((0, 1, 2), (1,), (0, 2), (2,), (0, 1, 2)):
        crew.close(listed)
    there = sum((waiting(peer) for peer in crew.peers), start=torch.zeros_like(crew.computed))
    torch.testing.assert_close(crew.applied + there, crew.computed, rtol=0, atol=1e-5)
    gone = waiting(crew.peers[2])
    for listed in ((0, 1), (0,), (0, 1)):
        crew.close(listed, seats=2)
    there = gone + waiting(crew.peers[0]) + waiting(crew.peers[1])
    torch.testing.assert_close(crew.applied + there, crew.computed, rtol=0, atol=1e-5)


def test_all_hold_the_same_and_it_learns(make_crew: Make) -> None:
    """P1: late ones, those who leave, and a newcomer included."""
    crew = make_crew(learning_rate={"peak": "1"})
    for listed in ((0, 1, 2), (0, 2), (1,)):
        crew.close(listed)
    assert len(crew.digests()) == 1
    for listed in ((0, 1), (1,)):
        crew.close(listed, seats=2)
    state = {k: v.clone() for k, v in crew.peers[0].replicated_state().items()}
    crew.peers[2].load_replicated_state(state)
    first = crew.peers[0].work(crew.contexts(3)[0]).loss
    for _ in range(25):
        crew.close((0, 1, 2))
    assert len(crew.digests()) == 1
    last = crew.peers[0].work(crew.contexts(3)[0]).loss
    assert first is not None
    assert last is not None
    assert last < first - 0.3


def test_other_members_begin_anew(make_crew: Make, make_setup: MakeSetup) -> None:
    """Nobody keeps what one who left stood for, and each sends as one who never stood for any."""
    crew = make_crew()
    crew.close((0, 1, 2))
    crew.close((0, 1, 2))
    mine = crew.peers[0]._mine.clone()
    stood_for_nothing = EControl(configured(), make_setup())
    local = {k: v.clone() for k, v in crew.peers[0].local_state().items()}
    local["econtrol.mine"].zero_()
    stood_for_nothing.load_local_state(local)
    stood_for_nothing.load_replicated_state(crew.peers[0].replicated_state())
    wanted = contribution(stood_for_nothing, crew.contexts(2)[0])
    made = crew.close((0, 1), seats=2)
    assert made[0] == wanted
    sent = [crew.peers[0]._sent_in(2, one.attachment) for one in made]
    total = torch.zeros_like(mine)
    for positions, values in sent:
        total[positions] += values / 2
    torch.testing.assert_close(crew.peers[0]._total, total, rtol=0, atol=1e-7)
    now = torch.zeros_like(mine)
    now[sent[0][0]] = sent[0][1]
    assert torch.equal(crew.peers[0]._mine, now)
    assert not torch.equal(now, mine)
    assert all(one.payload.endswith(GOES_ON) for one in made), "all see it by themselves"


def test_who_lost_its_memory_says_so(make_crew: Make, make_setup: MakeSetup) -> None:
    """Restarted without what it kept: all begin anew, and their bits stay equal."""
    crew = make_crew()
    crew.close((0, 1, 2))
    crew.close((0, 1, 2))
    state = {k: v.clone() for k, v in crew.peers[0].replicated_state().items()}
    crew.peers[1] = EControl(configured(), make_setup())
    crew.peers[1].load_replicated_state(state)
    made = crew.close((0, 2))
    assert made[1].payload.endswith(ANEW)
    assert crew.peers[0]._mine.any(), "a round that misses it does not know"
    made = crew.close((0, 1, 2))
    assert made[1].payload.endswith(ANEW)
    positions, values = crew.peers[0]._sent_in(3, made[0].attachment)
    assert torch.equal(crew.peers[0]._mine[positions], values)
    assert torch.count_nonzero(crew.peers[0]._mine) <= len(positions)
    assert len(crew.digests()) == 1
    assert all(one.payload.endswith(GOES_ON) for one in crew.close((0, 1, 2)))


def test_a_restart_with_what_it_kept_changes_nothing(
    make_setup: MakeSetup, make_round: MakeRound
) -> None:
    """P3, bit for bit; and an older copy of the state is known to be another."""
    me, reborn, older = (EControl(configured(), make_setup()) for _ in range(3))
    states = []
    for number in range(4):
        context = make_round(number, 0, 1)
        me.merge(context, [contribution(me, context)])
        states.append({k: v.clone() for k, v in me.replicated_state().items()})
    local = {k: v.clone() for k, v in me.local_state().items()}
    reborn.load_local_state(local)
    reborn.load_replicated_state(states[-1])
    older.load_local_state(local)
    older.load_replicated_state(states[-2])
    context = make_round(4, 0, 1)
    assert contribution(me, context) == contribution(reborn, context)
    assert contribution(older, context).payload.endswith(ANEW)
    fresh, replaying = (EControl(configured(), make_setup()) for _ in range(2))
    for method in (fresh, replaying):
        method.load_local_state(local)  # and no state: they start from the run's beginning
    assert contribution(fresh, make_round(0, 0, 1)).payload.endswith(ANEW)
    replaying.merge(make_round(0, 0, 1), [])
    assert not replaying._mine.any()
    me.load_replicated_state(states[-1])  # the same place again
    assert not me._is_lost


def test_replaying_what_was_counted_counts_nothing_twice(
    make_setup: MakeSetup, make_round: MakeRound
) -> None:
    me, reborn = (EControl(configured(), make_setup()) for _ in range(2))
    entries = []
    for number in range(3):
        entries.append(contribution(me, make_round(number, 0, 1)))
        me.merge(make_round(number, 0, 1), entries[-1:])
    kept = waiting(me)
    reborn.load_local_state({k: v.clone() for k, v in me.local_state().items()})
    reborn._belongs = None  # as if the state on disk were older, and a replay led here
    for number, one in enumerate(entries):
        reborn.merge(make_round(number, 0, 1), [one])
    assert torch.equal(waiting(reborn), kept)
    assert reborn.state_digest(3) == me.state_digest(3)


def test_the_memory_is_part_of_what_all_hold(make_crew: Make) -> None:
    """P1: a flipped bit in it, or in whose it is, is found."""
    crew = make_crew()
    crew.close((0, 1, 2))
    me = crew.peers[0]
    before, kept = me.state_digest(5), me._total.clone()
    me._total[3] += 1
    assert me.state_digest(5) != before
    me._total.copy_(kept)
    assert me.state_digest(5) == before
    me._seats += 2
    assert me.state_digest(5) != before


def test_who_saw_no_token_stands_for_what_it_stood_for(
    make_setup: MakeSetup, make_round: MakeRound
) -> None:
    """P3: it is listed, and counts for nothing; what all remember of it is applied all the same."""
    me = EControl(configured(), make_setup())
    me.merge(make_round(0, 0, 1), [contribution(me, make_round(0, 0, 1))])
    mine, start = me._mine.clone(), theta(me)
    one = contribution(me, make_round(1, 0, 1))
    waits = waiting(me)
    header = decode_header(one.payload, me.config.inner)[0]
    silent = replace(header, steps=0, tokens=0).encode() + GOES_ON
    me.merge(make_round(1, 0, 1), [replace(one, payload=silent)])
    assert torch.equal(me._mine, mine)
    assert torch.equal(waiting(me), waits - mine)
    torch.testing.assert_close(theta(me), start - 0.5 * mine, rtol=0, atol=1e-7)


def test_steps_ahead_go_with_it(make_setup: MakeSetup, make_round: MakeRound) -> None:
    peers = [EControl(configured(overlap=True), make_setup()) for _ in range(2)]
    for number in range(4):
        contexts = [make_round(number, i, 2) for i in range(2)]
        made = [contribution(p, c) for p, c in zip(peers, contexts, strict=True)]
        for peer, context in zip(peers, contexts, strict=True):
            go_on(peer, context, 1)
            peer.merge(context, made)
    assert len({peer.state_digest(5) for peer in peers}) == 1


@pytest.mark.parametrize("tail", [b"", b"\x02", b"\x00\x00"])
def test_payloads_that_no_honest_peer_writes(
    tail: bytes, make_setup: MakeSetup, make_round: MakeRound
) -> None:
    """P6"""
    me = EControl(configured(), make_setup())
    payload = contribution(me, make_round(0, 0)).payload
    assert me.weigh(payload) == 2
    with pytest.raises(ValueError, match="one byte"):
        me.weigh(payload[:-1] + tail)


@pytest.mark.parametrize("name", ["econtrol.mine", "econtrol.marks"])
def test_a_local_state_that_is_not_ours_is_refused(name: str, make_setup: MakeSetup) -> None:
    me = EControl(configured(), make_setup())
    state = me.local_state()
    for broken in (None, torch.zeros(3), state[name] * float("nan")):
        changed = {k: v for k, v in {**state, name: broken}.items() if v is not None}
        with pytest.raises(ValueError, match=r"econtrol\."):
            me.load_local_state(changed)


def test_forgetting_is_refused() -> None:
    with pytest.raises(ValidationError, match="feedback_decay"):
        configured(feedback_decay=0.95)
