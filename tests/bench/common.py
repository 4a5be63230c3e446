"""Timing two things against each other on a shared machine, and one way to print what came out.

A benchmark compares with a physical bound or a peer in the same run, never with a stored time. The
two sides take turns, so that a noisy neighbour slows both, and each side's median is taken.
"""

import json
import statistics
import time
from collections.abc import Callable, Mapping


def time_once(work: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def time_in_turns(
    ours: Callable[[], object],
    theirs: Callable[[], object],
    repeats: int,
    theirs_every: int = 1,  # let a slow peer run only every so many turns
) -> tuple[float, float]:
    """Median seconds of (ours, theirs), after one unmeasured call of `ours`."""
    ours()
    our_times, their_times = [], []
    for turn in range(repeats):
        our_times.append(time_once(ours))
        if turn % theirs_every == 0:
            their_times.append(time_once(theirs))
    return statistics.median(our_times), statistics.median(their_times)


def report(name: str, met: bool, numbers: Mapping[str, object]) -> None:
    """Print one benchmark's result as a line of JSON on stdout."""
    rounded = {
        key: float(f"{value:.4g}") if isinstance(value, float) else value
        for key, value in numbers.items()
    }
    print(json.dumps({"bench": name, **rounded, "met": met}))
