"""Who is a member: by the ledger alone."""

import hypothesis.strategies as st
from hypothesis import given, settings

from protocol.entries import Admission, Body, Cause, Departure, Line
from protocol.ids import Hash, PeerId
from protocol.roster import ALUMNI_MAX, LEAVE_VALID_ROUNDS, Roster
from tests.machine.making import card, ids, token

P = ids(8)


def body(
    round: int = 0, joins: tuple[int, ...] = (), leaves: tuple[tuple[int, Cause], ...] = ()
) -> Body:
    admissions = tuple(Admission(card(P[at]), None) for at in joins)
    departures = tuple(Departure(seat, cause, round, b"") for seat, cause in leaves)
    line = Line(0, b"8 bytes!", None, None)
    return Body(round, Hash(bytes(32)), 0, 0, 0, (line,), admissions, departures)


def test_nothing_changed_is_the_same_roster() -> None:
    roster = Roster(P[:3])
    assert roster.after(body()) is roster


def test_who_leaves_is_remembered_and_who_lied_is_barred() -> None:
    roster = Roster(P[:4])
    after = roster.after(
        body(5, joins=(6,), leaves=((1, Cause.LEFT), (2, Cause.EQUIVOCATED), (3, Cause.DEAD)))
    )
    assert after.members == (P[0], P[6])
    assert after.alumni == (P[1], P[3])
    assert after.banned == (P[2],)
    assert after.joined_at(P[6]) == 6
    assert after.joined_at(P[0]) == 0


def test_who_may_join() -> None:
    roster = Roster(P[:2], (P[2],), (P[3],))
    assert not roster.may_join(Admission(card(P[0]), None)), "a member already"
    assert roster.may_join(Admission(card(P[2]), None)), "was one before"
    assert not roster.may_join(Admission(card(P[3]), token(P[0]))), "was expelled"
    assert not roster.may_join(Admission(card(P[4]), None)), "has no invite"
    assert roster.may_join(Admission(card(P[4]), token(P[1]))), "invited by a member"
    assert roster.may_join(Admission(card(P[4]), token(P[2]))), "invited by a former one"
    assert not roster.may_join(Admission(card(P[4]), token(P[3]))), "invited by an expelled one"
    assert not roster.may_join(Admission(card(P[4]), token(P[5]))), "invited by nobody known"


def test_coming_back_is_no_longer_former() -> None:
    roster = Roster(P[:2], (P[2],)).after(body(3, joins=(2,)))
    assert roster.alumni == ()
    assert P[2] in roster


def test_the_memory_of_the_departed_is_bounded() -> None:
    """P8: the oldest are forgotten."""
    many = tuple(PeerId(number.to_bytes(32, "big")) for number in range(ALUMNI_MAX))
    roster = Roster(P[:2], many).after(body(0, leaves=((0, Cause.LEFT),)))
    assert len(roster.alumni) == ALUMNI_MAX
    assert roster.alumni[-1] == P[0]
    assert many[0] not in roster.alumni


def test_notices_of_leaving_lapse_and_do_not_outlive_a_membership() -> None:
    roster = Roster(P[:3]).after(body(9, joins=(5,)))
    assert roster.may_leave(P[0], 100, 100 + LEAVE_VALID_ROUNDS - 1)
    assert not roster.may_leave(P[0], 100, 100 + LEAVE_VALID_ROUNDS)
    assert not roster.may_leave(P[5], 9, 12), "given in an earlier membership"
    assert roster.may_leave(P[5], 10, 12)


def test_newcomers_are_forgotten_once_no_notice_could_harm_them() -> None:
    roster = Roster(P[:3]).after(body(9, joins=(5,)))
    soon = roster.after(body(9 + LEAVE_VALID_ROUNDS, joins=(6,)))
    late = roster.after(body(10 + LEAVE_VALID_ROUNDS, joins=(6,)))
    assert [peer for peer, _ in soon.newcomers] == [P[5], P[6]]
    assert [peer for peer, _ in late.newcomers] == [P[6]]


pools = st.lists(st.sampled_from(P), unique=True, max_size=4).map(tuple)


firsts = st.lists(st.tuples(st.sampled_from(P), st.integers(0, 2**48)), max_size=3).map(tuple)


@given(st.builds(Roster, pools, pools, pools, firsts))
@settings(max_examples=50)
def test_what_is_written_to_disk_is_read(roster: Roster) -> None:
    again = Roster.decode(roster.encode())
    assert again == roster
    assert (again.members, again.alumni) == (roster.members, roster.alumni)
    assert (again.banned, again.newcomers) == (roster.banned, roster.newcomers)


def test_the_hash_covers_every_part() -> None:
    parts = [
        Roster(P[:2]),
        Roster(P[:3]),
        Roster(P[:2], (P[2],)),
        Roster(P[:2], (), (P[2],)),
        Roster(P[:2], (), (), ((P[1], 7),)),
        Roster(P[:2], (), (), ((P[1], 8),)),
    ]
    assert len({roster.hash for roster in parts}) == len(parts)
