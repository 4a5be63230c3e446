"""Meetings: who comes, who does not, and which stretches count. One peer, fed by hand."""

from collections.abc import Iterable
from dataclasses import replace

import pytest

from protocol.codec import CHUNK_BYTES
from protocol.effects import (
    CloseExchange,
    DropDoubts,
    Effect,
    ForgetDecision,
    Members,
    MoveStretch,
    OfferStretch,
    OpenExchange,
    Send,
    TakeStretch,
)
from protocol.events import (
    Crew,
    Decision,
    Doubt,
    MeetAsked,
    MeetsAnyone,
    Moved,
    Offered,
    Offering,
    Prepared,
    Recalled,
    Tick,
)
from protocol.exchanging import pack, unpack
from protocol.ids import Hash, PeerId
from protocol.meetings import session_of, topic_of
from protocol.messages import (
    Absence,
    Counted,
    Meet,
    NotMeeting,
    Ready,
    StretchFrame,
    StretchRequest,
    Verdict,
)
from tests.machine.making import RUN, Door, E, M, ids

P = ids(4)
VIEW = b"16 bytes of view"
OFFERING = Offering(VIEW, 2, 3 * CHUNK_BYTES)
PAIR = Crew((P[0], P[1]))
TOPIC = topic_of(RUN, 5, VIEW, PAIR)
SESSION = session_of(TOPIC, (1, 1))


def of(effects: Iterable[Effect], kind: type[E]) -> list[E]:
    return [effect for effect in effects if isinstance(effect, kind)]


def sent(effects: Iterable[Effect], to: PeerId, kind: type[M]) -> list[M]:
    found = [effect for effect in effects if isinstance(effect, Send) and to in effect.to]
    return [effect.message for effect in found if isinstance(effect.message, kind)]


def door(me: int = 0) -> Door:
    made = Door(P[me], P)
    made.on(Recalled((), ()))
    return made


def come(one: Door, number: int = 5, crew: Crew = PAIR) -> None:
    one.on(MeetAsked(number, (crew,), OFFERING, 2_000))


def begun(me: int = 0) -> Door:
    """In a session with the other one of the first two."""
    one = door(me)
    come(one)
    one.hear(P[1 - me], Meet(TOPIC, 5, VIEW, 1, wants_reply=False))
    assert of(one.effects, OpenExchange)[0].session == SESSION
    return one


def taken(one: Door, other: PeerId, stretch: int) -> None:
    """Both sides' offers of a stretch are here, and prepared."""
    one.on(Offered(SESSION, stretch, b"mine"))
    one.hear(other, StretchFrame(SESSION, stretch, 0, 1, b"theirs"))
    assert of(one.effects, TakeStretch) == [
        TakeStretch(SESSION, stretch, ((other, b"theirs"),), P[0])
    ]
    one.on(Prepared(SESSION, stretch))


def test_maps_hold_what_they_are_made_of() -> None:
    for numbers in ([], [0], [7, 8], [3, 65_535]):
        assert list(unpack(pack(numbers))) == numbers
    assert pack([0]) == b"\x01"


def test_members_are_told_once_somebody_wants_to_know() -> None:
    one = Door(P[0], P)
    assert not of(one.effects, Members)
    one.on(Recalled((), ()))
    assert of(one.effects, Members) == [Members(tuple(P))]


def test_both_say_that_they_are_there() -> None:
    one = door()
    come(one)
    assert sent(one.effects, P[1], Meet) == [Meet(TOPIC, 5, VIEW, 1, wants_reply=True)]
    one.now = 499
    one.on(Tick())
    assert not sent(one.effects, P[1], Meet)
    one.now = 500
    one.on(Tick())
    assert sent(one.effects, P[1], Meet)
    one.hear(P[1], Meet(TOPIC, 5, VIEW, 1, wants_reply=True))
    assert sent(one.effects, P[1], Meet) == [Meet(TOPIC, 5, VIEW, 1, wants_reply=False)]
    assert of(one.effects, OpenExchange) == [OpenExchange(SESSION, 5, PAIR)]
    assert of(one.effects, OfferStretch) == [OfferStretch(SESSION, 0), OfferStretch(SESSION, 1)]
    assert sent(one.effects, P[1], StretchRequest) == [
        StretchRequest(SESSION, 0, (0,)),
        StretchRequest(SESSION, 1, (0,)),
    ]


def test_nobody_is_waited_for_longer_than_one_is_willing_to() -> None:
    one = door()
    come(one)
    one.now = 2_000
    one.on(Tick())
    closed = of(one.effects, CloseExchange)[0]
    assert closed.session is None
    assert "did not come" in closed.reason


@pytest.mark.parametrize(
    ("number", "topic", "why"),
    [(4, Hash(bytes(32)), Absence.PAST), (5, Hash(bytes(32)), Absence.OTHER_VIEW), (6, None, None)],
)
def test_who_cannot_be_met_hears_that_at_once(
    number: int, topic: Hash | None, why: Absence | None
) -> None:
    """One that is ahead of us hears nothing: we will come."""
    one = door()
    come(one)
    one.hear(P[2], Meet(topic or TOPIC, number, VIEW, 1, wants_reply=True))
    expected = [] if why is None else [NotMeeting(topic or TOPIC, 5, why)]
    assert sent(one.effects, P[2], NotMeeting) == expected


def test_who_is_refused_goes_on_at_once_and_hears_how_far_others_are() -> None:
    one = door()
    come(one)
    one.hear(P[1], NotMeeting(TOPIC, 9, Absence.PAST))
    closed = of(one.effects, CloseExchange)[0]
    assert (closed.session, closed.ahead) == (None, 9)


def test_a_stretch_counts_once_it_is_prepared_here_and_all_others_are_ready() -> None:
    """P3: until then either side may end, and nothing has moved."""
    one = begun()
    one.hear(P[1], Ready(SESSION, pack([0])))
    assert not of(one.effects, MoveStretch)
    taken(one, P[1], 0)
    assert of(one.effects, MoveStretch) == [MoveStretch(SESSION, 0, (P[1],))]
    assert not sent(one.effects, P[1], Verdict), "it is not on the disk yet"
    one.on(Moved(SESSION, 0))
    assert sent(one.effects, P[1], Verdict) == [Verdict(SESSION, pack([0]), is_final=False)]
    taken(one, P[1], 1)
    assert not of(one.effects, MoveStretch)
    one.hear(P[1], Ready(SESSION, pack([1])))
    one.on(Moved(SESSION, 1))
    assert Verdict(SESSION, pack([0, 1]), is_final=True) in sent(one.effects, P[1], Verdict)
    assert of(one.effects, CloseExchange)[0].is_whole
    one.hear(P[1], Counted(SESSION, pack([0])))
    assert not of(one.effects, ForgetDecision)
    one.hear(P[1], Counted(SESSION, pack([1])))
    assert of(one.effects, ForgetDecision) == [ForgetDecision(SESSION)]


def test_who_does_not_decide_moves_when_it_is_told_to() -> None:
    one = begun(1)
    taken(one, P[0], 0)
    assert sent(one.effects, P[0], Ready) == [Ready(SESSION, pack([0]))]
    one.hear(P[0], Verdict(SESSION, pack([0, 1]), is_final=False))
    assert of(one.effects, MoveStretch) == [MoveStretch(SESSION, 0, ())]
    one.on(Moved(SESSION, 0))
    assert sent(one.effects, P[0], Counted) == [Counted(SESSION, pack([0]))]


def test_who_was_ready_and_hears_nothing_asks_until_it_knows() -> None:
    """P3: the other side may have moved."""
    one = begun(1)
    taken(one, P[0], 0)
    one.now = 2_000
    one.on(Tick())
    assert of(one.effects, CloseExchange)[0].doubts == pack([0])
    assert one.peer.doubts == 1
    one.now = 3_000
    one.on(Tick())
    assert sent(one.effects, P[0], Ready) == [Ready(SESSION, pack([0]))]
    one.hear(P[0], Verdict(SESSION, pack([0]), is_final=True))
    assert of(one.effects, MoveStretch) == [MoveStretch(SESSION, 0, ())]
    one.on(Moved(SESSION, 0))
    assert of(one.effects, DropDoubts)
    assert one.peer.doubts == 0


def test_a_restart_goes_on_asking_and_telling() -> None:
    one = Door(P[1], P)
    other, doubted = Hash(b"o" * 32), Hash(b"d" * 32)
    decisions = (Decision(other, pack([2]), (P[2],)),)
    one.hear(P[2], Ready(other, pack([2])))
    assert not sent(one.effects, P[2], Verdict), "the disk has not been asked"
    one.on(Recalled(decisions, (Doubt(doubted, pack([3]), P[0]),)))
    assert sent(one.effects, P[2], Verdict) == [Verdict(other, pack([2]), is_final=True)]
    assert sent(one.effects, P[0], Ready) == [Ready(doubted, pack([3]))]
    one.hear(P[0], Verdict(doubted, b"", is_final=True))
    assert of(one.effects, DropDoubts)[0].session == doubted
    assert not of(one.effects, MoveStretch)


def test_a_session_that_was_denied_never_begins() -> None:
    """P3, or one side would move alone.

    1. Somebody is ready for a session that we do not know: nothing counts, it hears.
    2. Only then comes the word that would have begun it.
    """
    one = door()
    come(one)
    one.hear(P[1], Ready(SESSION, pack([0])))
    assert sent(one.effects, P[1], Verdict) == [Verdict(SESSION, b"", is_final=True)]
    one.hear(P[1], Meet(TOPIC, 5, VIEW, 1, wants_reply=False))
    assert not of(one.effects, OpenExchange)
    assert of(one.effects, CloseExchange)[0].session is None


def test_what_an_earlier_process_sent_belongs_to_another_session() -> None:
    one = begun()
    earlier = session_of(TOPIC, (1, 0))
    one.on(Offered(SESSION, 0, b"mine"))
    one.hear(P[1], StretchFrame(earlier, 0, 0, 1, b"old"))
    assert not of(one.effects, TakeStretch)


def test_long_offers_come_in_frames_a_few_at_a_time() -> None:
    one = door()
    many = replace(OFFERING, stretches=1, stretch_bytes_max=7 * CHUNK_BYTES)
    one.on(MeetAsked(5, (PAIR,), many, 2_000))
    one.hear(P[1], Meet(TOPIC, 5, VIEW, 1, wants_reply=False))
    whole = bytes(CHUNK_BYTES)
    one.hear(P[1], StretchFrame(SESSION, 0, 0, 7, whole))
    assert sent(one.effects, P[1], StretchRequest) == [StretchRequest(SESSION, 0, (1, 2, 3, 4))]
    one.hear(P[1], StretchFrame(SESSION, 0, 6, 7, whole))  # nobody asked for it
    assert not sent(one.effects, P[1], StretchRequest)
    one.hear(P[1], StretchFrame(SESSION, 0, 2, 7, whole))
    assert sent(one.effects, P[1], StretchRequest) == [StretchRequest(SESSION, 0, (5,))]
    one.hear(P[1], StretchFrame(SESSION, 0, 5, 7, whole))
    assert sent(one.effects, P[1], StretchRequest) == [StretchRequest(SESSION, 0, (6,))]
    one.now = 1_000
    one.on(Tick())
    assert sent(one.effects, P[1], StretchRequest) == [StretchRequest(SESSION, 0, (1, 3, 4, 6))]


@pytest.mark.parametrize(
    "bad",
    [
        StretchFrame(SESSION, 0, 0, 0, b"x"),
        StretchFrame(SESSION, 0, 3, 3, b"x"),
        StretchFrame(SESSION, 0, 0, 4, bytes(CHUNK_BYTES)),  # longer than any offer
        StretchFrame(SESSION, 0, 0, 2, b"too short"),
        StretchRequest(SESSION, 0, (1, 1)),
        Verdict(SESSION, pack([0]), is_final=True),  # it is we who decide
    ],
    ids=lambda one: type(one).__name__,
)
def test_what_breaks_a_rule_is_counted_against_its_sender(bad: StretchFrame) -> None:
    one = begun()
    one.hear(P[1], bad)
    assert one.peer.faults == {P[1]: 1}
    one.hear(P[2], StretchRequest(SESSION, 0, (0,)))
    assert one.peer.faults == {P[1]: 1, P[2]: 1}, "it takes no part"


def test_an_offer_that_cannot_be_read_ends_the_meeting() -> None:
    one = begun()
    one.on(Offered(SESSION, 0, b"mine"))
    one.hear(P[1], StretchFrame(SESSION, 0, 0, 1, b"theirs"))
    one.on(Prepared(SESSION, 0, P[1]))
    assert one.peer.faults == {P[1]: 1}
    assert not of(one.effects, CloseExchange)[0].is_whole


def test_one_that_only_sends_is_ready_once_it_is_asked() -> None:
    """Else it might be ready in a session that has not begun on the other side."""
    crew = Crew((P[1], P[0]), is_directed=True)
    topic = topic_of(RUN, 5, VIEW, crew)
    session = session_of(topic, (1, 1))
    one = door(1)
    come(one, crew=crew)
    one.hear(P[0], Meet(topic, 5, VIEW, 1, wants_reply=False))
    one.on(Offered(session, 0, b"half"))
    assert not of(one.effects, TakeStretch)
    one.hear(P[0], StretchRequest(session, 0, (0,)))
    assert sent(one.effects, P[0], StretchFrame) == [StretchFrame(session, 0, 0, 1, b"half")]
    assert of(one.effects, TakeStretch) == [TakeStretch(session, 0, (), P[0])]


def test_who_is_free_takes_part_in_one_exchange_that_it_is_asked_for() -> None:
    asked = Crew((P[1], P[0]), is_asked=True)
    topic = topic_of(RUN, 5, VIEW, asked)
    meet = Meet(topic, 5, VIEW, 1, wants_reply=True)
    one = door()
    one.hear(P[1], meet)
    assert sent(one.effects, P[1], NotMeeting) == [NotMeeting(topic, 0, Absence.BUSY)]
    one.on(MeetsAnyone(OFFERING, 2_000))
    one.hear(P[1], meet)
    assert of(one.effects, OpenExchange)[0].crew == asked
    other = Crew((P[2], P[0]), is_asked=True)
    again = Meet(topic_of(RUN, 1, VIEW, other), 1, VIEW, 1, wants_reply=True)
    one.hear(P[2], again)
    assert sent(one.effects, P[2], NotMeeting)[0].why is Absence.BUSY
    one.now = 2_000
    one.on(Tick())  # the first broke off
    one.hear(P[1], meet)
    assert sent(one.effects, P[1], NotMeeting)[0].why is Absence.PAST, "none takes place twice"
