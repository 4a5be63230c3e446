"""Every shared micro-batch goes to one peer; private ones are each peer's own."""

from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from node.methods.base import RoundContext
from node.methods.parts.feed import PLACES_MAX, Feed
from node.methods.parts.slots import SlotQueue
from node.training.losses import Batch
from tests.methods.inner_outer import dealt

RUN = bytes(32)


class Slots:
    """Data of which only the numbers matter."""

    def __init__(self, private: bool = False) -> None:
        self.private = private

    def batch(self, slot: int) -> Batch:
        raise AssertionError("nobody looks at it")

    def held_out(self) -> list[Batch]:
        raise AssertionError("nobody looks at it")


def peer(number: int) -> bytes:
    return bytes([number]) * 32


def context(round: int, me: int, seats: int) -> RoundContext:
    return RoundContext(RUN, round, peer(me), tuple(peer(i) for i in range(seats)), lambda: True)


def first(feed: Feed, round: RoundContext, batches: int) -> list[int]:
    return list(islice(feed.slots(round, round.round), batches))


# For each round: how many micro-batches each seat consumed, and whether its payload is listed.
rounds = st.lists(
    st.lists(st.tuples(st.integers(1, 90), st.booleans()), min_size=1, max_size=5), max_size=8
)


@given(rounds)
def test_no_micro_batch_is_merged_twice_and_none_is_lost(
    history: list[list[tuple[int, bool]]],
) -> None:
    feed = Feed(Slots())
    seen: list[int] = []
    for number, seats in enumerate(history):
        listed: dict[bytes, int] = {}
        for seat, (batches, is_listed) in enumerate(seats):
            if is_listed:
                seen += first(feed, context(number, seat, len(seats)), batches)
                listed[peer(seat)] = batches
        feed.merge(context(number, 0, len(seats)), listed)
    left = [slot for start, end in feed.queues[0].leftover for slot in range(start, end)]
    assert sorted(seen + left) == list(range(feed.queues[0].frontier))


# For each round and each of three seats: micro-batches that were begun before the round, and in it.
paces = st.lists(
    st.lists(
        st.tuples(st.integers(0, 70), st.integers(0, 70), st.booleans()), min_size=3, max_size=3
    ),
    max_size=8,
)


@given(paces)
def test_who_begins_early_sees_nothing_twice_at_any_pace(
    history: list[list[tuple[int, int, bool]]],
) -> None:
    """Before a round is merged, slots of the next one are looked at."""
    feed = Feed(Slots(), begins_early=True)
    merged: list[int] = []
    begun: list[list[int]] = [[], [], []]
    for number, seats in enumerate(history):
        listed: dict[bytes, int] = {}
        for seat, (_, batches, is_listed) in enumerate(seats):
            mine = context(number, seat, 3)
            fresh = list(islice(feed.slots(mine, number, len(begun[seat])), batches))
            if is_listed:
                merged += begun[seat] + fresh
                listed[peer(seat)] = len(begun[seat] + fresh)
        after = history[number + 1] if number + 1 < len(history) else [(0, 0, True)] * 3
        for seat, (early, _, _) in enumerate(after):
            mine = context(number, seat, 3)
            begun[seat] = list(islice(feed.slots(mine, number + 1), early // 2))
            begun[seat] += islice(feed.slots(mine, number + 1, early // 2), early - early // 2)
        feed.merge(context(number, 0, 3), listed)
    assert sorted(merged) == dealt(feed)


def test_seats_take_turns_and_can_go_on() -> None:
    feed = Feed(Slots())
    assert first(feed, context(0, 1, 3), 4) == [1, 4, 7, 10]
    assert first(feed, context(0, 2, 3), 100) == list(range(2, 302, 3))


def test_shared_slots_wait_for_the_merge() -> None:
    feed = Feed(Slots())
    feed.used(5)
    assert first(feed, context(1, 0, 1), 2) == [0, 1]
    feed.merge(context(0, 0, 2), {peer(0): 1, peer(9): 4})  # 9 has no seat
    assert first(feed, context(1, 0, 1), 2) == [1, 2]


def test_private_slots_are_gone_through_once() -> None:
    feed = Feed(Slots(private=True))
    assert first(feed, context(0, 1, 3), 3) == [0, 1, 2]
    feed.used(2)
    feed.merge(context(0, 1, 3), {peer(0): 7, peer(1): 2})
    assert first(feed, context(1, 0, 2), 3) == [2, 3, 4]
    assert feed.queues == [SlotQueue()]


def test_a_claim_of_very_much_costs_little() -> None:
    """Bounded memory; what is past the bound is given out again."""
    seats = 4096
    members = tuple(i.to_bytes(32) for i in range(seats))
    round = RoundContext(RUN, 0, members[0], members, lambda: True)
    feed = Feed(Slots())
    feed.merge(round, {members[0]: 1 << 16})
    assert feed.queues[0].frontier <= PLACES_MAX
    assert next(feed.slots(round, 0)) == 1


def test_both_states_survive() -> None:
    feed = Feed(Slots())
    feed.merge(context(0, 0, 3), {peer(0): 5, peer(2): 3})
    again = Feed(Slots())
    again.queues = again.queues_in(feed.replicated_state())
    assert again.queues == feed.queues
    early = Feed(Slots(), begins_early=True)
    early.merge(context(1, 0, 3), {peer(1): 2})
    again = Feed(Slots(), begins_early=True)
    again.queues = again.queues_in(early.replicated_state())
    assert again.queues == early.queues
    assert again.queues[0] == SlotQueue()
    with pytest.raises(ValueError, match="missing"):
        again.queues_in(feed.replicated_state())
    private = Feed(Slots(private=True))
    private.used(7)
    again = Feed(Slots(private=True))
    again.load_local_state(private.local_state())
    assert first(again, context(3, 0, 1), 1) == [7]


def test_a_broken_state_changes_nothing() -> None:
    feed = Feed(Slots(private=True))
    feed.used(7)
    for cursor in (torch.tensor([-1]), torch.tensor([1.0]), torch.tensor([1, 2])):
        with pytest.raises(ValueError, match="cursor"):
            feed.load_local_state({"feed.cursor": cursor})
    with pytest.raises(ValueError, match="missing"):
        feed.load_local_state({})
    with pytest.raises(ValueError, match="missing"):
        feed.queues_in({})
    assert first(feed, context(0, 0, 1), 1) == [7]
