"""Slow links and stopped processes at the default rules: who is slow still counts, and lives."""

from dataclasses import replace
from statistics import median

import pytest

from node.sim.checks import Safety
from node.sim.links import PRESETS
from node.sim.network import Link
from node.sim.stub import Payloads
from node.sim.world import World
from protocol.entries import Cause, Entry
from protocol.restore import entry_at
from protocol.rounds import ranking, turn_ms
from protocol.rules import Quorum, Rules
from tests.scenarios.telling import (
    assert_all_well,
    closer_of_open_round,
    everyone_is_member,
    head,
    roster_of,
    units_on_chain,
)

BOTH = pytest.mark.parametrize("quorum", list(Quorum))
MINUTE = 60_000
HOME = PRESETS["home"].link()
SLOW_RATE = replace(
    HOME, up_bytes_per_ms=HOME.up_bytes_per_ms / 10, down_bytes_per_ms=HOME.down_bytes_per_ms / 10
)


def farther(link: Link, times: int) -> Link:
    return replace(link, delay_ms=link.delay_ms * times, jitter_ms=link.jitter_ms * times)


def swarm(slow: Link, quorum: Quorum, unit_bytes: int = 8) -> World:
    """Seven homes and p5, whose link is `slow`. A window ends within 20 ms of its time, as real
    work does: the arrivals of the others lie close together, and leave a straggler little room.
    """
    links = [HOME] * 8
    links[5] = slow
    world = World(
        8,
        seed=1,
        rules=Rules(quorum=quorum),
        own_links=links,
        payloads=Payloads(unit_bytes=unit_bytes),
        work_ms=lambda chance, window_ms: window_ms + 20 * chance.random(),
    )
    world.on_event = Safety(world).after_event
    return world


def entries(world: World) -> list[Entry]:
    """The ledger of p0."""
    reader = world.peers["p0"]
    found = [entry_at(reader.disk, round) for round in range(reader.peer.ledger.head.round)]
    return [entry for entry in found if entry is not None]


def listed(world: World, name: str) -> int:
    """In how many rounds a founder's work counts, while all are members."""
    seat = sorted(who.id for who in world.peers.values()).index(world.peers[name].id)
    return sum(any(line.seat == seat for line in entry.body.lines) for entry in entries(world))


@BOTH
@pytest.mark.parametrize(
    ("slow", "unit_bytes"),
    [
        (SLOW_RATE, 8),
        (SLOW_RATE, 4_096),
        (farther(HOME, 10), 8),
        (farther(HOME, 10), 4_096),
        (farther(SLOW_RATE, 10), 4_096),
    ],
    ids=["rate", "rate, 4 KiB", "delay", "delay, 4 KiB", "both, 4 KiB"],
)
def test_a_link_ten_times_slower_still_counts(slow: Link, unit_bytes: int, quorum: Quorum) -> None:
    """P3, P4: a tenth of the others' rate, ten times their delay, or both.

    1. Rounds go on for five minutes; p5 works a whole window like the others, and is heard later.
    2. Six rounds in seven list it, and as many list each of the others (nine in ten were measured).
    3. Rounds last a window and the least time that stragglers are given, or less; when p5 itself
       closes over its thin line, some three times as much, but never as long as the rules allow.
    """
    world = swarm(slow, quorum, unit_bytes)
    world.run_for(5 * MINUTE)
    rules, rounds = world.rules, entries(world)
    assert len(rounds) >= 5 * MINUTE / (rules.window_ms + 2 * rules.deadline_floor_ms)
    assert world.counts["departed"] == 0
    for name in world.peers:
        assert listed(world, name) >= 0.85 * len(rounds), name
    took = [entry.body.took_ms for entry in rounds]
    assert median(took) <= rules.window_ms + rules.deadline_floor_ms
    assert max(took[8:]) <= rules.window_ms + 4 * rules.deadline_floor_ms
    assert_all_well(world)


@BOTH
@pytest.mark.parametrize("why", ["far away", "at work for longer"])
def test_the_deadline_does_not_wait_beyond_its_bound(why: str, quorum: Quorum) -> None:
    """P3, P4: p5 is late by some two seconds each round: by its link, or by its work.

    1. The others' rounds last a window and about the least time that stragglers are given.
    2. p5 is late for most of them, and stays a member.
    3. What it did counts once it is well.
    """
    world = swarm(farther(HOME, 150) if why == "far away" else HOME, quorum)
    slow = world.peers["p5"]
    slow.slowness = 1.0 if why == "far away" else 1.4
    world.run_for(5 * MINUTE)
    rules, rounds = world.rules, entries(world)
    assert listed(world, "p5") < 0.5 * len(rounds)
    took = [entry.body.took_ms for entry in rounds[8:]]
    assert median(took) <= rules.window_ms + 2 * rules.deadline_floor_ms
    assert world.counts["departed"] == 0
    assert slow.worker is not None
    late = set(slow.worker.pending)
    assert late
    world.network.own_links[slow.id], slow.slowness = HOME, 1.0
    assert_all_well(world)
    world.run_for(MINUTE)
    assert late <= units_on_chain(world, "p0")


@BOTH
@pytest.mark.parametrize("peers", [3, 5, 12])
def test_a_stop_of_ten_seconds_kills_nobody(peers: int, quorum: Quorum) -> None:
    """P3, P4: at the default rules a process may be stopped (SIGSTOP) for ten seconds.

    1. One after the other is stopped: the closer of the open round, one in the middle of its work,
       one while another is still stopped.
    2. No entry ever lists one as dead; all are members all the time, and no work is lost.
    """
    world = World(peers, seed=2, rules=Rules(quorum=quorum), link=HOME)
    world.on_event = Safety(world).after_event
    world.run_for(20_000)
    for number in range(6):
        before = head(world)
        world.pause(closer_of_open_round(world), 10_000)
        world.run_for(3_000)
        world.pause(world.peers[f"p{number % peers}"], 10_000)
        world.run_for(27_000)
        assert head(world) > before
        assert everyone_is_member(world)()
    assert_all_well(world)
    departures = [departure for entry in entries(world) for departure in entry.body.departures]
    assert [gone for gone in departures if gone.cause is Cause.DEAD] == []
    assert roster_of(world, "p0") == set(world.peers)
    assert world.counts["departed"] == 0


@BOTH
@pytest.mark.parametrize("ms", [4_000, 6_000])
def test_who_wakes_up_within_a_round_keeps_nobody_waiting(ms: int, quorum: Quorum) -> None:
    """P4: p5 is stopped in the middle of one round and woken in the next, which then has waited for
    nobody and lists p5 too: it worked for what was left of the window.
    """
    world = swarm(HOME, quorum)
    slow = world.peers["p5"]
    world.run_for(MINUTE)
    start = head(world)
    assert world.run_until(lambda: head(world) > start, MINUTE)
    while closer_of_open_round(world) is slow:
        world.run_for(1_000)
    stopped_in = head(world)
    world.run_for(2_500)
    assert head(world) == stopped_in
    world.pause(slow, ms)
    world.run_for(MINUTE)
    rules, woken = world.rules, entries(world)[stopped_in + 1]
    assert woken.body.took_ms < rules.window_ms + rules.deadline_floor_ms // 2
    assert len(woken.body.lines) == len(world.peers)
    assert_all_well(world)


@BOTH
def test_a_closer_that_just_started_knows_how_long_rounds_take(quorum: Quorum) -> None:
    """P4: the closer of the next round but one is killed and started again. In its round a member
    dies just after it gave a sign of life: it is waited for as briefly as ever.
    """
    world = swarm(HOME, quorum)
    world.run_for(MINUTE)
    start = head(world)
    assert world.run_until(lambda: head(world) > start, MINUTE)
    mark = world.peers["p0"].peer.ledger.head
    closer, victim = ranking(world.run, mark.round + 2, mark.roster)[:2]
    world.crash(world.by_id[closer])
    world.start(world.by_id[closer])
    while head(world) < mark.round + 2:
        world.run_for(20)
    world.run_for(4_600)
    world.crash(world.by_id[victim])
    world.run_for(world.rules.window_ms)
    rules, closed = world.rules, entries(world)[mark.round + 2]
    assert closed.body.closer == mark.roster.seat(closer)
    assert closed.body.took_ms <= rules.window_ms + 2 * rules.deadline_floor_ms


@pytest.mark.parametrize("died_ms", [2_000, 4_600])
def test_a_deputy_waits_for_no_promise_of_the_dead(died_ms: int) -> None:
    """P4: the closer dies, early enough to be a suspect when the round is over, or too late.

    1. Early: its first deputy closes as soon as the living are in.
    2. Late: its first deputy takes its turn, and closes before the second has to.
    """
    world = swarm(HOME, Quorum.ANY)
    world.run_for(MINUTE)
    start = head(world)
    while head(world) == start:
        world.run_for(20)
    world.run_for(died_ms)
    rules, mark = world.rules, world.peers["p0"].peer.ledger.head
    closer, deputy, *_ = ranking(world.run, mark.round, mark.roster)
    world.crash(world.by_id[closer])
    world.run_for(MINUTE // 2)
    closed = entry_at(world.by_id[deputy].disk, mark.round)
    assert closed is not None
    assert closed.body.closer == mark.roster.seat(deputy)
    deadline_ms = rules.window_ms + rules.deadline_floor_ms
    most_ms = deadline_ms if died_ms == 2_000 else turn_ms(2, deadline_ms, rules)
    assert closed.body.took_ms < most_ms
