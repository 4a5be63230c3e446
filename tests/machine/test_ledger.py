"""The chain: what counts as an entry, which of two chains is kept, what is remembered."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from protocol.codec import decode_entry
from protocol.entries import Admission, Body, Cause, Departure, Entry, Line
from protocol.errors import RemoteError
from protocol.ids import Hash
from protocol.ledger import (
    RECENT,
    Ledger,
    Mark,
    decode_mark,
    encode_mark,
    head_is_better,
    heavier,
)
from protocol.messages import Head
from protocol.roster import Roster
from tests.machine.making import (
    RUN,
    card,
    chain,
    entry,
    genesis,
    ids,
    judge,
    leave,
    line,
    sealed,
    token,
)

P = ids(6)
START = genesis(P[:3])


def ledger() -> Ledger:
    return Ledger(judge(), P[:3])


def test_an_entry_follows() -> None:
    """P2: what is committed is what its lines say."""
    own = ledger()
    made = entry(own.head, P[1], P[:3])
    writes = own.extend(made)
    assert (own.head.round, own.head.hash, own.head.weight) == (1, made.hash, 3)
    kept = {(write.table, write.key): write.value for write in writes}
    assert kept[("chain", bytes(8))] == made.hash
    stored = kept[("entries", made.hash)]
    assert stored is not None
    assert decode_entry(stored) == made


def altered(made: Entry, **changes: object) -> Entry:
    """Sealed again, as a closer with bad intentions would."""
    body = replace(made.body, **changes)  # type: ignore[arg-type]
    return sealed(body, P[made.body.closer], made.signatures)


def swapped(made: Entry) -> Entry:
    body = replace(made.body, lines=made.body.lines[::-1])
    return sealed(body, P[made.body.closer], made.signatures[::-1])


def doubled(made: Entry) -> Entry:
    body = replace(made.body, lines=(made.body.lines[0],) * 2)
    return sealed(body, P[made.body.closer], (made.signatures[0],) * 2)


def stranger(made: Entry) -> Entry:
    extra = Line(3, b"8 bytes!", None, None)
    body = replace(made.body, lines=(*made.body.lines, extra))
    return sealed(body, P[made.body.closer], (*made.signatures, bytes(64)))


def joining(*admissions: Admission) -> Callable[[Entry], Entry]:
    return lambda made: altered(made, admissions=admissions)


def leaving(*departures: Departure) -> Callable[[Entry], Entry]:
    return lambda made: altered(made, departures=departures)


NOTICE = leave(P[1], 0).signature


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda made: replace_seal(made, bytes(64)), "false seal"),
        (lambda made: altered(made, closer=0), "false seal"),
        (lambda made: altered(made, closer=3), "closed by nobody"),
        (lambda made: altered(made, round=1), "does not follow"),
        (lambda made: altered(made, parent=bytes(32)), "does not follow"),
        (lambda made: altered(made, state=8), "false signature"),
        (
            lambda made: Entry(made.body, made.raw, made.seal, made.signatures[::-1]),
            "false signature",
        ),
        (lambda made: sealed(replace(made.body, lines=()), P[1], ()), "without contributions"),
        (swapped, "out of order"),
        (doubled, "out of order"),
        (stranger, "from a stranger"),
        (joining(Admission(card(P[0]), None)), "may not join"),
        (joining(Admission(card(P[4]), None)), "may not join"),
        (joining(Admission(card(P[4]), token(P[5]))), "may not join"),
        (joining(Admission(replace(card(P[4]), sequence=9), token(P[0]))), "card with a false"),
        (joining(Admission(card(P[4]), replace(token(P[0]), expires_s=9))), "token with a false"),
        (joining(*[Admission(card(P[4]), token(P[0]))] * 2), "admissions out of order"),
        (leaving(Departure(3, Cause.DEAD, 0, b"")), "departure of nobody"),
        (leaving(*[Departure(0, Cause.DEAD, 0, b"")] * 2), "departures out of order"),
        (leaving(*[Departure(seat, Cause.DEAD, 0, b"") for seat in range(3)]), "leaves nobody"),
        (leaving(Departure(1, Cause.LEFT, 0, bytes(64))), "does not hold"),
        (leaving(Departure(0, Cause.LEFT, 0, NOTICE)), "does not hold"),
        (leaving(Departure(1, Cause.LEFT, 1, NOTICE)), "not begun"),
        (leaving(Departure(1, Cause.EQUIVOCATED, 0, bytes(224))), "names one entry twice"),
        (leaving(Departure(1, Cause.EQUIVOCATED, 0, bytes(223))), "wrong size"),
        (leaving(Departure(1, Cause.EQUIVOCATED, 0, bytes(range(224)))), "false seal"),
    ],
)
def test_what_was_not_signed_so_does_not_follow(spoil: Callable[[Entry], Entry], why: str) -> None:
    """P2, P6: no line that nobody signed, none twice, none out of its order."""
    own = ledger()
    with pytest.raises(RemoteError, match=why):
        own.extend(spoil(entry(START, P[1], P[:3])))
    assert own.head is own.genesis


def replace_seal(made: Entry, seal: bytes) -> Entry:
    return Entry(made.body, made.raw, seal, made.signatures)


def test_a_leaf_of_the_method_is_asked_about_each_payload() -> None:
    with pytest.raises(RemoteError, match="payload"):
        ledger().extend(entry(START, P[1], payload=b"odd"))


def test_a_notice_of_leaving_holds() -> None:
    own = ledger()
    own.extend(leaving(Departure(1, Cause.LEFT, 0, NOTICE))(entry(START, P[2], P[:3])))
    assert own.head.roster.members == (P[0], P[2])


# Fork choice

marks = st.builds(
    Mark,
    st.integers(0, 5),
    st.integers(0, 3).map(lambda number: Hash(bytes([number]) * 32)),
    st.integers(0, 3),
    st.just(Roster(P[:1])),
)


@given(marks, marks, marks)
@settings(max_examples=200)
def test_fork_choice_is_a_total_order(one: Mark, other: Mark, third: Mark) -> None:
    """P5: any two peers that compare the same two chains keep the same one."""
    same = (one.weight, one.hash) == (other.weight, other.hash)
    assert heavier(one, other) + heavier(other, one) == (0 if same else 1)
    if heavier(one, other) and heavier(other, third):
        assert heavier(one, third)


@given(marks, marks)
@settings(max_examples=100)
def test_heads_tell_the_same(one: Mark, other: Mark) -> None:
    heads = [Head(mark.round, mark.weight, mark.hash[:8]) for mark in (one, other)]
    assert head_is_better(*heads) == heavier(one, other)


def test_the_heavier_branch_wins_on_both_sides() -> None:
    """P5: two halves closed different rounds; both end on the chain with more work."""
    light, heavy = chain(START, P[0], 3), chain(START, P[1], 2, payload=bytes(16))
    one, other = ledger(), ledger()
    one.offer(light, may_switch=True)
    other.offer(heavy, may_switch=True)
    step = one.offer(heavy, may_switch=True)
    assert step.switched_from is not None
    assert (step.switched_from.round, step.fork_round) == (3, 0)
    assert step.appended == []
    assert step.last is heavy[-1]
    assert other.offer(light, may_switch=True).switched_from is None
    assert one.head.hash == other.head.hash == heavy[-1].hash
    deleted = [write.key for write in step.writes if write.table == "chain" and not write.value]
    assert [int.from_bytes(key, "big") for key in deleted] == [0, 1, 2]


def test_a_run_that_votes_never_switches() -> None:
    one = ledger()
    one.offer(chain(START, P[0], 2), may_switch=False)
    heavy = chain(START, P[1], 3, payload=bytes(80))
    before = one.head
    step = one.offer(heavy, may_switch=False)
    assert one.head is before
    assert step.fault is not None


def test_a_branch_from_the_middle() -> None:
    common = chain(START, P[0], 5)
    one = ledger()
    one.offer(common, may_switch=True)
    root = one.mark_at(3)
    assert root is not None
    branch = chain(root, P[1], 3, payload=bytes(16))
    step = one.offer([*common[:3], *branch], may_switch=True)
    assert step.fork_round == 3
    assert one.head.hash == branch[-1].hash
    assert one.head.weight == 3 + 6


def test_what_follows_nothing_known_is_left_out_and_no_fault() -> None:
    """Its sender may stand on a branch that we gave up since we asked. What came before counts."""
    one, made = ledger(), chain(START, P[0], 4)
    step = one.offer([made[0], made[2], made[3]], may_switch=True)
    assert (step.appended, step.read, step.fault) == ([made[0]], [], None)
    assert one.head.round == 1


def test_the_same_again_changes_nothing() -> None:
    one, made = ledger(), chain(START, P[0], 3)
    one.offer(made, may_switch=True)
    step = one.offer(made, may_switch=True)
    assert (step.writes, step.appended, step.fault) == ([], [], None)


# Memory

LONG = chain(genesis(P[:1]), P[0], 3_000)


def test_memory_does_not_grow_with_the_rounds() -> None:
    """P8: a few hundred marks and some for each doubling, on disk as in memory."""
    one = Ledger(judge(), P[:1])
    disk: dict[bytes, bytes] = {}
    for made in LONG:
        for write in one.extend(made):
            if write.table == "marks":
                if write.value is None:
                    disk.pop(write.key, None)
                else:
                    disk[write.key] = write.value
    assert len(one._marks) < 2 * RECENT + 64 + 10 * RECENT // 2
    assert len(one._marks) < 1_100
    assert {int.from_bytes(key, "big") for key in disk} == set(one._marks) - {0}
    rosters: dict[bytes, Roster] = {one.genesis.roster.hash: one.genesis.roster}
    for key, raw in disk.items():
        mark = decode_mark(key, raw, rosters)
        kept = one.mark_at(mark.round)
        assert kept is not None
        assert (mark.hash, mark.weight) == (kept.hash, kept.weight)
        assert encode_mark(mark) == raw


@cache
def long_ledger() -> Ledger:
    one = Ledger(judge(), P[:1])
    for made in LONG:
        one.extend(made)
    return one


@pytest.mark.parametrize("fork", [0, 1, 700, 2_000, 2_900, 2_999, 3_000])
@pytest.mark.parametrize("most", [1, 2, 8, 64])
def test_locators_find_a_common_place(fork: int, most: int) -> None:
    """Wherever the chains part, one locator is on both; the first such is not far behind."""
    one = long_ledger()
    locators = one.locators(most)
    assert len(locators) <= max(1, most)
    assert locators[-1].round == 0
    assert [place.round for place in locators] == sorted({p.round for p in locators}, reverse=True)
    common = next(place.round for place in locators if place.round <= fork)
    if most == 64:
        assert fork - common <= 2 + (3_000 - fork) // 2


def test_the_beginning_is_the_run() -> None:
    assert ledger().locators(64)[-1].entry == Hash(RUN)


def test_an_entry_must_fit() -> None:
    made = entry(START, P[1])
    wide = Body(0, START.hash, 1, 0, 7, made.body.lines, (), ())
    huge = Entry(wide, made.raw + bytes(3 << 20), made.seal, made.signatures)
    with pytest.raises(RemoteError, match="out of bounds"):
        ledger().extend(huge)


def test_a_line_is_signed_for_its_place_in_the_run() -> None:
    """A contribution cannot be listed in another round or on another branch."""
    first = entry(START, P[1])
    after = judge().follow(START, first)
    old, signature = line(START, P[1])
    body = Body(1, after.hash, 1, 0, 7, (old,), (), ())
    with pytest.raises(RemoteError, match="false signature"):
        judge().follow(after, sealed(body, P[1], (signature,)))


def test_a_branch_that_parts_from_another_branch_is_read() -> None:
    """P5: two other chains may share their beginning, and the first one read may be the lighter."""
    ledger, start = Ledger(judge(), P), genesis(P)
    ours = chain(start, P[0], 5)
    for one in ours:
        ledger.extend(one)
    shared = chain(start, P[1], 2)
    tip = start
    for one in shared:
        tip = judge().follow(tip, one)
    first, second = chain(tip, P[1], 2), chain(tip, P[2], 5)
    assert ledger.offer([*shared, *first], may_switch=True).fault is None
    step = ledger.offer([*shared, *second], may_switch=True)
    assert step.fault is None
    assert ledger.head.hash == second[-1].hash
    assert step.fork_round == 0
