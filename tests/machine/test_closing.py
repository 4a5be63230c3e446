"""One round, from contributions to the entry, in both ways of counting (P2, P3, P4, P5)."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from protocol.closing import OUTBOX_ROUNDS
from protocol.codec import encode
from protocol.effects import Apply, Effect, GiveBack, Save, Send, StartWork
from protocol.entries import Admission, Entry
from protocol.events import Tick, WorkDone
from protocol.ids import Hash, Millis, PeerId
from protocol.ledger import round_key, seal_key
from protocol.messages import (
    Accepted,
    Closed,
    Commit,
    Contribute,
    EntriesRequest,
    Head,
    Health,
    Message,
    Nack,
    Ping,
    Prepare,
    Promise,
    Propose,
    Rumor,
    Sync,
)
from protocol.open_round import Vote
from protocol.peer import Saved
from protocol.roster import Roster
from protocol.rounds import ranking
from protocol.rules import Rules
from tests.machine.making import (
    MAJORITY,
    RULES,
    RUN,
    Door,
    card,
    chain,
    contribution,
    entry,
    genesis,
    ids,
    token,
)

P = ids(3)
OUTSIDER = next(peer for peer in ids(4) if peer not in P)
START = genesis(P)
FIRST, SECOND, THIRD = ranking(RUN, 0, Roster(P))  # who closes round 0, and its deputies
TIP = START.hash[:8]
HEAD = Head(0, 0, TIP)


def after(door: Door, ms: int) -> list[Effect]:
    """The clock moves on to `ms`, with a tick whenever one is wanted."""
    effects: list[Effect] = []
    while door.peer.wake_ms is not None and door.peer.wake_ms <= ms:
        door.now = door.peer.wake_ms
        effects += door.peer.handle(Tick(), Millis(door.now))
    door.now = ms
    door.effects = effects
    return effects


def saved_before_sent(effects: list[Effect], kind: type, key: bytes, table: str = "votes") -> None:
    """The record `key` is written before the first message of this kind."""
    for effect in effects:
        if isinstance(effect, Save) and any(
            (write.table, write.key) == (table, key) and write.value is not None
            for write in effect.writes
        ):
            return
        assert not (isinstance(effect, Send) and isinstance(effect.message, kind)), "said first"
    pytest.fail("never written")


# Contributing


def test_work_goes_to_the_closer_and_its_deputies() -> None:
    """P3: on disk first, so that a crash cannot lose or change what others have."""
    door = Door(THIRD, P)
    assert [(work.round, work.seats) for work in door.of(StartWork)] == [(0, tuple(P))]
    door.work()
    assert {to for targets, _ in door.sent(Contribute) for to in targets} == {FIRST, SECOND}
    saved_before_sent(door.effects, Contribute, round_key(0), "outbox")


def test_work_that_was_listed_stays_on_disk_for_a_while() -> None:
    """P3: should the chain switch, it is given back from there; work of round 0 like any other."""
    door = Door(THIRD, P)
    outbox: dict[bytes, bytes | None] = {}
    for round in range(OUTBOX_ROUNDS + 2):
        door.work(b"8 bytes!", loss=1.5)
        for save in door.of(Save):
            outbox |= {write.key: write.value for write in save.writes if write.table == "outbox"}
        kept = sorted(key for key, value in outbox.items() if value is not None)
        oldest = max(0, round - OUTBOX_ROUNDS + 1)
        assert kept == [round_key(number) for number in range(oldest, round + 1)]
        sender = next(peer for peer in P if peer != THIRD)
        door.hear(sender, Closed(entry(door.mark, FIRST, [FIRST, THIRD])))


def test_work_for_a_round_that_is_closed_is_given_back() -> None:
    """P3."""
    door = Door(THIRD, P)
    late = WorkDone(0, START.hash, 7, b"mine----", 1.0, None)
    door.hear(FIRST, Closed(entry(START, FIRST)))
    door.effects = door.peer.handle(late, Millis(10))
    assert [(back.round, back.payload) for back in door.of(GiveBack)] == [(0, b"mine----")]


def test_work_that_was_not_listed_is_given_back() -> None:
    """P3: it was sent and the closer left it out. The state has come past that round by then, so
    that what the work was computed on is known.
    """
    door = Door(THIRD, P)
    door.work()
    door.hear(FIRST, Closed(entry(START, FIRST)))
    kinds = [type(effect) for effect in door.effects if isinstance(effect, GiveBack | Apply)]
    assert kinds == [Apply, GiveBack]


def test_work_that_was_listed_is_not() -> None:
    door = Door(THIRD, P)
    door.work(b"8 bytes!", loss=1.5)
    door.hear(FIRST, Closed(entry(START, FIRST, [FIRST, THIRD])))
    assert not door.of(GiveBack)


# Closing where any seal counts


def test_the_closer_closes_once_all_are_in() -> None:
    """P2: exactly what it holds, by seat; the seal is on disk before anybody hears of it."""
    door = Door(FIRST, P)
    door.work()
    door.hear(SECOND, contribution(START, SECOND))
    assert not door.of(Apply)
    door.hear(THIRD, contribution(START, THIRD))
    (applied,) = door.of(Apply)
    assert [line.seat for line in applied.entry.body.lines] == [0, 1, 2]
    ((to, closed),) = door.sent(Closed)
    assert set(to) == {SECOND, THIRD}
    saved_before_sent(door.effects, Closed, seal_key(0, START.hash))
    saved_before_sent(door.effects, Closed, applied.entry.hash, "entries")
    assert [work.round for work in door.of(StartWork)] == [1]
    other = Door(SECOND, P)
    other.hear(FIRST, closed)
    assert [effect.entry.hash for effect in other.of(Apply)] == [applied.entry.hash]


def test_the_closer_waits_for_stragglers_until_the_deadline() -> None:
    door = Door(FIRST, P)
    door.work()
    deadline = RULES.window_ms + RULES.deadline_ceiling_ms
    for ms in range(0, deadline, 500):
        after(door, ms)
        assert not door.of(Apply)
        for peer in (SECOND, THIRD):
            door.hear(peer, Nack(1))  # up, and slow
    after(door, deadline - 1)
    assert not door.of(Apply)
    after(door, deadline)
    (applied,) = door.of(Apply)
    assert len(applied.entry.body.lines) == 1


def test_nobody_waits_for_who_came_back_in_mid_round() -> None:
    """It cannot have worked a whole window; what it sends in time is listed all the same."""
    first, second, third = ranking(RUN, 1, Roster(P))
    door = Door(first, P)
    door.hear(third, Ping(1, HEAD, (Rumor(second, Health.SUSPECT, 0),)))
    door.hear(FIRST if first != FIRST else SECOND, Closed(entry(START, FIRST)))
    assert door.mark.round == 1
    door.hear(second, Ping(2, HEAD, (Rumor(second, Health.ALIVE, 1),)))
    assert door.peer.membership.health(second) is Health.ALIVE
    door.work()
    door.hear(third, contribution(door.mark, third))
    (applied,) = door.of(Apply)
    assert len(applied.entry.body.lines) == 2


@pytest.mark.parametrize("answers", [False, True])
def test_nobody_waits_for_the_silent(answers: bool) -> None:
    """P4: the closer calls the roll before contributions are due. Who answers is waited for."""
    rules = replace(RULES, window_ms=4_000, deadline_ceiling_ms=8_000)
    door = Door(FIRST, P, rules)
    roll_call = rules.window_ms - 2 * rules.ping_timeout_ms
    door.hear(THIRD, contribution(START, THIRD))
    for ms in range(0, roll_call, 250):
        after(door, ms)
        for peer in (SECOND, THIRD):
            door.hear(peer, Nack(1))  # up so far
    after(door, roll_call)
    assert {to for targets, _ in door.sent(Ping) for to in targets} == {SECOND, THIRD}
    door.hear(THIRD, Nack(1))
    if answers:
        door.hear(SECOND, Nack(1))
    assert not any(isinstance(effect, Apply) for effect in door.work())
    after(door, roll_call + rules.ping_timeout_ms - 1)
    assert not door.of(Apply)
    after(door, roll_call + rules.ping_timeout_ms)
    assert len(door.of(Apply)) == (not answers)


def test_nobody_waits_for_a_newcomer_in_its_first_round() -> None:
    """It hears late of the entry that let it in."""
    admitting = entry(START, FIRST, admissions=(Admission(card(OUTSIDER), token(FIRST)),))
    members = Roster(P).after(admitting.body)
    closer, *others = ranking(RUN, 1, members)
    door = Door(closer, P)
    door.hear(others[0], Closed(admitting))
    door.work()
    for peer in others:
        if peer != OUTSIDER:
            assert door.mark.round == 1
            door.hear(peer, contribution(door.mark, peer))
    assert door.mark.round == 2


def test_nothing_is_closed_on_nothing() -> None:
    door = Door(FIRST, P)
    after(door, 600_000)
    assert not door.of(Apply)
    assert not door.sent(Prepare)


def test_a_deputy_asks_first_and_then_closes_itself() -> None:
    """P4: the closer is silent. 1. Prepare. 2. No entry is known. 3. It closes."""
    door = Door(SECOND, P)
    door.work()
    after(door, 6_000)
    assert {to for targets, _ in door.sent(Prepare) for to in targets} <= {FIRST, THIRD}
    saved_before_sent(door.effects, Prepare, round_key(0) + b"p")
    after(door, 20_000)
    assert door.mark.round == 1


def test_a_deputy_does_not_wait_for_the_promise_of_a_suspect() -> None:
    """P4: whoever is up has promised."""
    door = Door(SECOND, P)
    door.work()
    door.hear(THIRD, Ping(1, HEAD, (Rumor(FIRST, Health.SUSPECT, 0),)))
    door.hear(THIRD, contribution(START, THIRD))
    assert door.sent(Prepare)
    assert not door.of(Apply)
    door.hear(THIRD, Promise(0, TIP, 1, 0, None))
    assert len(door.of(Apply)) == 1


def test_a_proposal_does_not_depend_on_who_made_no_promise() -> None:
    """P4: the dead may stand anywhere in the tree, and nobody knows yet that they are."""
    order = ranking(RUN, 0, Roster(ids(7)))
    door = Door(order[1], ids(7), replace(MAJORITY, fanout=2))
    door.work()
    while not door.sent(Prepare):
        after(door, door.now + 100)
    sent = []
    for peer in order[3:6]:
        door.hear(peer, Promise(0, TIP, 1, 0, None))
        sent += [to for targets, _ in door.sent(Propose) for to in targets]
    assert {order[0], order[2]} <= set(sent)  # its own children
    assert {order[3], order[4]} <= set(sent)  # those of the first, which is silent


def test_a_closer_that_is_up_and_closes_nothing_is_not_waited_for() -> None:
    """P4: it answers pings all the while; its deputy closes the round all the same."""
    door = Door(SECOND, P)
    door.work()
    for ms in range(0, 10_000, 500):
        after(door, ms)
        for peer in (FIRST, THIRD):
            door.hear(peer, Nack(1))
    assert not door.peer.membership.down()
    assert door.mark.round == 1


def test_a_deputy_adopts_what_somebody_holds() -> None:
    door = Door(SECOND, P)
    door.work()
    while not door.sent(Prepare):
        after(door, door.now + 100)
    there = entry(START, FIRST, [FIRST, THIRD])
    door.hear(THIRD, Closed(there))
    assert door.mark.hash == there.hash


def test_who_has_closed_already_hands_it_to_the_deputy() -> None:
    door = Door(THIRD, P)
    there = entry(START, FIRST)
    door.hear(FIRST, Closed(there))
    door.hear(SECOND, Prepare(0, TIP, 1))
    assert [said for _, said in door.sent(Closed)] == [Closed(there)]


def test_a_ballot_belongs_to_one_member() -> None:
    """A member that prepares another's ballot is at fault."""
    door = Door(THIRD, P)
    door.hear(SECOND, Prepare(0, TIP, 2))
    assert door.faults() == ["a ballot that is somebody else's"]
    door.hear(SECOND, Prepare(0, TIP, 1))
    ((to, promise),) = door.sent(Promise)
    assert to == (SECOND,)
    assert promise == Promise(0, TIP, 1, 0, None)


def test_another_branch_is_answered_with_our_head() -> None:
    """P5: that is how the lighter side learns of the heavier."""
    door = Door(THIRD, P)
    door.hear(SECOND, Prepare(0, b"elsewher", 1))
    assert door.sent(Sync)


def closed_at(door: Door, ms: int, took_ms: int = 1_200) -> int:
    """An entry arrives; how late is the next round's work?"""
    after(door, ms)
    door.hear(FIRST, Closed(entry(door.mark, FIRST, took_ms=took_ms)))
    (work,) = door.of(StartWork)
    return work.late_ms


def test_who_was_stopped_works_for_what_is_left_of_the_window() -> None:
    """P4: several entries waited meanwhile; each tells how long its round took."""
    door = Door(THIRD, P)
    assert closed_at(door, 1_200) == 0
    door.now = 5_000  # no tick in between
    assert closed_at(door, 5_000) == 5_000 - 2_400
    assert closed_at(door, 5_000) == 5_000 - 3_600
    assert closed_at(door, 5_000) == 0, "late by no more than is granted to all"
    assert closed_at(door, 6_200) == 0


def test_nobody_is_late_for_good() -> None:
    """P4: all of a swarm's machines stood still, or a clock leapt: one round is short, not all."""
    door = Door(THIRD, P)
    assert closed_at(door, 1_200) == 0
    door.now = 3_600_000
    assert closed_at(door, 3_600_000) > RULES.window_ms
    for ms in range(3_600_000, 3_601_200, 200):
        after(door, ms)
        door.hear(SECOND, Ping(1, HEAD, ()))
    assert closed_at(door, 3_601_200) == 0


def test_nobody_else_can_make_us_late() -> None:
    """P6: a closer that claims that its round took no time at all shortens nobody's work."""
    door = Door(THIRD, P)
    assert closed_at(door, 1_200) == 0
    for ms in range(1_400, 4_000, 200):
        after(door, ms)
        door.hear(SECOND, Ping(1, HEAD, ()))
    assert closed_at(door, 4_000, took_ms=0) == 0


def test_the_last_one_left_goes_on() -> None:
    """P4."""
    door = Door(P[0], [P[0]])
    for round in range(5):
        door.work(b"round %02d" % round)
        assert door.mark.round == round + 1


def test_after_a_crash_the_same_entry_is_sealed() -> None:
    """P3: a closer that sealed, died and returned must not seal another for the round."""
    sealed = entry(START, FIRST)
    on_another_branch = entry(replace(START, hash=Hash(bytes(32))), FIRST)
    door = Door(FIRST, P, saved=Saved((START,), seals=(sealed, on_another_branch)))
    door.work()
    for peer in (SECOND, THIRD):
        door.hear(peer, contribution(START, peer))
    assert door.mark.hash == sealed.hash


def test_old_seals_do_not_stay_on_disk() -> None:
    """P8"""
    door = Door(P[0], [P[0]])
    seals: dict[bytes, bytes | None] = {}
    for round in range(9):
        door.work(b"round %02d" % round)
        for save in door.of(Save):
            seals |= {w.key: w.value for w in save.writes if w.table == "votes" and len(w.key) > 9}
    there = [key[:8] for key, value in seals.items() if value is not None]
    assert there == [round_key(7), round_key(8)]


def test_after_a_crash_the_same_contribution_is_sent() -> None:
    mine = contribution(START, THIRD)
    door = Door(THIRD, P, saved=Saved((START,), None, None, mine))
    assert not door.of(StartWork)
    assert [said for _, said in door.sent(Contribute)] == [mine, mine]


def test_the_state_most_share_is_listed() -> None:
    """P1: a contribution that was computed on other weights is not mixed in."""
    door = Door(FIRST, P)
    door.work()
    door.hear(SECOND, contribution(START, SECOND, state=8))
    door.hear(THIRD, contribution(START, THIRD, state=7))
    (applied,) = door.of(Apply)
    assert applied.entry.body.state == 7
    assert [line.seat for line in applied.entry.body.lines] == sorted(
        [P.index(FIRST), P.index(THIRD)]
    )


# Where most must accept


def test_one_seal_is_not_enough() -> None:
    """P5: 1. Propose. 2. Nobody answers. 3. Nothing is applied."""
    door = Door(FIRST, P, MAJORITY)
    door.work()
    for peer in (SECOND, THIRD):
        door.hear(peer, contribution(START, peer))
    assert door.sent(Propose)
    saved_before_sent(door.effects, Propose, round_key(0) + b"a")
    assert not door.of(Apply)
    after(door, 60_000)
    assert door.mark.round == 0


def proposed() -> tuple[Door, Entry]:
    door = Door(FIRST, P, MAJORITY)
    door.work()
    for peer in (SECOND, THIRD):
        door.hear(peer, contribution(START, peer))
    ((_, said),) = door.sent(Propose)
    assert isinstance(said, Propose)
    return door, said.entry


def test_most_have_accepted() -> None:
    door, made = proposed()
    door.hear(SECOND, Accepted(0, 0, made.hash))
    assert [effect.entry.hash for effect in door.of(Apply)] == [made.hash]
    assert door.sent(Commit)


@pytest.mark.parametrize(
    "vote",
    [
        lambda made: (SECOND, Accepted(0, 1, made.hash)),
        lambda made: (SECOND, Accepted(0, 0, START.hash)),
        lambda made: (OUTSIDER, Accepted(0, 0, made.hash)),
    ],
)
def test_other_votes_do_not_count(vote: Callable[[Entry], tuple[PeerId, Message]]) -> None:
    door, made = proposed()
    door.hear(*vote(made))
    assert not door.of(Apply)


def test_a_vote_is_on_disk_before_it_is_told() -> None:
    """P3, P5: an acceptance that a crash could undo would break the majority."""
    door = Door(THIRD, P, MAJORITY)
    made = entry(START, FIRST, P)
    door.hear(FIRST, Propose(0, made))
    ((to, said),) = door.sent(Accepted)
    assert (to, said) == ((FIRST,), Accepted(0, 0, made.hash))
    saved_before_sent(door.effects, Accepted, round_key(0) + b"a")
    assert not door.of(Apply)
    door.hear(FIRST, Commit(0, 0, made.hash))
    assert door.of(Apply)


def test_a_promise_is_on_disk_before_it_is_told_and_is_kept() -> None:
    door = Door(THIRD, P, MAJORITY)
    door.hear(SECOND, Prepare(0, TIP, 1))
    saved_before_sent(door.effects, Promise, round_key(0) + b"p")
    door.hear(FIRST, Propose(0, entry(START, FIRST)))
    assert not door.sent(Accepted), "a lower ballot is not accepted any more"
    door.hear(SECOND, Propose(1, entry(START, SECOND)))
    assert door.sent(Accepted)


def test_a_promise_and_a_vote_survive_a_crash() -> None:
    made = entry(START, FIRST)
    saved = Saved((START,), None, Vote(1, (0, made)), None)
    door = Door(THIRD, P, MAJORITY, saved)
    door.hear(SECOND, Propose(0, made))
    assert not door.sent(Accepted)
    door.hear(THIRD, Prepare(0, TIP, 2))
    door.hear(SECOND, Prepare(0, TIP, 4))
    assert [said for _, said in door.sent(Promise)] == [Promise(0, TIP, 4, 0, made)]


def prepared() -> Door:
    """The deputy, having asked."""
    door = Door(SECOND, P, MAJORITY)
    door.work()
    while not door.sent(Prepare):
        after(door, door.now + 100)
    return door


def test_a_deputy_needs_most_promises() -> None:
    """A minority waits (P5)."""
    door = prepared()
    after(door, door.now + 60_000)
    assert not door.sent(Propose)
    assert door.mark.round == 0


def test_a_deputy_proposes_what_may_have_been_accepted() -> None:
    """P5: the closer's entry may already count; only that may count then."""
    door = prepared()
    theirs = entry(START, FIRST, P)
    ((_, said),) = door.sent(Prepare)
    assert isinstance(said, Prepare)
    door.hear(THIRD, Promise(0, TIP, said.ballot, 0, theirs))
    ((_, proposal),) = door.sent(Propose)
    assert proposal == Propose(said.ballot, theirs)


def test_a_deputy_proposes_its_own_if_nothing_was_accepted() -> None:
    door = prepared()
    ((_, said),) = door.sent(Prepare)
    assert isinstance(said, Prepare)
    door.hear(THIRD, Promise(0, TIP, said.ballot, 0, None))
    ((_, proposal),) = door.sent(Propose)
    assert isinstance(proposal, Propose)
    assert proposal.entry.body.closer == P.index(SECOND)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda made: Entry(made.body, made.raw, bytes(64), made.signatures), "false seal"),
        (lambda made: Entry(made.body, made.raw, made.seal, (bytes(64),) * 3), "false signature"),
    ],
)
def test_a_promise_with_a_forgery_is_a_fault(spoil: Callable[[Entry], Entry], why: str) -> None:
    door = prepared()
    ((_, said),) = door.sent(Prepare)
    assert isinstance(said, Prepare)
    door.hear(THIRD, Promise(0, TIP, said.ballot, 0, spoil(entry(START, FIRST, P))))
    assert any(why in fault for fault in door.faults())
    assert not door.sent(Propose)


def test_a_promise_cannot_have_accepted_the_future() -> None:
    door = prepared()
    ((_, said),) = door.sent(Prepare)
    assert isinstance(said, Prepare)
    door.hear(THIRD, Promise(0, TIP, said.ballot, said.ballot + 1, entry(START, FIRST, P)))
    assert door.faults() == ["a promise that is already broken"]


def test_a_commit_of_what_was_not_accepted_here_is_asked_for() -> None:
    door = Door(THIRD, P, MAJORITY)
    door.hear(FIRST, Commit(0, 0, entry(START, FIRST).hash))
    assert door.mark.round == 0
    assert [to for to, _ in door.sent(EntriesRequest)] == [(FIRST,)]


def test_a_vote_in_a_run_that_does_not_vote_is_a_fault() -> None:
    door = Door(THIRD, P)
    door.hear(FIRST, Propose(0, entry(START, FIRST)))
    assert door.faults() == ["a proposal in a run that does not vote"]


@pytest.mark.parametrize("rules", [RULES, MAJORITY], ids=["any", "majority"])
@pytest.mark.parametrize("round", [2, 100, (1 << 48) - 1])
def test_absurd_rounds_only_make_us_ask(rules: Rules, round: int) -> None:
    """One question at a time, to whoever claims to know (P6)."""
    door = Door(THIRD, P, rules)
    ahead = Contribute(round, b"elsewher", 7, b"8 bytes!", *[None] * 4, bytes(64))
    ours = contribution(START, FIRST)
    for message in (ahead, Prepare(round, TIP, 0), Promise(round, TIP, 0, 0, None), ours):
        door.hear(FIRST, message)
    assert door.mark.round == 0
    assert len(encode(ahead)) < 200
    assert not door.peer._closing._early


@pytest.mark.parametrize("rules", [RULES, MAJORITY], ids=["any", "majority"])
def test_who_was_admitted_by_an_entry_that_we_lack_is_no_stranger(rules: Rules) -> None:
    """Its contribution, and the word that a round is closed, may be here before that entry is. It
    is asked for it, and what it sent is not kept: nobody can tell yet that it may send it (P6).
    """
    contributed = Contribute(1, b"elsewher", 7, b"8 bytes!", *[None] * 4, bytes(64))
    for message in (contributed, Commit(1, 0, Hash(bytes(32)))):
        door = Door(THIRD, P, rules)
        door.hear(OUTSIDER, message)
        assert door.faults() == []
        assert [to for to, _ in door.sent(EntriesRequest)] == [(OUTSIDER,)]
        assert not door.peer._closing._early


@pytest.mark.parametrize("rules", [RULES, MAJORITY], ids=["any", "majority"])
def test_who_was_dropped_by_an_entry_that_it_lacks_is_no_stranger(rules: Rules) -> None:
    """It contributes to the round that it knows, which is over. To the one that is open here, it
    may not.
    """
    door, before = Door(THIRD, P, rules), START
    door.hear(FIRST, Closed(entry(before, FIRST)))
    assert door.mark.round == 1
    for sent in (contribution(before, FIRST), contribution(door.mark, FIRST)):
        door.hear(OUTSIDER, sent)
        is_over = sent.round == 0
        assert door.faults() == ([] if is_over else ["a contribution from a stranger"])
    door.hear(OUTSIDER, Commit(0, 0, Hash(bytes(32))))
    assert door.faults() == []
    door.hear(OUTSIDER, Commit(1, 0, Hash(bytes(32))))
    assert door.faults() == ["a commit from a stranger"]


@pytest.mark.parametrize("rules", [RULES, MAJORITY], ids=["any", "majority"])
def test_messages_of_past_rounds_change_nothing(rules: Rules) -> None:
    door = Door(THIRD, P, rules)
    made = chain(START, FIRST, 3)
    for one in made:
        door.hear(FIRST, Closed(one))
    head = door.mark
    old: list[Message] = [
        Closed(made[0]),
        contribution(START, SECOND),
        Prepare(0, TIP, 1),
        Promise(0, TIP, 1, 0, made[0]),
        Accepted(0, 0, made[0].hash),
        Commit(0, 0, made[0].hash),
    ]
    for message in old:
        door.hear(SECOND, message)
        assert not door.of(Apply)
        assert door.mark is head
