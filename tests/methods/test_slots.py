"""Every slot goes to one probe, whatever the seats do."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from node.methods.parts.slots import Consumed, SlotQueue

# For each round: how many probes each seat did, and whether its contribution made it into the
# round.
rounds = st.lists(
    st.lists(st.tuples(st.integers(0, 30), st.booleans()), min_size=1, max_size=6), max_size=25
)


@given(rounds)
def test_no_slot_is_consumed_twice_and_none_is_lost(history: list[list[tuple[int, bool]]]) -> None:
    queue = SlotQueue()
    consumed: list[int] = []
    for seats in history:
        merged = [Consumed(s, 0, n) for s, (n, in_time) in enumerate(seats) if in_time]
        for c in merged:
            consumed += queue.slots(c.seat, len(seats), c.first, c.count).tolist()
        queue = queue.consume(len(seats), merged)
    left = [slot for start, end in queue.leftover for slot in range(start, end)]
    assert sorted(consumed + left) == list(range(queue.frontier))


@given(rounds)
def test_the_queue_equals_a_plain_list(history: list[list[tuple[int, bool]]]) -> None:
    """The slow twin: a list of 10,000 slots from which the consumed ones are taken."""
    queue, plain = SlotQueue(), list(range(10_000))
    for seats in history:
        merged = [Consumed(s, 0, n) for s, (n, in_time) in enumerate(seats) if in_time]
        taken = {plain[(c.first + j) * len(seats) + c.seat] for c in merged for j in range(c.count)}
        for c in merged:
            for j in range(c.count):
                assert queue.slot(c.seat, len(seats), j) == plain[j * len(seats) + c.seat]
        queue = queue.consume(len(seats), merged)
        plain = [slot for slot in plain if slot not in taken]
    assert [queue.slot(0, 1, i) for i in range(50)] == plain[:50]


@given(rounds)
def test_the_queue_survives_a_snapshot(history: list[list[tuple[int, bool]]]) -> None:
    queue = SlotQueue()
    for seats in history:
        merged = [Consumed(s, 0, n) for s, (n, in_time) in enumerate(seats) if in_time]
        queue = queue.consume(len(seats), merged)
    assert SlotQueue.from_tensor(queue.tensor()) == queue


def test_what_a_slow_seat_left_comes_first_in_the_next_round() -> None:
    queue = SlotQueue().consume(2, [Consumed(0, 0, 3), Consumed(1, 0, 1)])
    assert queue == SlotQueue(5, ((3, 4),))
    assert [queue.slot(0, 1, i) for i in range(3)] == [3, 5, 6]


@pytest.mark.parametrize(
    "rows",
    [[], [[5, 1]], [[5, 0], [3, 9]], [[5, 0], [1, 3], [3, 4]], [[5, 0], [2, 2]], [[-1, 0]]],
)
def test_a_broken_snapshot_is_refused(rows: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="slot"):
        SlotQueue.from_tensor(torch.tensor(rows, dtype=torch.int64).reshape(-1, 2))
