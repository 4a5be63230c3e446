"""Sums of parts once an entry is known, seen from the door of one peer."""

import pytest

from protocol.effects import AddUp, Note, OfferSum
from protocol.entries import Attachment
from protocol.events import BlobKept, Summed, SumRefused, Tick
from protocol.gathering import sum_key
from protocol.ids import PeerId, digest
from protocol.messages import (
    Accepted,
    BlobRequest,
    Closed,
    Commit,
    Part,
    PartRequest,
    PartsHeld,
    Propose,
    Sum,
    SumRequest,
)
from protocol.parts import SumName, whole_of
from tests.machine.dealing import (
    FIRST,
    LAST,
    MAJORITY,
    PLACE,
    RULES,
    SECOND,
    START,
    THIRD,
    P,
    contribute,
    entry_of,
    part,
    parts,
    seats,
    take,
    work,
)
from tests.machine.making import Door, closed


def test_a_stranger_raises_no_alarm() -> None:
    """P7: two sums of one name mean that a member is broken, so both have to be members'."""
    door = Door(FIRST, P, RULES)
    contribute(door, LAST)
    take(door, LAST, 0)
    entry = entry_of(LAST)
    door.hear(THIRD, Closed(entry))
    door.on(Summed(SumName(entry.hash, 0), Attachment(digest("a sum"), 10)))
    other = Sum(entry.hash, 0, Attachment(digest("another sum"), 10))
    door.hear(PeerId(digest("a stranger")), other)
    assert not door.of(Note)
    door.hear(SECOND, other)
    assert [note.event for note in door.of(Note)] == ["sums-differ"]


def test_a_part_that_is_gone_is_fetched_again() -> None:
    """P3: the disk damaged it since; its author has it."""
    door = Door(FIRST, P, RULES)
    contribute(door, LAST)
    take(door, LAST, 0)
    entry = entry_of(LAST)
    door.hear(THIRD, Closed(entry))
    assert door.of(AddUp)
    door.on(Summed(SumName(entry.hash, 0), None))
    door.now = 5_000
    door.on(Tick())
    assert [to[0] for to, _ in door.sent(PartRequest)] == [LAST]
    take(door, LAST, 0)
    assert [task.parts for task in door.of(AddUp)] == [(part(LAST, 0),)]


def test_a_proposal_that_comes_again_is_waited_for_once() -> None:
    """P6: whoever repeats it makes us remember nothing."""
    door = Door(THIRD, P, MAJORITY)
    entry = closed(START, FIRST, LAST, whole_of(parts(LAST)))
    for sender in (FIRST, SECOND, FIRST, FIRST):
        door.hear(sender, Propose(0, entry))
    assert len(door.peer._gathering._waits) == 1


def test_who_is_first_adds_up_and_tells_who_asks() -> None:
    door = Door(FIRST, P, RULES)
    contribute(door, LAST)
    take(door, LAST, 0)
    entry = entry_of(LAST)
    name = SumName(entry.hash, 0)
    door.hear(THIRD, SumRequest(entry.hash, (0,)))
    door.hear(THIRD, Closed(entry))
    (task,) = door.of(AddUp)
    assert (task.name, task.parts, task.is_first) == (name, (part(LAST, 0),), True)
    asked = [(to[0], message.numbers) for to, message in door.sent(SumRequest)]
    assert asked == [(SECOND, (1,))], "the other one, of who adds that up"
    made = Attachment(digest("a sum"), 10)
    door.on(Summed(name, made))
    assert door.written("sums")
    assert [(to[0], m.sum) for to, m in door.sent(Sum)] == [(THIRD, made)]
    door.hear(LAST, SumRequest(entry.hash, (0,)))
    assert [task.to for task in door.of(OfferSum)] == [LAST]


def test_the_next_calls_for_parts_and_adds_up_when_asked() -> None:
    """P4: the first is silent. Whoever asks another has waited for it."""
    door = Door(SECOND, P, RULES)
    entry = entry_of(LAST)
    door.hear(THIRD, Closed(entry))
    assert [(to[0], m.numbers) for to, m in door.sent(SumRequest)] == [(FIRST, (0,))]
    called = [(to[0], message.number) for to, message in door.sent(PartRequest)]
    assert called == [(LAST, 1)], "its own it calls for"
    door.hear(THIRD, SumRequest(entry.hash, (0,)))
    assert [(to[0], message.number) for to, message in door.sent(PartRequest)] == [(LAST, 0)]
    take(door, LAST, 0)
    (task,) = door.of(AddUp)
    assert (task.name.number, task.is_first) == (0, False)


def test_answers_are_rationed() -> None:
    """P6."""
    door = Door(LAST, P, RULES)
    door.on(work(door))
    door.hear(FIRST, Closed(entry_of(LAST)))
    answers = 0
    for _ in range(40):
        door.hear(THIRD, PartRequest(*PLACE, 1))
        answers += len(door.sent(Part))
    assert answers == 32


def test_an_author_answers_a_call() -> None:
    door = Door(LAST, P, RULES)
    door.on(work(door))
    door.sent(Part)
    door.hear(THIRD, PartRequest(*PLACE, 1))
    assert [(to[0], m.number, m.part) for to, m in door.sent(Part)] == [(THIRD, 1, part(LAST, 1))]


def test_a_sum_that_was_refused_is_fetched_of_another() -> None:
    """P6: and never again under that name."""
    door = Door(LAST, P, RULES)
    entry = entry_of(THIRD)
    door.hear(THIRD, Closed(entry))
    name, bad = SumName(entry.hash, 0), Attachment(digest("no sum"), 10)
    door.hear(FIRST, Sum(entry.hash, 0, bad))
    door.peer._transfers._orders.pop(bad.root)
    door.on(BlobKept(bad.root, is_here=True))
    assert door.peer._gathering.holds([name])
    door.sent(SumRequest)
    door.on(SumRefused(name, 0))
    assert not door.peer._gathering.holds([name])
    (asked,) = {to[0] for to, message in door.sent(SumRequest) if 0 in message.numbers}
    door.hear(asked, Sum(entry.hash, 0, bad))
    assert not door.sent(BlobRequest)
    good = Attachment(digest("a sum"), 10)
    door.hear(asked, Sum(entry.hash, 0, good))
    door.peer._transfers._orders.pop(good.root)
    door.on(BlobKept(good.root, is_here=True))
    assert door.written("sums") == {sum_key(0, name)}, "in the place of the bad one"


@pytest.mark.parametrize("sum", [Attachment(digest("x"), 0), Attachment(digest("x"), 1_001)])
def test_a_sum_of_an_impossible_size_is_not_fetched(sum: Attachment) -> None:
    """P6."""
    door = Door(LAST, P, RULES)
    entry = entry_of(THIRD)
    door.hear(THIRD, Closed(entry))
    door.hear(FIRST, Sum(entry.hash, 0, sum))
    assert not door.sent(BlobRequest)


def test_most_accept_only_what_they_could_merge() -> None:
    """P3: the proposal is known first, or nobody could add anything up; the votes come after."""
    door = Door(THIRD, P, MAJORITY)
    entry = closed(START, FIRST, LAST, whole_of(parts(LAST)))
    door.hear(FIRST, Propose(0, entry))
    assert not door.sent(Accepted)
    assert {to[0] for to, _ in door.sent(SumRequest)} == {FIRST, SECOND}
    for number, holder in enumerate((FIRST, SECOND)):
        sum = Attachment(digest("a sum", bytes([number])), 9)
        door.hear(holder, Sum(entry.hash, number, sum))
        door.peer._transfers._orders.pop(sum.root)
        assert not door.sent(Accepted)
        door.on(BlobKept(sum.root, is_here=True))
    assert [message.entry for _, message in door.sent(Accepted)] == [entry.hash]


def test_the_proposer_accepts_last_of_all_what_it_proposed() -> None:
    door = Door(FIRST, P, MAJORITY)
    contribute(door, LAST)
    take(door, LAST, 0)
    door.hear(SECOND, PartsHeld(*PLACE, 1, seats(LAST)))
    door.now = 35_100
    door.on(Tick())
    (_, proposal), *_ = door.sent(Propose)
    lead = door.peer._closing._round.lead
    assert lead is not None
    assert lead.accepts == set()
    for number, holder in enumerate((FIRST, SECOND)):
        sum = Attachment(digest("a sum", bytes([number])), 9)
        name = SumName(proposal.entry.hash, number)
        if holder == FIRST:
            door.on(Summed(name, sum))
        else:
            door.hear(holder, Sum(name.entry, number, sum))
            door.peer._transfers._orders.pop(sum.root)
            door.on(BlobKept(sum.root, is_here=True))
        if holder == FIRST:
            for peer in (SECOND, THIRD):
                door.hear(peer, Accepted(0, 0, proposal.entry.hash))
            assert not door.sent(Commit)
    assert lead.accepts == {FIRST, SECOND, THIRD}
    assert door.sent(Commit)
