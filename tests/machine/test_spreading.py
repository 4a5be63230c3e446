"""The queue of news, against its obvious twin: sort everything each time."""

from hypothesis import given
from hypothesis import strategies as st

from protocol.ids import PeerId
from protocol.spreading import Spreading

PEERS = [PeerId(bytes([number]) * 32) for number in range(12)]

Step = tuple[str, int]


class Twin:
    """The same, by sorting."""

    def __init__(self) -> None:
        self.times: dict[PeerId, int] = {}

    def take(self, count: int, limit: int) -> list[PeerId]:
        chosen = sorted(self.times, key=lambda peer: (self.times[peer], peer))[:count]
        for peer in chosen:
            self.times[peer] += 1
            if self.times[peer] >= limit:
                del self.times[peer]
        return chosen


@given(
    st.lists(
        st.tuples(st.sampled_from(["add", "discard", "take"]), st.integers(0, len(PEERS) - 1)),
        max_size=300,
    )
)
def test_the_least_told_come_first(steps: list[Step]) -> None:
    """Nobody twice at once, nobody for ever, in the same order as by sorting."""
    spreading, twin = Spreading(), Twin()
    for action, number in steps:
        if action == "add":
            spreading.add(PEERS[number])
            twin.times[PEERS[number]] = 0
        elif action == "discard":
            spreading.discard(PEERS[number])
            twin.times.pop(PEERS[number], None)
        else:
            assert spreading.take(number, 3) == twin.take(number, 3)
        assert bool(spreading) == bool(twin.times)


def test_the_queue_stays_small() -> None:
    """P6: somebody who makes news of one peer again and again fills no memory."""
    spreading = Spreading()
    for _ in range(10_000):
        spreading.add(PEERS[0])
    assert len(spreading._queue) < 200
