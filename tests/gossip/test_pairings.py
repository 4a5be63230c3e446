"""Pairings: everybody computes the same ones, of any number of members."""

from collections import Counter
from itertools import islice, pairwise
from math import ceil, log2
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.gossip.pairings import View, exponential_wait, meetings, partners, settled
from node.methods.parts.gossip_config import Kind

SEED = bytes(range(32))
UNDIRECTED: tuple[Kind, ...] = ("matching", "groups", "ring", "hypercube")
DIRECTED: tuple[Kind, ...] = ("exponential", "random")

counts = st.integers(0, 70)
rounds = st.integers(0, 1 << 40)


def members(count: int, first: int = 0) -> list[bytes]:
    return [number.to_bytes(32, "big") for number in range(first, first + count)]


def view(count: int, seed: bytes = SEED) -> View:
    return View.of(seed, members(count))


@given(counts, rounds, st.integers(2, 9), st.sampled_from(UNDIRECTED), st.randoms())
def test_everybody_computes_the_same_meetings_and_is_in_one_at_most(
    count: int, round: int, group: int, kind: Kind, chance: Random
) -> None:
    shuffled = members(count)
    chance.shuffle(shuffled)
    found = meetings(kind, view(count), round, group)
    assert found == meetings(kind, View.of(SEED, shuffled), round, group)
    seen = Counter(peer for one in found for peer in one.peers)
    assert set(seen) <= set(members(count))
    assert set(seen.values()) <= {1}
    size = group if kind == "groups" else 2
    assert all(2 <= len(one.peers) <= size and not one.directed for one in found)
    # As few as can be sit out: one, where the number leaves one over.
    out = count - len(seen)
    assert out == (count == 1 or (count > 1 and count % size == 1))


@given(counts, rounds, st.sampled_from(DIRECTED))
def test_each_sends_to_one_other(count: int, round: int, kind: Kind) -> None:
    found = meetings(kind, view(count), round)
    assert [len(one.peers) for one in found] == [2] * len(found)
    assert all(one.directed and one.peers[0] != one.peers[1] for one in found)
    senders = [one.peers[0] for one in found]
    assert sorted(senders) == (members(count) if count > 1 else [])
    if kind == "exponential":
        assert sorted(one.peers[1] for one in found) == sorted(senders)


@given(st.integers(2, 70), rounds, st.data())
def test_a_member_less_changes_few_pairs(count: int, round: int, data: st.DataObject) -> None:
    gone = data.draw(st.sampled_from(members(count)))
    with_it, without = view(count), View.of(SEED, [m for m in members(count) if m != gone])
    before, after = (set(meetings("matching", one, round)) for one in (with_it, without))
    # Along one path of the trie: its depth is log2(N) and a few more, for unlucky keys.
    assert len(before - after) <= ceil(log2(count)) + 12
    both = set(settled("matching", [with_it, without], round))
    assert both == before & after
    assert with_it.digest != without.digest


def test_most_pairs_survive_a_change_of_many_members() -> None:
    one, other = view(1000), View.of(SEED, members(1000, 1))
    kept = len(settled("matching", [one, other], 3))
    assert kept > 480  # of 500


def test_every_matching_of_four_is_equally_likely() -> None:
    found = Counter(
        frozenset(one.peers for one in meetings("matching", view(4), round))
        for round in range(3000)
    )
    assert len(found) == 3
    assert all(abs(count - 1000) < 5 * 26 for count in found.values())  # 5 sigma


def test_another_seed_gives_other_pairs() -> None:
    assert meetings("matching", view(64), 0) != meetings("matching", view(64, bytes(32)), 0)
    assert view(8).order != view(8, bytes(32)).order


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8, 9])
def test_a_ring_meets_both_neighbours_and_nobody_else(count: int) -> None:
    ring = view(count).order
    edges = {frozenset(pair) for pair in pairwise([*ring, ring[0]])}
    turns = 1 if count == 2 else 2 if count % 2 == 0 else count
    seen = Counter(
        frozenset(one.peers)
        for round in range(turns)
        for one in meetings("ring", view(count), round)
    )
    assert set(seen) == edges
    out = Counter(
        peer
        for round in range(turns)
        for peer in set(ring)
        - {p for one in meetings("ring", view(count), round) for p in one.peers}
    )
    assert out == (Counter(ring) if count % 2 else Counter())


@pytest.mark.parametrize("count", [2, 3, 5, 6, 8, 9])
def test_a_hypercube_meets_along_one_axis_after_the_other(count: int) -> None:
    order, hops = view(count).order, (count - 1).bit_length()
    for round in range(2 * hops):
        up, bit = round // hops, 1 << round % hops
        met = {one.peers for one in meetings("hypercube", view(count), round)}
        along = {
            tuple(sorted(order[(up + at) % count] for at in (rank, rank + bit)))
            for rank in range(count - bit)
            if not rank & bit
        }
        assert along <= met
        assert along == met or count & (count - 1)


def test_nobody_sits_out_of_a_hypercube_for_good() -> None:
    out = Counter(
        peer
        for round in range(3 * 5)
        for peer in set(members(5))
        - {p for one in meetings("hypercube", view(5), round) for p in one.peers}
    )
    assert out == Counter({member: 3 for member in members(5)})


def test_the_exponential_graph_hops_by_powers_of_two() -> None:
    order = view(8).order
    hops = []
    for round in range(4):
        first = next(o for o in meetings("exponential", view(8), round) if o.peers[0] == order[0])
        hops.append(order.index(first.peers[1]))
    assert hops == [1, 2, 4, 1]


def test_random_targets_are_spread_evenly() -> None:
    count, trials = 5, 2000
    pairs = Counter(
        one.peers for round in range(trials) for one in meetings("random", view(count), round)
    )
    assert len(pairs) == count * (count - 1)
    expected = trials / (count - 1)
    assert all(abs(seen - expected) < 5 * expected**0.5 for seen in pairs.values())


@given(st.integers(1, 30), st.integers(0, 1000))
def test_an_asynchronous_peer_asks_each_other_one_once(count: int, number: int) -> None:
    me = members(count)[-1]
    ranking = list(partners(view(count), me, number))
    assert sorted(ranking) == [m for m in members(count) if m != me]
    stranger = bytes([255]) * 32
    assert sorted(partners(view(count), stranger, number)) == members(count)


def test_first_partners_differ_from_time_to_time() -> None:
    me = members(9)[0]
    firsts = Counter(next(islice(partners(view(9), me, n), 1)) for n in range(1600))
    assert len(firsts) == 8
    assert all(abs(seen - 200) < 5 * 200**0.5 for seen in firsts.values())


def test_waits_are_exponential() -> None:
    mean, trials = 1_000_000, 4000
    waits = sorted(exponential_wait(SEED, bytes(32), n, mean) for n in range(trials))
    assert sum(waits) / trials == pytest.approx(mean, rel=5 / trials**0.5)
    for share, quantile in ((0.5, 0.693147), (0.9, 2.302585), (0.98, 3.912023)):
        spread = (share * (1 - share) / trials) ** 0.5 / (1 - share)  # of the sample's quantile
        at = waits[int(share * trials)] / mean
        assert at == pytest.approx(quantile, abs=5 * spread)


def test_pairings_stay_what_they_were() -> None:
    """Known answers: another machine, or another version, that differs cannot take part."""
    found = [meetings(kind, view(5), 7) for kind in ("matching", "ring", "exponential", "random")]
    ranks = [[(one.peers[0][-1], one.peers[1][-1]) for one in each] for each in found]
    assert ranks == KNOWN
    assert exponential_wait(SEED, bytes(32), 0, 1 << 20) == KNOWN_WAIT
    of_six = [(one.peers[0][-1], one.peers[1][-1]) for one in meetings("hypercube", view(6), 7)]
    assert of_six == KNOWN_CUBE


KNOWN = [
    [(0, 1), (3, 4)],
    [(2, 4), (1, 3)],
    [(1, 2), (0, 4), (2, 3), (4, 1), (3, 0)],
    [(0, 1), (1, 4), (2, 0), (3, 0), (4, 1)],
]
KNOWN_WAIT = 781797
KNOWN_CUBE = [(2, 3), (4, 5), (0, 1)]
