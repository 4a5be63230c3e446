"""The schedule of faults: drawn, not yet done."""

from collections import Counter

import pytest

from tests.chaos.faults import NEED_NETWORK, REST, SHARES, Kind, draw


def test_a_seed_is_a_schedule() -> None:
    assert draw(3, 62, 1_700, 32, 5) == draw(3, 62, 1_700, 32, 5)
    assert draw(3, 62, 1_700, 32, 5) != draw(4, 62, 1_700, 32, 5)


@pytest.mark.parametrize("seed", range(5))
def test_every_seed_brings_the_same_mix(seed: int) -> None:
    faults = draw(seed, 62, 1_700, 32, 5)
    assert Counter(fault.kind for fault in faults) == SHARES
    few = draw(seed, 2, 60, 3, 5, without=NEED_NETWORK)
    assert {fault.kind for fault in few} == {Kind.KILL, Kind.STOP}


@pytest.mark.parametrize("peers", [2, 8, 32])
def test_no_member_is_hit_twice_at_once(peers: int) -> None:
    free_at = dict.fromkeys(range(peers), 0.0)
    for fault in draw(1, 62, 1_700, peers, 5):
        assert fault.victims
        for victim in fault.victims:
            assert fault.at_s >= free_at[victim]
            free_at[victim] = fault.at_s + fault.lasts_s + REST * 5
