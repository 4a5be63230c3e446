"""Who comes and who goes: hello, join, leave, the dead (P4, P6)."""

from dataclasses import replace

import pytest

from protocol.effects import Apply, Connect, Disconnect, Halt, StartWork
from protocol.entries import Admission, Cause, Departure
from protocol.events import Applied, StopAsked, Tick
from protocol.ids import Hash, Millis, PeerId, digest
from protocol.messages import (
    Closed,
    Entries,
    EntriesRequest,
    Evidence,
    Head,
    Health,
    Hello,
    Introduce,
    Join,
    Leave,
    Message,
    Ping,
    Refused,
    Rumor,
    View,
    Welcome,
)
from tests.machine.making import (
    RULES,
    RUN,
    Door,
    card,
    entry,
    genesis,
    ids,
    leave,
    token,
)

P = ids(6)
ME, ONE, TWO, NEW = P[:4]
MEMBERS = P[:3]


def test_an_invited_stranger_is_welcomed() -> None:
    door = Door(ME, MEMBERS)
    door.hear(b"guest", Hello(card(NEW), token(ONE)))
    ((to, welcome),) = door.sent(Welcome)
    assert to == (b"guest",)
    assert isinstance(welcome, Welcome)
    assert welcome.manifest == b"manifest"
    assert welcome.cards[0].peer == ME
    assert [effect.card.peer for effect in door.of(Connect)] == [NEW]


@pytest.mark.parametrize(
    ("hello", "why"),
    [
        (Hello(card(NEW), None), "an invite is needed"),
        (Hello(card(NEW), token(ONE, expires_s=499)), "expired"),
        (Hello(card(NEW), token(P[5])), "nobody we know"),
        (Hello(card(NEW), replace(token(ONE), nonce=bytes(range(8)))), "token with a false"),
        (Hello(replace(card(NEW), sequence=5), token(ONE)), "card with a false"),
        (Hello(replace(card(NEW), addresses=("tcp://b:1",)), token(ONE)), "card with a false"),
    ],
)
def test_others_are_told_why_not(hello: Hello, why: str) -> None:
    door = Door(ME, MEMBERS)
    door.hear(b"guest", hello, wall_s=500)
    ((_, refused),) = door.sent(Refused)
    assert isinstance(refused, Refused)
    assert why in refused.reason
    assert not door.of(Connect)
    assert door.peer.faults == {b"guest": 1}


def test_a_token_is_good_to_its_last_second() -> None:
    door = Door(ME, MEMBERS)
    door.hear(b"guest", Hello(card(NEW), token(ONE, expires_s=500)), wall_s=500)
    assert door.sent(Welcome)


def test_a_full_run_says_so() -> None:
    door = Door(ME, MEMBERS, replace(RULES, members_max=3))
    door.hear(b"guest", Hello(card(NEW), token(ONE)))
    ((_, refused),) = door.sent(Refused)
    assert refused == Refused("the run is full")


def convicted(door: Door, closer: PeerId) -> Evidence:
    first, second = entry(door.mark, closer), entry(door.mark, closer, took_ms=1)
    pair = first.hash, first.seal, second.hash, second.seal
    return Evidence(closer, door.mark.round, door.mark.hash, *pair)


def closed_here(door: Door, work: bytes = b"mine----") -> None:
    """Work, then wait until this peer closes its round itself."""
    door.work(work)
    for _ in range(60):
        if door.of(Apply):
            return
        door.now += 500
        door.effects = door.peer.handle(Tick(), Millis(door.now))
    pytest.fail("the round did not close")


def test_the_closer_tells_whom_it_admits() -> None:
    """A newcomer is in no tree yet, and must not lose time by asking now and then."""
    door = Door(ME, MEMBERS)
    door.hear(NEW, Join(card(NEW), token(ONE)))
    closed_here(door)
    (applied,) = door.of(Apply)
    assert [admission.card.peer for admission in applied.entry.body.admissions] == [NEW]
    told = [to for to, closed in door.sent(Closed) if closed.entry.hash == applied.entry.hash]
    assert (NEW,) in told
    other = Door(ONE, MEMBERS)
    other.hear(ME, Closed(applied.entry))
    assert (NEW,) not in [to for to, _ in other.sent(Closed)]


def test_a_liar_is_expelled_and_stays_out() -> None:
    """Two seals for one round: evidence, a departure with the proof, no way back."""
    door = Door(ME, MEMBERS)
    door.hear(TWO, convicted(door, ONE))
    closed_here(door)
    (applied,) = door.of(Apply)
    (departure,) = applied.entry.body.departures
    assert departure.cause is Cause.EQUIVOCATED
    assert door.mark.roster.banned == (ONE,)
    assert [effect.peer for effect in door.of(Disconnect)] == [ONE]
    door.hear(b"guest", Hello(card(ONE, 2), token(ME)))
    assert door.sent(Refused)[0][1] == Refused("this peer was expelled")


def test_evidence_counts_once() -> None:
    door = Door(ME, MEMBERS)
    evidence = convicted(door, ONE)
    door.hear(TWO, evidence)
    assert door.sent(Evidence)
    door.hear(TWO, evidence)
    assert not door.sent(Evidence), "and is not passed on again and again"


@pytest.mark.parametrize(
    "spoil",
    [
        {"first_seal": bytes(64)},
        {"second_seal": bytes(64)},
        {"round": 1},
        {"parent": bytes(32)},
        {"closer": TWO},
    ],
)
def test_evidence_that_does_not_hold_is_a_fault(spoil: dict[str, object]) -> None:
    door = Door(ME, MEMBERS)
    door.hear(TWO, replace(convicted(door, ONE), **spoil))  # type: ignore[arg-type]
    assert door.faults()
    assert not door.peer._catchup.guilty


def test_an_applicant_is_listed_by_the_next_entry() -> None:
    door = Door(ME, [ME])
    door.hear(NEW, Join(card(NEW), token(ME)))
    closed_here(door)
    assert door.mark.roster.members == tuple(sorted([ME, NEW]))


def test_a_join_is_passed_on_to_who_will_close() -> None:
    door = Door(ME, MEMBERS)
    door.hear(NEW, Join(card(NEW), token(ONE)))
    ((to, _),) = door.sent(Join)
    assert set(to) <= set(MEMBERS) - {ME}
    door.hear(ONE, Join(card(NEW), token(ONE)))
    assert not door.sent(Join), "what another passed on is not passed on again"


def test_an_expired_invite_lists_nobody() -> None:
    door = Door(ME, [ME])
    door.hear(NEW, Join(card(NEW), token(ME, expires_s=10)), wall_s=11)
    closed_here(door)
    assert door.mark.roster.members == (ME,)


def test_who_was_dropped_comes_back_without_an_invite() -> None:
    """P5: the other half of a split did nothing wrong."""
    door = Door(ME, MEMBERS)
    gone = Departure(MEMBERS.index(ONE), Cause.DEAD, 0, b"")
    door.hear(TWO, Closed(entry(door.mark, TWO, departures=(gone,))))
    assert ONE not in door.mark.roster
    door.hear(ONE, Join(card(ONE), None))
    assert not door.faults()
    back = entry(door.mark, TWO, admissions=(Admission(card(ONE), None),))
    door.hear(TWO, Closed(back))
    assert ONE in door.mark.roster


def test_the_dead_are_listed_unless_their_work_is_here() -> None:
    door = Door(ME, MEMBERS)
    for peer in (ONE, TWO):
        rumor = Rumor(peer, Health.DEAD, 0)
        door.hear(TWO if peer == ONE else ONE, Ping(1, Head(0, 0, bytes(8)), (rumor,)))
    door.now = RULES.suspicion_intervals * RULES.ping_interval_ms // 2  # silent for so long
    door.work()
    (applied,) = door.of(Apply)
    departures = applied.entry.body.departures
    assert {departure.cause for departure in departures} == {Cause.DEAD}
    assert door.mark.roster.members == (ME,)


def test_leaving_in_good_order() -> None:
    """1. Asked to stop. 2. The work so far is offered. 3. Goodbye. 4. Halt."""
    door = Door(ME, MEMBERS)
    door.effects = door.peer.handle(StopAsked(), Millis(0))
    assert not door.of(Halt)
    door.work()
    ((_, said),) = door.sent(Leave)
    assert isinstance(said, Leave)
    (halt,) = door.of(Halt)
    assert halt.clean
    assert door.peer.handle(Tick(), Millis(10**6)) == []
    other = Door(ONE, MEMBERS)
    other.hear(ME, said)
    assert not other.faults()
    assert other.peer.membership.health(ME) is Health.LEFT


def test_leaving_does_not_wait_for_work_that_never_ends() -> None:
    door = Door(ME, MEMBERS)
    door.peer.handle(StopAsked(), Millis(0))
    wake = door.peer.wake_ms
    assert wake is not None
    assert wake <= 3_000
    door.effects = door.peer.handle(Tick(), Millis(3_000))
    assert door.of(Halt)


def test_stopping_with_empty_hands() -> None:
    door = Door(ME, [ME])
    door.peer.handle(StopAsked(), Millis(0))
    door.work(payload=b"")
    assert door.of(Halt)
    assert door.mark.round == 0


@pytest.mark.parametrize(
    "notice",
    [
        replace(leave(ONE, 0), signature=bytes(64)),
        replace(leave(ONE, 0), peer=TWO),
        replace(leave(ONE, 0), round=1),
    ],
)
def test_nobody_says_goodbye_for_another(notice: Leave) -> None:
    door = Door(ME, MEMBERS)
    door.hear(TWO, notice)
    assert door.faults()
    assert door.peer.membership.health(ONE) is Health.ALIVE


def test_a_notice_is_listed_by_the_next_entry() -> None:
    door = Door(ME, MEMBERS)
    door.hear(TWO, leave(ONE, 0))
    closed_here(door)
    assert ONE not in door.mark.roster
    assert ONE in door.mark.roster.alumni


def test_an_applicant_asks_until_it_is_listed() -> None:
    """It reads the ledger first, asks a few members at a time, and starts to work once listed."""
    door = Door(NEW, MEMBERS)
    assert not door.of(StartWork)
    asked: list[Message] = [said for _, said in door.sent(Join)]
    assert not asked, "nobody has shown it the ledger yet"
    door.effects = door.peer.handle(Applied(0, Hash(RUN), 7), Millis(0))
    for peer in MEMBERS:
        door.hear(peer, Entries((), Head(0, 0, Hash(RUN)[:8])))
        asked += [said for _, said in door.sent(Join)]
    for _ in range(20):
        wake = door.peer.wake_ms
        assert wake is not None
        door.now = wake
        door.effects = door.peer.handle(Tick(), Millis(wake))
        asked += [said for _, said in door.sent(Join)]
    assert 2 <= len(asked) <= 21
    mark = genesis(MEMBERS)
    listed = entry(mark, ONE, admissions=(Admission(card(NEW), token(ONE)),))
    door.hear(ONE, Entries((listed,), Head(1, 1, listed.hash[:8])))
    assert door.peer.is_member
    assert [work.round for work in door.of(StartWork)] == [1]


def test_pending_applicants_are_bounded() -> None:
    """P6: one invite must not fill our memory."""
    door = Door(ME, MEMBERS)
    for number in range(400):
        peer = PeerId(digest("crowd", number.to_bytes(2, "big")))
        data = Join(card(peer), token(ONE))
        door.hear(peer, data)
    assert len(door.peer._admissions._joins) == 256


def test_a_message_for_another_run_is_not_understood() -> None:
    """Signatures name the run: what was signed for one does not count in another."""
    from node.sim.world import StubKeys
    from protocol.entries import card_bytes
    from protocol.ids import RunId

    other = RunId(digest("run", b"another"))
    signed = card_bytes(other, NEW, 1, ("tcp://a:1",))
    foreign = replace(card(NEW), signature=StubKeys(NEW).sign(signed))
    assert other != RUN
    door = Door(ME, MEMBERS)
    door.hear(b"guest", Hello(foreign, token(ONE)))
    assert door.sent(Refused)


def test_a_twin_ends_the_elder() -> None:
    """Our own card, newer than ours: another process runs with this identity (P6)."""
    door = Door(ME, MEMBERS)
    door.hear(ONE, View((), (replace(card(ME), sequence=1 << 40),), wants_reply=False))
    assert not door.of(Halt), "anybody could say so; a false signature halts nobody"
    door.hear(ONE, View((), (card(ME, sequence=1 << 40),), wants_reply=False))
    (halt,) = door.of(Halt)
    assert not halt.clean
    assert "identity" in halt.reason


def test_an_applicant_turns_to_who_let_it_in() -> None:
    """P4: its own ledger knows the founder alone, who may be gone; others refuse its connection."""
    door = Door(NEW, [ONE], known=[TWO, ME])
    sponsor = ME
    door.peer._admissions.start(None, sponsor)
    asked: list[bytes] = []
    for _ in range(3):
        door.now += 60_000
        door.effects = door.peer.handle(Tick(), Millis(door.now))
        asked += [to[0] for to, _ in door.sent(EntriesRequest)]
    assert asked.count(sponsor) >= 2


def test_who_lets_somebody_in_introduces_it() -> None:
    """Otherwise the others refuse its connections, and a long state comes from one peer alone."""
    door = Door(ME, MEMBERS)
    door.hear(b"guest 1", Hello(card(NEW), token(ONE)))
    ((to, said),) = door.sent(Introduce)
    assert set(to) == set(MEMBERS) - {ME}
    assert (said.card, said.token) == (card(NEW), token(ONE))
    door.hear(b"guest 1", Hello(card(NEW), token(ONE)))
    assert not door.sent(Introduce), "once"


def test_who_becomes_a_member_hears_of_those_let_in_before() -> None:
    """An applicant asks any member for what it lacks; one that does not know it refuses."""
    door = Door(ME, MEMBERS)
    door.hear(b"guest 1", Hello(card(NEW), token(ONE)))
    door.hear(TWO, Closed(entry(door.mark, TWO, admissions=(Admission(card(P[4]), token(ONE)),))))
    ((to, said),) = door.sent(Introduce)
    assert to == (P[4],)
    assert (said.card, said.token) == (card(NEW), token(ONE))
    door.hear(TWO, Closed(entry(door.mark, TWO)))
    assert not door.sent(Introduce), "once"
    door.hear(TWO, Closed(entry(door.mark, TWO, admissions=(Admission(card(NEW), token(ONE)),))))
    assert not door.sent(Introduce), "who is a member is known by the ledger"


def test_an_introduction_is_checked_like_a_request() -> None:
    """P6: who is introduced needs an invite, and who introduces is a member. What was true by
    another's ledger and clock is no fault.
    """
    door = Door(ME, MEMBERS)
    for member, who, invite in (
        (ONE, card(NEW), None),
        (ONE, card(NEW), token(P[5])),
        (ONE, card(NEW), token(ONE, expires_s=499)),
        (PeerId(bytes(31) + b"s"), card(NEW), token(ONE)),
    ):
        door.hear(member, Introduce(who, invite), wall_s=500)
        assert not door.of(Connect)
        assert not door.faults()
    door.hear(ONE, Introduce(replace(card(NEW), sequence=5), token(ONE)))
    assert door.faults() == ["a card with a false signature"]
    door.hear(ONE, Introduce(card(NEW), replace(token(ONE), nonce=bytes(range(8)))))
    assert door.faults() == ["a token with a false signature"]
    door.hear(ONE, Introduce(card(NEW), token(ONE)))
    assert [effect.card.peer for effect in door.of(Connect)] == [NEW]
    assert not door.sent(Introduce), "it is not passed on"


def test_a_request_that_our_ledger_does_not_support_is_no_fault() -> None:
    """The minter may be a member by an entry that is not here yet."""
    door = Door(ME, [ME])
    door.hear(NEW, Join(card(NEW), token(P[5])))
    assert not door.faults()
    closed_here(door)
    assert door.mark.roster.members == (ME,)
    door.hear(NEW, Join(replace(card(NEW), sequence=5), token(ME)))
    assert door.faults()
