"""When a round may close, who closes it, and how an entry spreads (P4, P8)."""

from collections import Counter
from itertools import pairwise

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from protocol.ids import Hash, Millis
from protocol.roster import Roster
from protocol.rounds import (
    ARRIVALS_MIN,
    Close,
    Wait,
    ballot_due,
    children,
    deadline_after_ms,
    decide,
    owner,
    ranking,
    tree,
    turn_ms,
)
from protocol.rules import Rules
from tests.machine.making import RUN, ids

rules = st.builds(
    Rules,
    window_ms=st.integers(1, 86_400_000),
    deadline_floor_ms=st.integers(1, 1_000),
    deadline_ceiling_ms=st.integers(1_000, 86_400_000),
    deadline_mads=st.integers(1, 100),
    takeover_ms=st.integers(1, 3_600_000),
)


@given(st.integers(1, 40), st.integers(0, 2**48 - 1))
def test_a_ranking_is_a_permutation(count: int, round: int) -> None:
    members = ids(count)
    assert sorted(ranking(RUN, round, Roster(members))) == members


def test_the_task_rotates_fairly() -> None:
    """P4: no role is permanent. Over 3,000 rounds each of 6 closes about 500 times."""
    roster = Roster(ids(6))
    firsts = Counter(ranking(RUN, round, roster)[0] for round in range(3_000))
    assert set(firsts) == set(roster.members)
    assert all(400 < count < 600 for count in firsts.values())
    assert len({ranking(RUN, round, roster) for round in range(200)}) > 150


def test_everybody_computes_the_same_ranking() -> None:
    members = ids(9)
    assert ranking(RUN, 5, Roster(members)) == ranking(RUN, 5, Roster(reversed(members)))


@given(st.lists(st.integers(0, 10**9), max_size=70), rules)
def test_a_deadline_stays_between_floor_and_ceiling(arrivals: list[int], rules: Rules) -> None:
    deadline = deadline_after_ms(arrivals, rules)
    assert rules.window_ms + rules.deadline_floor_ms <= deadline
    assert deadline <= rules.window_ms + rules.deadline_ceiling_ms
    if len(arrivals) < ARRIVALS_MIN:
        assert deadline == rules.window_ms + rules.deadline_ceiling_ms


def test_one_straggler_does_not_move_the_deadline() -> None:
    steady = [5_100 + 10 * number for number in range(20)]
    usual = deadline_after_ms(steady, Rules())
    assert deadline_after_ms([*steady, 10**8], Rules()) < usual + 100


@given(st.integers(1, 10**8), rules)
def test_turns_come_ever_later(deadline: int, rules: Rules) -> None:
    turns = [turn_ms(ballot, deadline, rules) for ballot in range(50)]
    gaps = [later - sooner for sooner, later in pairwise(turns)]
    assert turns[0] == deadline
    assert all(gap >= rules.takeover_ms for gap in gaps)
    assert gaps[-1] > gaps[0] or rules.takeover_ms < 16


@given(st.integers(-1_000, 10**12), st.integers(1, 10**8), rules)
@settings(max_examples=200)
def test_the_ballot_that_is_due_is_the_newest(elapsed: int, deadline: int, rules: Rules) -> None:
    ballot = ballot_due(elapsed, deadline, rules)
    assert turn_ms(ballot + 1, deadline, rules) > elapsed
    assert ballot == -1 or turn_ms(ballot, deadline, rules) <= elapsed


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 10**6), st.integers(0, 10**6))
@settings(max_examples=200)
def test_a_close_holds_something_and_a_wait_ends_later(
    heard: int, missing: int, deadline: int, now: int
) -> None:
    """The two bugs of every first draft: closing on nothing, and a timer already past (P2, P4)."""
    match decide(heard, missing, Millis(deadline), Millis(now)):
        case Close():
            assert heard > 0
            assert missing == 0 or now >= deadline
        case Wait(until, _):
            assert until is None or until > now
            assert heard == 0 or now < deadline


@given(st.integers(1, 60), st.integers(1, 12), st.data())
def test_a_tree_reaches_everybody_once(count: int, fanout: int, data: st.DataObject) -> None:
    """And nobody sends to more than `fanout` others (P8)."""
    ranked = ids(count)
    root = data.draw(st.sampled_from(ranked))
    order = tree(ranked, root)
    assert sorted(order) == ranked
    reached, waiting = [root], [root]
    while waiting:
        below = children(order, waiting.pop(), fanout)
        assert len(below) <= fanout
        reached += below
        waiting += below
    assert sorted(reached) == ranked


@pytest.mark.parametrize("ballot", [0, 1, 5, 2**32 - 1])
def test_ballots_go_round(ballot: int) -> None:
    ranked = ids(5)
    assert owner(ranked, ballot) == ranked[ballot % 5]
    assert owner([Hash(bytes(32))], ballot) == bytes(32)  # type: ignore[list-item]
