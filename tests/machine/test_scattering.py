"""Parts on their way before a round closes, seen from the door of one peer."""

from dataclasses import replace

import pytest

from protocol.blobs import Bits
from protocol.deal import PartKept, read_dealt
from protocol.effects import AddUp, GiveBack, Save, Send
from protocol.entries import Attachment, Entry
from protocol.errors import LocalError
from protocol.events import Behind, BlobKept, Tick
from protocol.gathering import sum_key
from protocol.ids import Hash, Millis, PeerId, digest
from protocol.ledger import Mark
from protocol.messages import (
    BlobRequest,
    Closed,
    Contribute,
    Level,
    Part,
    PartRequest,
    PartsHeld,
    PieceRequest,
    Prepare,
    Promise,
    Propose,
    Sum,
    SumRequest,
)
from protocol.open_round import silent
from protocol.parts import SumName, path_to, whole_of
from protocol.peer import Saved
from protocol.roster import Roster
from protocol.rounds import ranking
from protocol.rules import Rules
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
    held,
    hide,
    named,
    part,
    parts,
    seats,
    take,
    work,
)
from tests.machine.making import RUN, Door, bring, closed, genesis, ids, judge

# Authors


def test_each_part_goes_to_the_first_who_will_sum_it() -> None:
    """With the contribution that it is of; its author's own goes to the next."""
    door = Door(FIRST, P, RULES)
    door.on(work(door))
    sent = {(to[0], message.number) for to, message in door.sent(Part)}
    assert sent == {(SECOND, 0), (SECOND, 1)}
    door = Door(LAST, P, RULES)
    door.on(work(door))
    assert {(to[0], message.number) for to, message in door.sent(Part)} == {(FIRST, 0), (SECOND, 1)}
    told = {to[0] for to, _ in door.sent(Contribute)}
    assert {FIRST, SECOND} <= told


def test_what_nobody_takes_is_offered_to_the_next() -> None:
    """P4: once more to the same one first, because it may have been lost."""
    door = Door(LAST, P, RULES)
    door.on(work(door))
    door.hear(SECOND, PartsHeld(*PLACE, 1, seats(LAST)))
    door.hear(FIRST, PartsHeld(*PLACE, 0, seats(THIRD)))  # not ours
    offered: list[tuple[PeerId, int]] = []
    for now in range(0, 9_000, 250):
        door.now = now
        door.on(Tick())
        offered += [(to[0], message.number) for to, message in door.sent(Part)]
    assert [to for to, number in offered if number == 0][:4] == [FIRST] * 3 + [SECOND]
    assert not [number for _, number in offered if number == 1], "somebody has it"


def test_who_is_no_collector_gets_the_contribution_with_its_part() -> None:
    door = Door(FIRST, P, replace(RULES, parts_max=4, collectors=1))
    made = tuple(part(FIRST, number) for number in range(4))
    door.on(replace(work(door), attached=whole_of(made), parts=made))
    sent = [(to[0], message.number) for to, message in door.sent(Part)]
    assert sent == [(SECOND, 0), (SECOND, 1), (THIRD, 2), (LAST, 3)]
    assert {to[0] for to, _ in door.sent(Contribute)} == {SECOND, THIRD, LAST}
    deal = door.peer._scattering.open_deal()
    assert deal is not None
    assert door.peer._scattering._offer_ms(deal) == 1_000, "what was lost is sent again"


def test_who_is_down_is_passed_over() -> None:
    """P4: at once, and not after as long as one waits for who is silent."""
    door = Door(LAST, P, RULES)
    while FIRST not in door.peer.membership.down():
        door.now += 500
        for peer in (SECOND, THIRD):
            door.peer.membership.heard(peer, Millis(door.now))
        door.on(Tick())
        assert door.now < 60_000
    assert SECOND not in door.peer.membership.down()
    door.on(work(door))
    assert {(to[0], m.number) for to, m in door.sent(Part)} == {(SECOND, 0), (SECOND, 1)}


def test_who_goes_down_is_waited_for_no_longer() -> None:
    """P4: although it began to fetch what it was offered."""
    door = Door(LAST, P, RULES)
    door.on(work(door))
    while FIRST not in door.peer.membership.down():
        assert not [to for to, m in door.sent(Part) if m.number == 0 and to[0] != FIRST]
        door.now += 500
        for peer in (SECOND, THIRD):
            door.peer.membership.heard(peer, Millis(door.now))
        door.peer._scattering.asked_for(part(LAST, 0).root)
        door.on(Tick())
        assert door.now < 60_000
    assert [to[0] for to, m in door.sent(Part) if m.number == 0] == [SECOND]


def test_who_cannot_be_reached_is_offered_nothing() -> None:
    """Chunks take no relay. Who reaches nobody vouches for itself, and for itself alone (P4)."""
    door = Door(LAST, P, RULES)
    hide(door, LAST, FIRST, SECOND)
    door.on(work(door))
    assert {(to[0], m.number) for to, m in door.sent(Part)} == {(THIRD, 0), (THIRD, 1)}
    door = Door(LAST, P, replace(RULES, collectors=4))
    hide(door, *P)
    contribute(door, SECOND)
    assert held(door) == set()
    door.on(work(door))
    assert held(door) == {LAST}


def test_who_cannot_be_reached_is_asked_for_no_sum() -> None:
    door = Door(LAST, P, RULES)
    hide(door, LAST, FIRST)
    door.hear(THIRD, Closed(closed(START, THIRD, SECOND, whole_of(parts(SECOND)))))
    assert {(to[0], m.numbers) for to, m in door.sent(SumRequest)} == {(SECOND, (0, 1))}


def test_a_sum_that_is_our_own_part_is_here() -> None:
    """Of one contribution alone the sum is the same bytes."""
    door = Door(LAST, P, RULES)
    door.on(work(door))
    entry = entry_of(LAST)
    door.hear(THIRD, Closed(entry))
    door.hear(FIRST, Sum(entry.hash, 0, part(LAST, 0)))
    assert not door.sent(BlobRequest)
    assert door.written("sums") == {sum_key(0, SumName(entry.hash, 0))}


def test_who_fetches_a_part_is_given_time() -> None:
    """Of that part, and as long as it goes on asking."""
    door = Door(LAST, P, RULES)
    door.on(work(door))
    offered: list[tuple[PeerId, int, int]] = []
    for now in range(0, 12_000, 250):
        door.now = now
        for peer in P:
            door.peer.membership.heard(peer, Millis(now))
        if now in (500, 4_000):
            door.hear(FIRST, PieceRequest(part(LAST, 0).root, Level.CHUNK, (0,)))
        else:
            door.on(Tick())
        offered += [(to[0], message.number, now) for to, message in door.sent(Part)]
    assert [(to, now) for to, number, now in offered if number == 0] == [
        (SECOND, 8_000),
        *[(SECOND, now) for now in (9_000, 10_000, 11_000)],
    ]
    assert [to for to, number, _ in offered if number == 1][:4] == [SECOND] * 3 + [THIRD]


def test_who_has_no_other_left_asks_the_first_again() -> None:
    """P4."""
    door = Door(LAST, P, RULES)
    door.on(work(door))
    turns = [(0, to[0]) for to, message in door.sent(Part) if message.number == 0]
    while (wake := door.peer.wake_ms) is not None and wake < 14_000:
        door.now = wake
        for peer in P:
            door.peer.membership.heard(peer, Millis(wake))
        door.on(Tick())
        turns += [(wake, to[0]) for to, message in door.sent(Part) if message.number == 0]
    assert [now for now, _ in turns] == list(range(0, 14_000, 1_000))
    order = [*[FIRST] * 4, *[SECOND] * 4, *[THIRD] * 4, *[FIRST] * 2]
    assert [peer for _, peer in turns] == order


def test_an_overdue_round_is_dealt_once_more() -> None:
    """P4: who had our parts may have been restarted. Whoever has them says so, and no more."""
    door = Door(LAST, P, MAJORITY)
    door.on(work(door))
    deal = door.peer._scattering.open_deal()
    assert deal is not None
    for number, holder in enumerate((FIRST, SECOND)):
        door.hear(holder, PartsHeld(*PLACE, number, seats(LAST)))
    due = deal.due_ms + 10_000
    for now in range(1_000, due, 1_000):
        door.now = now
        for peer in P:
            door.peer.membership.heard(peer, Millis(now))
        door.on(Tick())
        assert not door.sent(Part), now
    assert door.peer._scattering._offer_ms(deal) == due
    door.now = due
    door.on(Tick())
    sent = {(to[0], message.number) for to, message in door.sent(Part)}
    assert sent == {(FIRST, 0), (SECOND, 1)}
    assert deal.due_ms == due, "and again when it is overdue by as much"


def test_our_own_counts_once_others_have_it() -> None:
    """P3: not because we have it ourselves."""
    door = Door(FIRST, P, RULES)
    door.on(work(door))
    assert held(door) == set()
    door.hear(SECOND, PartsHeld(*PLACE, 0, seats(FIRST)))
    door.hear(SECOND, PartsHeld(*PLACE, 1, seats(THIRD)))
    assert held(door) == set()
    door.hear(SECOND, PartsHeld(*PLACE, 1, seats(FIRST)))
    assert held(door) == {FIRST}


def test_collectors_hear_at_once_when_all_has_come() -> None:
    """Else after a moment, so that they hear of many parts in one message; and again later."""
    door = Door(SECOND, P, replace(RULES, parts_max=3))
    made = {peer: tuple(part(peer, number) for number in range(3)) for peer in P}

    def bring_all(author: PeerId, number: int) -> None:
        path = path_to(made[author], number)
        door.hear(author, bring(START, author, whole_of(made[author])))
        door.hear(author, Part(*PLACE, author, number, made[author][number], path))
        door.peer._transfers._orders.pop(made[author][number].root)
        door.on(BlobKept(made[author][number].root, is_here=True))

    def told_first() -> list[int]:
        return sorted(m.number for to, m in door.sent(PartsHeld) if to[0] == FIRST)

    door.now = 10_000
    door.on(Tick())
    bring_all(LAST, 1)
    assert told_first() == [1], "nothing was told lately"
    for author in (FIRST, THIRD, LAST):
        bring_all(author, 2)
    door.on(Tick())
    assert told_first() == []
    door.now = 10_199
    door.on(Tick())
    assert told_first() == []
    door.now = 10_200
    door.on(Tick())
    assert told_first() == [1, 2]
    door.now = 10_201
    door.on(replace(work(door), attached=whole_of(made[SECOND]), parts=made[SECOND]))
    for author in (FIRST, THIRD):
        assert not [to for to, m in door.sent(PartsHeld) if to[0] == FIRST and m.number == 2]
        bring_all(author, 1)
    assert told_first() == []
    bring_all(LAST, 0)
    bring_all(FIRST, 0)
    bring_all(THIRD, 0)
    assert set(told_first()) == {0, 1, 2}
    door.now = 12_200
    door.on(Tick())
    assert told_first() == []
    door.now = 12_201
    door.on(Tick())
    assert told_first() == [0, 1, 2]


def test_our_own_work_in_other_parts_is_a_bug_of_ours() -> None:
    door = Door(FIRST, P, RULES)
    one = parts(FIRST)[:1]
    with pytest.raises(LocalError, match="has 1 parts, not 2"):
        door.on(replace(work(door), parts=one, attached=whole_of(one)))
    with pytest.raises(LocalError, match="has 2 parts, not 2"):
        door.on(replace(work(door), attached=whole_of(parts(SECOND))))


def test_what_our_own_work_is_made_of_is_on_disk_before_it_is_told() -> None:
    """P3."""
    door = Door(LAST, P, RULES)
    door.on(work(door))
    assert door.written("parts") == {whole_of(parts(LAST)).root}
    saves = [n for n, effect in enumerate(door.effects) if isinstance(effect, Save)]
    sends = [n for n, effect in enumerate(door.effects) if isinstance(effect, Send)]
    assert min(saves) < min(sends)
    (mine,) = {message for _, message in door.sent(Contribute)}
    again = Door(LAST, P, RULES, Saved((START,), mine=mine, parts=parts(LAST)))
    assert {(to[0], m.number) for to, m in again.sent(Part)} == {(FIRST, 0), (SECOND, 1)}


def test_work_that_comes_too_late_can_be_given_back() -> None:
    """P3: what it was made of is on disk before that is asked for."""
    door = Door(FIRST, P, RULES)
    late = replace(work(door), parent=Hash(bytes(32)))
    door.on(late)
    (given,) = door.of(GiveBack)
    assert given.attached == late.attached
    assert door.written("parts") == {late.attached.root if late.attached else None}


# Holders and collectors


def test_a_contribution_counts_once_others_hold_all_of_it() -> None:
    """P3: its author's word for itself is none."""
    door = Door(FIRST, P, RULES)
    contribute(door, LAST)
    take(door, LAST, 0)
    assert held(door) == set()
    door.hear(LAST, PartsHeld(*PLACE, 1, seats(LAST)))
    assert held(door) == set()
    door.hear(SECOND, PartsHeld(*PLACE, 1, seats(THIRD)))
    assert held(door) == set()
    door.hear(SECOND, PartsHeld(*PLACE, 1, seats(THIRD, LAST)))
    assert held(door) == {LAST}


def test_one_may_hold_all_parts() -> None:
    """P4: where few of many are left, each holds most of what the others made."""
    many = ids(40)
    start = genesis(many)
    first, author, holder = ranking(RUN, 0, start.roster)[:3]
    door = Door(first, many, replace(RULES, parts_max=40, attachment_bytes_max=2_000))
    made = tuple(part(author, number) for number in range(40))
    door.hear(author, bring(start, author, whole_of(made)))
    bits = Bits(40)
    bits.add(start.roster.seat(author) or 0)
    for number in range(40):
        assert held(door) == set()
        door.hear(holder, PartsHeld(*PLACE, number, bits.encode()))
        assert not door.faults()
    assert held(door) == {author}


def awaiting(door: Door, *authors: PeerId) -> None:
    """What these brought is covered: we hold part 1, and only the first has part 0."""
    for author in authors:
        contribute(door, author)
        take(door, author, 1)
    door.hear(FIRST, PartsHeld(*PLACE, 0, seats(SECOND, *authors)))
    assert held(door) - {SECOND} == set(authors)


def pass_time(door: Door, ms: int, *alive: PeerId, mute: tuple[PeerId, ...] = ()) -> list[Entry]:
    """Who is alive gives signs of life, and promises what it is asked for; who is mute does only
    the first. Returns what was closed.
    """
    for _ in range(ms // 500):
        door.now += 500
        for peer in (*alive, *mute):
            door.peer.membership.heard(peer, Millis(door.now))
        door.on(Tick())
        found = [message.entry for _, message in door.sent(Closed)]
        if found:
            return found
        for to, prepare in door.sent(Prepare):
            for peer in set(to) & set(alive):
                door.hear(peer, Promise(*PLACE, prepare.ballot, 0, None))
                found += [message.entry for _, message in door.sent(Closed)]
        if found:
            return found
    return []


def authors_of(entry: Entry) -> set[PeerId]:
    return {START.roster.members[line.seat] for line in entry.body.lines}


def test_what_others_have_is_within_reach() -> None:
    door = Door(SECOND, P, RULES)
    awaiting(door, LAST)
    reach = door.peer._scattering.is_within_reach
    assert reach(LAST, {FIRST})
    assert reach(LAST, {LAST})
    assert reach(LAST, {THIRD, LAST})
    assert not reach(LAST, {FIRST, LAST})
    assert reach(THIRD, {FIRST, THIRD}), "it brought nothing that we know of"


def test_what_nobody_else_has_any_more_is_not_listed() -> None:
    """P4: two promise nothing: one made it, the other alone had a part of it."""
    door = Door(SECOND, P, RULES)
    door.on(work(door))
    awaiting(door, LAST, THIRD)
    door.hear(THIRD, PartsHeld(*PLACE, 1, seats(SECOND)))
    (sealed, *_) = pass_time(door, 200_000, THIRD, mute=(FIRST, LAST))
    assert not {FIRST, LAST} & door.peer.membership.down()
    assert authors_of(sealed) == {SECOND, THIRD}


def test_who_could_list_nothing_does_not_close() -> None:
    """P4: what is left comes."""
    door = Door(SECOND, P, RULES)
    awaiting(door, LAST)
    assert not pass_time(door, 90_000, THIRD)
    door.on(work(door))
    for number in range(2):
        door.hear(THIRD, PartsHeld(*PLACE, number, seats(SECOND)))
    sealed = [message.entry for _, message in door.sent(Closed)] or pass_time(door, 90_000, THIRD)
    assert authors_of(sealed[0]) == {SECOND}


def test_what_the_dead_had_alone_is_not_closed_with() -> None:
    """P4: what they sent before was long on its way."""
    door = Door(FIRST, P, RULES)
    while not {SECOND, LAST} <= door.peer.membership.down():
        assert not pass_time(door, 500, THIRD)
    assert not silent(door.peer._core, door.peer._closing._round)
    for author in (THIRD, LAST):
        contribute(door, author)
        take(door, author, 0)
    door.hear(SECOND, PartsHeld(*PLACE, 1, seats(THIRD, LAST)))
    assert held(door) == {THIRD, LAST}
    door.on(work(door))
    door.hear(THIRD, PartsHeld(*PLACE, 0, seats(FIRST)))
    door.hear(THIRD, PartsHeld(*PLACE, 1, seats(FIRST)))
    (_, message), *_ = door.sent(Closed)
    assert authors_of(message.entry) == {FIRST, THIRD}


def test_the_closer_leaves_out_who_was_silent_with_what_it_brought() -> None:
    """P4: and lists what others have of it."""
    for holder in (SECOND, THIRD):
        door = Door(FIRST, P, RULES)
        door.on(work(door))
        for number in range(2):
            door.hear(THIRD, PartsHeld(*PLACE, number, seats(FIRST, THIRD)))
        for author in (LAST, THIRD):
            contribute(door, author)
            take(door, author, 0)
        door.hear(SECOND, PartsHeld(*PLACE, 1, seats(THIRD, *([LAST] if holder == SECOND else []))))
        door.hear(THIRD, PartsHeld(*PLACE, 1, seats(FIRST, *([LAST] if holder == THIRD else []))))
        assert held(door) == {FIRST, THIRD, LAST}
        calls = door.peer._closing._roll_call_ms
        assert not pass_time(door, calls - 500, *P)
        (sealed, *_) = pass_time(door, 20_000, THIRD)
        assert LAST not in door.peer.membership.down()
        assert (LAST in authors_of(sealed)) == (holder == THIRD)


def test_who_has_a_part_tells_its_author_and_the_collectors() -> None:
    door = Door(SECOND, P, RULES)
    contribute(door, LAST)
    take(door, LAST, 1)
    told = [(to[0], message.number, message.seats) for to, message in door.sent(PartsHeld)]
    assert (LAST, 1, seats(LAST)) in told
    door.now = 500
    door.on(Tick())
    told = [(to[0], message.number, message.seats) for to, message in door.sent(PartsHeld)]
    assert {to for to, _, _ in told} == {FIRST, THIRD}


def test_who_may_have_to_close_hears_of_parts_with_our_promise() -> None:
    door = Door(SECOND, P, replace(RULES, collectors=1))
    contribute(door, LAST)
    take(door, LAST, 1)
    door.hear(THIRD, Prepare(*PLACE, 2))
    told = [
        type(effect.message)
        for effect in door.of(Send)
        if effect.to == (THIRD,) and isinstance(effect.message, PartsHeld | Promise)
    ]
    assert told == [PartsHeld, Promise]


def test_the_next_owners_of_ballots_hear_of_parts() -> None:
    """P4: when the closer is silent."""
    door = Door(LAST, P, replace(RULES, collectors=1))
    contribute(door, THIRD)
    take(door, THIRD, 1)
    told = set()
    while not door.peer._closing._round.sent_to and door.now < 90_000:
        door.now += 500
        for peer in P:
            door.peer.membership.heard(peer, Millis(door.now))
        door.on(Tick())
        told |= {to[0] for to, _ in door.sent(PartsHeld)}
    assert told == {FIRST, SECOND, THIRD}, "the third made it"


def test_what_a_part_is_of_its_author_says_first() -> None:
    """P6: or others' words would be held against it."""
    door = Door(FIRST, P, RULES)
    door.hear(SECOND, named(LAST, 0))
    door.hear(SECOND, bring(START, SECOND, whole_of(parts(SECOND))))
    assert not door.faults()
    contribute(door, LAST)
    assert not door.sent(BlobRequest)


def test_an_author_that_did_not_hear_of_it_is_told_again() -> None:
    door = Door(SECOND, P, RULES)
    contribute(door, LAST)
    take(door, LAST, 1)
    door.hear(LAST, named(LAST, 1))
    assert [(to[0], m.number) for to, m in door.sent(PartsHeld)] == [(LAST, 1)]


def test_a_part_that_comes_when_another_is_listed_is_nobodys() -> None:
    """P2."""
    door = Door(FIRST, P, RULES)
    contribute(door, LAST)
    door.hear(LAST, named(LAST, 0))
    door.hear(THIRD, Closed(closed(START, THIRD, LAST, whole_of(other_whole(LAST)))))
    door.peer._transfers._orders.pop(part(LAST, 0).root)
    door.on(BlobKept(part(LAST, 0).root, is_here=True))
    assert not door.written("dealt")
    assert not door.of(AddUp)


def test_the_last_one_left_vouches_for_itself_alone() -> None:
    """P4: not for what others brought."""
    door = Door(FIRST, P, RULES)
    door.on(work(door))
    contribute(door, LAST)
    while len(door.peer.membership.down()) < 3 and door.mark.round == 0:
        assert held(door) == set()
        door.now += 500
        door.on(Tick())
    sealed = [message.entry for _, message in door.sent(Closed)]
    assert held(door) == {FIRST} or authors_of(sealed[0]) == {FIRST}


def test_a_part_may_come_before_its_contribution() -> None:
    door = Door(FIRST, P, RULES)
    door.hear(LAST, named(LAST, 0))
    assert not door.sent(BlobRequest)
    contribute(door, LAST)
    assert [message.root for _, message in door.sent(BlobRequest)] == [part(LAST, 0).root]


@pytest.mark.parametrize(
    "message",
    [
        replace(named(LAST, 0), number=2),
        replace(named(LAST, 0), number=1),
        replace(named(LAST, 0), author=PeerId(bytes(32))),
        replace(named(LAST, 0), path=()),
        PartsHeld(*PLACE, 2, seats(LAST)),
        PartsHeld(*PLACE, 0, b"\x10"),
        PartsHeld(*PLACE, 0, b"\x01\x00"),
        PartRequest(*PLACE, 2),
    ],
)
@pytest.mark.parametrize("rules", [RULES, MAJORITY], ids=["any", "majority"])
def test_what_does_not_fit_is_counted_against_its_sender(
    message: Part | PartsHeld | PartRequest, rules: Rules
) -> None:
    """P6. Where any seal counts, a part of this author with this number may be of another whole."""
    door = Door(FIRST, P, rules)
    contribute(door, LAST)
    door.hear(LAST, message)
    may_differ = isinstance(message, Part) and message.author == LAST and message.number < 2
    assert len(door.faults()) == (rules is MAJORITY or not may_differ)
    assert not door.sent(BlobRequest)


def other_whole(author: PeerId) -> tuple[Attachment, ...]:
    """What an author brings to the same round instead."""
    return tuple(Attachment(digest("another part", author, bytes([n])), 10 + n) for n in range(2))


def test_parts_of_something_else_are_not_added_up() -> None:
    """P1, P2: an author signed two contributions, and others listed the one that we did not get."""
    door = Door(FIRST, P, RULES)
    contribute(door, LAST)
    take(door, LAST, 0)
    made = other_whole(LAST)
    entry = closed(START, THIRD, LAST, whole_of(made))
    door.hear(THIRD, Closed(entry))
    assert not door.of(AddUp)
    assert [(to[0], message.number) for to, message in door.sent(PartRequest)] == [(LAST, 0)]
    door.hear(LAST, Part(*PLACE, LAST, 0, made[0], path_to(made, 0)))
    door.peer._transfers._orders.pop(made[0].root)
    door.on(BlobKept(made[0].root, is_here=True))
    (task,) = door.of(AddUp)
    assert task.parts == (made[0],)


def test_who_left_an_entry_may_bring_something_else() -> None:
    """P6: where any seal counts it is no fault, and where most bind nobody leaves one. What came
    first counts, as long as nothing else is listed.
    """
    made = other_whole(LAST)
    other = Part(*PLACE, LAST, 1, made[1], path_to(made, 1))
    door = Door(FIRST, P, MAJORITY)
    contribute(door, LAST)
    take(door, LAST, 0)
    contribute(door, LAST)  # once more
    door.hear(LAST, bring(START, LAST, whole_of(made)))
    door.hear(LAST, other)
    assert len(door.faults()) == 1
    assert not door.sent(BlobRequest)
    door = Door(FIRST, P, RULES)
    contribute(door, LAST)
    door.hear(LAST, other)
    assert not door.faults(), "the contribution that says so may be lost on the way"
    assert not door.sent(BlobRequest)
    door = Door(FIRST, P, RULES)
    contribute(door, LAST)
    door.hear(THIRD, Closed(entry_of(LAST)))
    door.hear(LAST, other)
    assert not door.faults(), "we do not know what others still have open"
    assert not door.sent(BlobRequest)


def test_while_a_round_is_open_no_list_counts_more_than_what_came() -> None:
    """Else two proposals would take each other's parts away."""
    door = Door(FIRST, P, MAJORITY)
    contribute(door, LAST)
    take(door, LAST, 0)
    door.hear(THIRD, Propose(0, closed(START, THIRD, LAST, whole_of(other_whole(LAST)))))
    assert not door.of(AddUp)
    door.hear(SECOND, Propose(1, closed(START, SECOND, LAST, whole_of(parts(LAST)))))
    (task,) = door.of(AddUp)
    assert task.parts == (part(LAST, 0),)


def kept(author: PeerId, number: int, mark: Mark = START) -> PartKept:
    whole = whole_of(parts(author))
    return PartKept(mark.round, mark.hash, author, number, whole, part(author, number))


def test_who_starts_again_knows_whose_parts_it_has() -> None:
    """P3: it said so before. What is not on the disk, or of another chain, it does not have."""
    door = Door(FIRST, P, RULES)
    contribute(door, LAST)
    take(door, LAST, 0)
    assert door.written("dealt") == {kept(LAST, 0).key}
    assert read_dealt(kept(LAST, 0).key, kept(LAST, 0).value) == kept(LAST, 0)
    elsewhere = replace(kept(SECOND, 0), parent=Hash(bytes(32)))
    roots = tuple(one.part.root for one in (kept(LAST, 0), elsewhere))
    saved = Saved((START,), attachments=roots, dealt=(kept(LAST, 0), kept(THIRD, 0), elsewhere))
    door = Door(SECOND, P, RULES, saved)
    gone = [w.key for save in door.of(Save) for w in save.writes if w.table == "dealt"]
    assert gone == [elsewhere.key]
    door.now = 500
    door.on(Tick())
    told = {(to[0], message.number, message.seats) for to, message in door.sent(PartsHeld)}
    assert {(FIRST, 0, seats(LAST)), (THIRD, 0, seats(LAST))} <= told


def test_what_is_left_to_be_added_up_is_after_a_start() -> None:
    """P3: all ended before anybody had a sum. We summed one part, and hold another of our own."""
    entry = closed(START, THIRD, SECOND, whole_of(parts(SECOND)))
    mark = judge(RULES).follow(START, entry)
    mine = bring(START, SECOND, whole_of(parts(SECOND)))
    roots = tuple(part(SECOND, number).root for number in range(2))
    saved = Saved(
        (START, mark), entry, attachments=roots, dealt=(kept(SECOND, 0),), before=(mine, ())
    )
    first = Door(FIRST, P, RULES, saved)
    assert [(task.name.number, task.parts) for task in first.of(AddUp)] == [(0, (part(SECOND, 0),))]
    second = Door(SECOND, P, RULES, replace(saved, dealt=(), before=(mine, parts(SECOND))))
    assert [(task.name.number, task.parts) for task in second.of(AddUp)] == [
        (1, (part(SECOND, 1),))
    ]
    second.hear(THIRD, PartRequest(*PLACE, 0))
    assert [(to[0], message.number) for to, message in second.sent(Part)] == [(THIRD, 0)]
    third = Door(THIRD, P, RULES, replace(saved, dealt=(), before=None))
    assert not third.of(AddUp)
    asked = {(to[0], m.numbers) for to, m in third.sent(SumRequest)}
    assert asked == {(FIRST, (0,)), (SECOND, (1,))}


def test_who_leaves_an_entry_waits_for_other_parts() -> None:
    """P2: what its authors bring to the round that is open again is other work."""
    door = Door(FIRST, P, RULES)
    contribute(door, LAST)
    take(door, LAST, 0)
    entry = closed(START, THIRD, LAST, whole_of(parts(LAST)))
    door.hear(THIRD, Closed(entry))
    names = SumName(entry.hash, 0), SumName(entry.hash, 1)
    door.on(Behind(0, 1, None, (), (), names))
    gone: list[bytes] = []
    while door.mark.round:
        door.now += 1_000
        assert door.now < 60_000
        door.on(Tick())
    writes = [write for save in door.of(Save) for write in save.writes]
    gone += [w.key for w in writes if w.table == "dealt" and w.value is None]
    assert gone == [kept(LAST, 0).key]
    made = other_whole(LAST)
    door.hear(LAST, bring(START, LAST, whole_of(made)))
    door.hear(LAST, Part(*PLACE, LAST, 0, made[0], path_to(made, 0)))
    assert [message.root for _, message in door.sent(BlobRequest)] == [made[0].root]
    for _ in range(3):
        door.hear(THIRD, Closed(entry))
    assert len([w for w in door.peer._gathering._waits if names[0] in w.missing]) == 1


def test_old_records_of_parts_are_removed_at_a_start() -> None:
    """P8."""
    marks = [START]
    for _ in range(4):
        marks.append(judge(RULES).follow(marks[-1], closed(marks[-1], THIRD, THIRD, None)))
    dealt = (kept(LAST, 0), kept(LAST, 0, marks[1]))
    door = Door(
        FIRST, P, RULES, Saved(tuple(marks), attachments=(part(LAST, 0).root,), dealt=dealt)
    )
    gone = [w.key for save in door.of(Save) for w in save.writes if w.table == "dealt"]
    assert gone == [dealt[0].key]


def test_records_of_parts_do_not_pile_up() -> None:
    """P8."""
    door = Door(FIRST, P, RULES)
    contribute(door, LAST)
    take(door, LAST, 0)
    mark = START
    gone: list[bytes] = []
    for _ in range(4):
        assert not gone
        entry = closed(mark, THIRD, THIRD, None)
        mark = judge(RULES).follow(mark, entry)
        door.hear(THIRD, Closed(entry))
        writes = [write for save in door.of(Save) for write in save.writes]
        gone += [w.key for w in writes if w.table == "dealt" and w.value is None]
    assert gone == [kept(LAST, 0).key]


def test_a_part_whose_fetch_was_given_up_is_fetched_when_it_is_named_again() -> None:
    door = Door(SECOND, P, RULES)
    contribute(door, LAST)
    door.hear(LAST, named(LAST, 1))
    assert door.sent(BlobRequest)
    door.hear(LAST, named(LAST, 1))
    assert not door.sent(BlobRequest)
    mark = START
    for _ in range(2):
        entry = closed(mark, THIRD, THIRD, None)
        mark = judge(RULES).follow(mark, entry)
        door.hear(THIRD, Closed(entry))
    door.hear(LAST, named(LAST, 1))
    assert [message.root for _, message in door.sent(BlobRequest)] == [part(LAST, 1).root]


def test_nobody_but_members_makes_us_remember_what_comes_early() -> None:
    """P6."""
    door = Door(FIRST, P, RULES)
    early = replace(named(LAST, 0), round=1)
    for number in range(3):
        door.hear(PeerId(digest("a stranger", bytes([number]))), early)
    assert not door.peer._scattering._early
    for _ in range(30):
        door.hear(LAST, early)
    assert [len(found) for found in door.peer._scattering._early.values()] == [16]
    entry = closed(START, THIRD, THIRD, None)
    door.hear(THIRD, Closed(entry))
    assert not door.faults(), "they were of another branch"
    bad = replace(named(LAST, 0), round=2, tip=entry.hash[:8], number=9)
    after = closed(judge(RULES).follow(START, entry), THIRD, THIRD, None)
    bad = replace(bad, tip=after.hash[:8])
    door.hear(LAST, bad)
    assert not door.faults(), "nobody can tell yet"
    door.hear(THIRD, Closed(after))
    assert len(door.faults()) == 1


def test_a_stranger_has_no_say() -> None:
    door = Door(FIRST, P, RULES)
    contribute(door, LAST)
    stranger = PeerId(digest("a stranger"))
    door.hear(stranger, named(LAST, 0))
    assert len(door.faults()) == 1
    for message in (PartsHeld(*PLACE, 0, seats(LAST)), PartRequest(*PLACE, 0)):
        door.hear(stranger, message)
        assert not door.faults(), "the round may be over, and it a member by an entry that we lack"
        assert not door.sent(Part)
    assert held(door) == set()


@pytest.mark.parametrize("rules", [RULES, MAJORITY], ids=["any", "majority"])
def test_who_was_admitted_later_may_ask_for_parts(rules: Rules) -> None:
    """It adds up old sums like all others. A stranger is not answered, and is no liar: it may have
    been admitted by an entry that we lack.
    """
    newcomer = PeerId(digest("admitted later"))
    door = Door(FIRST, P, rules)
    door.on(work(door))
    request, said = PartRequest(*PLACE, 0), PartsHeld(*PLACE, 0, seats(LAST))
    door.hear(THIRD, Closed(entry_of(FIRST)))
    door.hear(newcomer, request)
    assert not door.faults()
    assert not door.sent(Part)
    roster = Roster([*door.mark.roster.members, newcomer])
    door.peer._core.ledger.head = replace(door.mark, roster=roster)
    door.hear(newcomer, said)
    assert not door.faults()
    door.hear(newcomer, request)
    assert [to for to, _ in door.sent(Part)] == [(newcomer,)]
