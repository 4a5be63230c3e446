"""Random weather: loss, delay, duplicates, crashes at any write, pauses, splits, all at once.

A failing seed is a gift: it goes into seeds.txt. Many more seeds: `python tests/scenarios/long.py`.
"""

import os

import pytest

from protocol.rules import Quorum
from tests.scenarios.long import known_seeds, outcome, weather

BOTH = pytest.mark.parametrize("quorum", list(Quorum))


@BOTH
@pytest.mark.parametrize("seed", range(16))
def test_all_promises_hold_in_bad_weather(seed: int, quorum: Quorum) -> None:
    """P1 to P5: after each event, each second, and once the weather has cleared."""
    weather(seed, quorum, seconds=60)


@pytest.mark.parametrize("batch", range(25))
def test_worlds_that_nobody_has_seen_before(batch: int) -> None:
    """P1 to P5: 200 new ones each time. One that fails says how to repeat it."""
    first = int.from_bytes(os.urandom(5), "big")
    for seed in range(first, first + 4):
        for quorum in Quorum:
            assert outcome(seed, quorum, seconds=40).story is None, (seed, quorum)


def test_what_seeds_have_taught() -> None:
    """P1 to P5: worlds in which a promise was once broken. A failure names its seed."""
    failures = [one for one in (outcome(*run) for run in known_seeds()) if one.story is not None]
    assert not failures, failures[0]
