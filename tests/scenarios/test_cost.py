"""P8: memory does not grow with the number of rounds, nor traffic faster than the members."""

import os
import subprocess
import sys

from node.sim.links import PRESETS
from node.sim.network import Link
from node.sim.report import Report, simulate
from node.sim.world import World
from protocol.ledger import RECENT
from protocol.rules import Rules

RULES = Rules(window_ms=1_000, deadline_ceiling_ms=3_000)


def test_marks_are_bounded_over_five_thousand_rounds() -> None:
    """P8: what a peer holds and writes beside its entries is as much after 5,000 rounds as after
    2,000, but for one octave of ever sparser marks.
    """
    world = World(1, seed=1, rules=RULES, link=Link(delay_ms=0, jitter_ms=0))
    world.keep_notes = False
    who = world.peers["p0"]
    sizes = {}
    for rounds in (2_000, 5_000):
        assert world.run_until_round(rounds, 20_000_000)
        sizes[rounds] = {
            table: sum(1 for _ in who.disk.scan(table)) for table in ("marks", "votes", "outbox")
        }
    octaves = (5_000 // RECENT).bit_length()
    assert sizes[5_000]["marks"] <= RECENT * 2 + octaves * RECENT // 2
    assert sizes[5_000]["marks"] <= sizes[2_000]["marks"] + RECENT
    assert sizes[5_000]["votes"] <= 9
    assert sizes[5_000]["outbox"] <= RECENT + 1
    assert sizes[5_000]["outbox"] == sizes[2_000]["outbox"]


def test_two_peers_over_a_thousand_rounds() -> None:
    """P8: so with two, whose votes and answers come over a network."""
    world = World(2, seed=2, rules=RULES)
    world.keep_notes = False
    assert world.run_until_round(1_000, 20_000_000)
    for who in world.up():
        assert sum(1 for _ in who.disk.scan("marks")) <= RECENT * 2 + RECENT
        assert sum(1 for _ in who.disk.scan("votes")) <= 9
        assert sum(1 for _ in who.disk.scan("outbox")) <= RECENT + 1
        assert sum(1 for _ in who.disk.scan("cards")) <= 2


def swarm_report(peers: int) -> Report:
    return simulate(peers=peers, rounds=8, rules=Rules(), links=[PRESETS["lan"]], seed=3)


def test_traffic_grows_no_faster_than_members() -> None:
    """P8: eight times the members, at most eight times the bytes, on any one link too."""
    small, large = swarm_report(8), swarm_report(64)
    assert large.control_bytes_per_s <= 8 * small.control_bytes_per_s
    assert large.sent_per_round.mean <= 8 * small.sent_per_round.mean
    assert large.sent_per_round.max <= 8 * small.sent_per_round.max
    assert large.received_per_round.max <= 8 * small.received_per_round.max


def test_one_seed_is_one_world_whatever_the_hash_seed() -> None:
    """No set or hash order decides anything: a failing seed fails everywhere."""
    code = (
        "from node.sim.faults import bad_world; from protocol.rules import Quorum\n"
        "world, storm = bad_world(5, Quorum.ANY)\n"
        "for _ in range(40): world.run_for(1000); storm.second()\n"
        "print(world.events, world.network.sent_bytes, sorted(world.counts.items()))"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1
