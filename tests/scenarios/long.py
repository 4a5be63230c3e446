"""Random weather over many seeds: the proof by numbers. Prints failing seeds with their stories.

    python tests/scenarios/long.py --seeds 0:1000 --jobs 2

One line of JSON at the end; exit code 1 if a seed failed. What failed belongs into seeds.txt.
"""

import argparse
import gc
import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from node.sim.checks import (
    BrokenPromiseError,
    Safety,
    assert_counted,
    assert_live,
    assert_unblamed,
    stories,
)
from node.sim.faults import Storm, bad_world
from node.sim.world import World
from protocol.rules import Quorum

SEEDS_FILE = Path(__file__).parent / "seeds.txt"
STORM_S = 120


@dataclass(frozen=True, slots=True)
class Outcome:
    seed: int
    quorum: Quorum
    story: str | None  # None: all promises held
    rounds: int
    events: int


def weather(
    seed: int, quorum: Quorum, seconds: int = STORM_S, *, attachments_anywhere: bool = False
) -> tuple[int, int]:
    """One bad world: it storms, clears, and then all must be well. Returns rounds and events."""
    world, storm = bad_world(seed, quorum, attachments_anywhere=attachments_anywhere)
    world.keep_notes = False
    try:
        _weather(world, storm, seconds)
    except Exception as error:
        error.add_note(f"{storm.weather}, {len(world.peers)} peers, at {world.now_ms:.0f} ms")
        if not isinstance(error, BrokenPromiseError):
            error.add_note(stories(world.up()))
        error.add_note(
            f"repeat: python tests/scenarios/long.py --seeds {seed} --quorum {quorum.value}"
            f" --storm {seconds}{' --attachments' if attachments_anywhere else ''}"
        )
        raise
    return max(world.rounds()), world.events


def _weather(world: World, storm: Storm, seconds: int) -> None:
    safety = Safety(world)
    world.on_event = safety.after_event
    for _ in range(seconds):
        world.run_for(1_000)
        safety.every_second()
        storm.second()
    storm.clear()
    assert_live(world)
    assert_counted(world)
    assert_unblamed(world)


def outcome(
    seed: int, quorum: Quorum, seconds: int = STORM_S, *, attachments_anywhere: bool = False
) -> Outcome:
    """The same, with whatever went wrong as text."""
    # A world is small and short-lived: looking for its garbage while it runs takes a tenth of the
    # time.
    gc.disable()
    try:
        rounds, events = weather(seed, quorum, seconds, attachments_anywhere=attachments_anywhere)
    except Exception as error:
        notes = "\n".join(getattr(error, "__notes__", ()))
        return Outcome(seed, quorum, f"{type(error).__name__}: {error}\n{notes}", 0, 0)
    finally:
        gc.enable()
        gc.collect(1)
    return Outcome(seed, quorum, None, rounds, events)


def known_seeds() -> list[tuple[int, Quorum]]:
    """What seeds.txt lists: a seed, a mode, and what it once taught."""
    found = []
    for line in SEEDS_FILE.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            seed, mode, _ = line.split(maxsplit=2)
            found.append((int(seed), Quorum(mode)))
    return found


@dataclass(slots=True)
class _Tally:
    total: int
    started: float = field(default_factory=time.monotonic)
    done: int = 0
    rounds: int = 0
    events: int = 0
    failed: list[Outcome] = field(default_factory=list)
    _told: float = 0.0

    def count(self, result: Outcome) -> None:
        self.done += 1
        self.rounds += result.rounds
        self.events += result.events
        if result.story is not None:
            self.failed.append(result)
            _say(f"\nFAILED seed {result.seed} {result.quorum.value}\n{result.story}\n")

    def tell(self) -> None:
        now = time.monotonic()
        if now - self._told < 2 and self.done < self.total:
            return
        self._told = now
        rate = self.done / max(1e-3, now - self.started)
        left = (self.total - self.done) / rate if rate else 0.0
        _say(
            f"{self.done}/{self.total} runs, {rate:.2f}/s, {left:.0f} s left, "
            f"{len(self.failed)} failed"
        )

    def summary(self) -> dict[str, object]:
        return {
            "runs": self.done,
            "rounds": self.rounds,
            "events": self.events,
            "seconds": round(time.monotonic() - self.started, 1),
            "failed": [f"{one.seed} {one.quorum.value}" for one in self.failed],
        }


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _results(
    runs: list[tuple[int, Quorum]], seconds: int, jobs: int, *, attachments_anywhere: bool
) -> Iterator[Outcome]:
    """As they come. No more is handed out than is being worked on, so Ctrl-C ends soon."""
    run_one = partial(outcome, attachments_anywhere=attachments_anywhere)
    if jobs == 1:
        yield from (run_one(*run, seconds) for run in runs)
        return
    with ProcessPoolExecutor(jobs) as pool:
        waiting, busy = list(reversed(runs)), set[Future[Outcome]]()
        while waiting or busy:
            while waiting and len(busy) < 2 * jobs:
                busy.add(pool.submit(run_one, *waiting.pop(), seconds))
            done, busy = wait(busy, return_when=FIRST_COMPLETED)
            yield from (one.result() for one in done)


def _seed_range(text: str) -> range:
    first, _, last = text.partition(":")
    return range(int(first), int(last)) if last else range(int(first), int(first) + 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=_seed_range, default=range(100), metavar="FIRST:END")
    parser.add_argument("--quorum", choices=[mode.value for mode in Quorum], default=None)
    parser.add_argument("--storm", type=int, default=STORM_S, help="seconds of bad weather")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument(
        "--attachments",
        action="store_true",
        help="also where any seal counts, and they may be lost",
    )
    options = parser.parse_args()
    modes = [Quorum(options.quorum)] if options.quorum else list(Quorum)
    runs = [(seed, mode) for seed in options.seeds for mode in modes]
    tally = _Tally(len(runs))
    anywhere = options.attachments
    for result in _results(runs, options.storm, options.jobs, attachments_anywhere=anywhere):
        tally.count(result)
        tally.tell()
    sys.stdout.write(json.dumps(tally.summary()) + "\n")
    return 1 if tally.failed else 0


if __name__ == "__main__":
    sys.exit(main())
