"""Sums of attachments in parts: who is asked, and when; what is believed, kept and dropped."""

import pytest

from protocol.blobs import chunk_id, page_id, root_of
from protocol.codec import CHUNK_BYTES
from protocol.effects import AddUp, DropBlob, OfferSum, Proceed, Rebuild
from protocol.entries import Attachment, Entry
from protocol.events import (
    Applied,
    Behind,
    BlobKept,
    BlobOpened,
    Summed,
    SumRefused,
    Tick,
)
from protocol.gathering import sum_key
from protocol.ids import Hash, Millis, PeerId, digest
from protocol.messages import (
    Accepted,
    BlobOffer,
    BlobRequest,
    Closed,
    Level,
    PartRequest,
    Piece,
    Propose,
    Sum,
    SumRequest,
)
from protocol.parts import SumName, whole_of
from protocol.rounds import ranking
from protocol.rules import Rules
from tests.machine.dealing import (
    FIRST,
    LAST,
    MAJORITY,
    RULES,
    SECOND,
    START,
    THIRD,
    P,
    contribute,
    entry_of,
    part,
    parts,
    take,
)
from tests.machine.making import RUN, Door, closed, judge

CHUNKS = (b"a" * CHUNK_BYTES, b"b" * 9)
NAMES = b"".join(map(chunk_id, CHUNKS))
LONG = Attachment(root_of(CHUNK_BYTES + 9, NAMES), CHUNK_BYTES + 9)
LARGE = Rules(attachment_bytes_max=LONG.size, parts_max=2)
GOOD = Attachment(digest("a sum"), 10)
BAD = Attachment(digest("no sum"), 10)
STRANGER = PeerId(digest("a stranger"))


def tick(door: Door, now: int, gone: tuple[PeerId, ...] = ()) -> None:
    """All but these give a sign of life."""
    door.now = now
    for peer in P:
        if peer not in gone:
            door.peer.membership.heard(peer, Millis(now))
    door.on(Tick())


def asked(door: Door, number: int = 0) -> list[PeerId]:
    return [to[0] for to, message in door.sent(SumRequest) if number in message.numbers]


def come(door: Door, root: Hash) -> None:
    """All of a blob did."""
    door.peer._transfers._orders.pop(root)
    door.on(BlobKept(root, is_here=True))


def behind(door: Door, entry: Entry, *numbers: int) -> None:
    names = tuple(SumName(entry.hash, number) for number in numbers)
    door.on(Behind(entry.round, entry.round + 1, None, (), (), names))


def go_on(door: Door, rounds: int) -> None:
    """The chain does; nothing is attached."""
    closer = SECOND if door.me == THIRD else THIRD
    for _ in range(rounds):
        door.hear(closer, Closed(closed(door.mark, closer, closer, None)))


def knows(door: Door, name: SumName) -> Attachment | None:
    """What it tells who asks."""
    door.hear(LAST if door.me != LAST else FIRST, SumRequest(name.entry, (name.number,)))
    found = [task.message.sum for task in door.of(OfferSum)]
    return found[0] if found else None


# Asking


def test_each_in_order_is_asked_until_one_answers() -> None:
    """P4: again each second, and the next after four; after the last, the first again."""
    door = Door(THIRD, P, RULES)
    door.hear(FIRST, Closed(entry_of(LAST)))
    turns = [(0, peer) for peer in asked(door)]
    while (wake := door.peer.wake_ms) is not None and wake < 14_000:
        tick(door, wake)
        turns += [(wake, peer) for peer in asked(door)]
    assert [now for now, _ in turns] == list(range(0, 14_000, 1_000))
    assert [peer for _, peer in turns] == [*[FIRST] * 4, *[SECOND] * 4, *[LAST] * 4, *[FIRST] * 2]


def test_who_is_down_is_not_waited_for() -> None:
    """P4."""
    door = Door(THIRD, P, RULES)
    door.hear(FIRST, Closed(entry_of(LAST)))
    now, turns = 0, asked(door)
    while FIRST not in door.peer.membership.down():
        assert FIRST not in turns[-1:] or now < 4_000
        now += 250
        tick(door, now, gone=(FIRST,))
        turns += asked(door)
        assert now < 60_000
    after = closed(door.mark, SECOND, SECOND, whole_of(parts(SECOND)))
    door.hear(SECOND, Closed(after))
    asked_now = [to[0] for to, message in door.sent(SumRequest) if message.entry == after.hash]
    assert FIRST not in asked_now


def test_who_ends_while_it_is_asked_is_not_waited_for() -> None:
    door = Door(THIRD, P, RULES)
    now = 0
    while FIRST not in door.peer.membership.down():
        now += 250
        tick(door, now, gone=(FIRST,))
    for peer in P:
        door.peer.membership.heard(peer, Millis(now))
    assert FIRST in door.peer.membership.down(), "it has to deny that itself"
    entry = entry_of(LAST)
    door.hear(SECOND, Closed(entry))
    wanted = door.peer._gathering._wanted[SumName(entry.hash, 0)]
    assert wanted.asked == [SECOND]
    wanted.asked = [FIRST]  # it was up then
    tick(door, now + 1_000, gone=(FIRST,))
    assert asked(door) == [SECOND]


def test_who_adds_up_asks_others_when_that_takes_long() -> None:
    """P4: our model may still be loading. We never ask ourselves."""
    door = Door(FIRST, P, RULES)
    contribute(door, LAST)
    take(door, LAST, 0)
    door.hear(SECOND, Closed(entry_of(LAST)))
    assert len(door.of(AddUp)) == 1
    for now in range(250, 4_000, 250):
        tick(door, now)
        assert asked(door) == []
        assert not door.of(AddUp), "once"
    tick(door, 4_000)
    assert asked(door) == [SECOND]
    door.hear(LAST, SumRequest(entry_of(LAST).hash, (0,)))
    assert not door.of(AddUp)


def test_authors_are_called_again_after_a_while() -> None:
    door = Door(FIRST, P, RULES)
    door.now = 100
    door.hear(SECOND, Closed(entry_of(LAST)))
    assert [message.number for _, message in door.sent(PartRequest)] == [0]
    calls: list[int] = []
    for now in range(350, 8_600, 250):
        tick(door, now)
        calls += [now for _ in door.sent(PartRequest)]
    assert calls == [4_100, 8_100]


def test_our_own_part_is_called_for_of_nobody() -> None:
    """The disk lost it; nobody else can have all of it."""
    door = Door(FIRST, P, RULES)
    contribute(door, FIRST) if door.me != FIRST else None
    entry = closed(START, SECOND, FIRST, whole_of(parts(FIRST)))
    door.hear(SECOND, Closed(entry))
    assert not door.sent(PartRequest)


def test_who_was_first_when_it_was_needed_adds_up() -> None:
    """Although the one before it is back by then."""
    door = Door(SECOND, P, RULES)
    entry = entry_of(LAST)
    door.hear(THIRD, Closed(entry))
    door.peer._gathering._wanted[SumName(entry.hash, 0)].asked.append(SECOND)
    take(door, LAST, 0)
    assert [task.name.number for task in door.of(AddUp)] == [0]


def test_who_was_asked_before_it_knew_the_entry_adds_up() -> None:
    """P4: whoever asks the second has waited for the first."""
    door = Door(SECOND, P, RULES)
    contribute(door, LAST)
    take(door, LAST, 0)
    entry = entry_of(LAST)
    door.hear(THIRD, SumRequest(entry.hash, (0,)))
    assert not door.of(AddUp)
    door.hear(THIRD, Closed(entry))
    assert [task.name.number for task in door.of(AddUp)] == [0]


# What is named


def test_only_who_was_asked_names_a_sum() -> None:
    door = Door(THIRD, P, RULES)
    entry = entry_of(LAST)
    door.hear(FIRST, Closed(entry))
    door.hear(LAST, Sum(entry.hash, 0, BAD))
    assert not door.sent(BlobRequest)
    door.hear(FIRST, Sum(entry.hash, 0, GOOD))
    assert [message.root for _, message in door.sent(BlobRequest)] == [GOOD.root]


def test_a_sum_that_does_not_come_is_asked_for_of_others() -> None:
    """P6: who named it is not believed again before all others were asked."""
    door = Door(THIRD, P, RULES)
    entry = entry_of(LAST)
    door.hear(FIRST, Closed(entry))
    door.hear(FIRST, Sum(entry.hash, 0, BAD))
    for now in range(500, 10_000, 500):
        tick(door, now)
        assert asked(door) == []
        assert not [drop for drop in door.of(DropBlob) if drop.root == BAD.root]
    tick(door, 10_000)
    assert [drop.root for drop in door.of(DropBlob)] == [BAD.root]
    assert asked(door) == [SECOND]
    door.hear(FIRST, Sum(entry.hash, 0, BAD))
    assert not door.sent(BlobRequest)
    for now in range(10_500, 18_500, 500):
        tick(door, now)
    assert asked(door) == [FIRST], "all others had their turn"
    door.hear(FIRST, Sum(entry.hash, 0, BAD))
    assert [message.root for _, message in door.sent(BlobRequest)] == [BAD.root]


def begin(door: Door, holder: PeerId) -> None:
    """The pages came, and the first chunk will."""
    door.hear(holder, BlobOffer(LONG.root, LONG.size, (page_id(NAMES),), None))
    door.hear(holder, Piece(LONG.root, Level.PAGE, 0, NAMES))
    door.on(BlobOpened(LONG.root, b"\x00"))


def test_a_sum_that_comes_slowly_is_waited_for() -> None:
    door = Door(THIRD, P, LARGE)
    entry = entry_of(LAST)
    door.hear(FIRST, Closed(entry))
    door.hear(FIRST, Sum(entry.hash, 0, LONG))
    begin(door, FIRST)
    tick(door, 9_000)
    door.hear(FIRST, Piece(LONG.root, Level.CHUNK, 0, CHUNKS[0]))
    tick(door, 18_900)
    assert not door.of(DropBlob)
    tick(door, 19_000)
    assert [drop.root for drop in door.of(DropBlob)] == [LONG.root]


def test_what_comes_after_we_added_up_ourselves_changes_nothing() -> None:
    """P1."""
    door = Door(SECOND, P, RULES)
    contribute(door, LAST)
    take(door, LAST, 0)
    entry = entry_of(LAST)
    door.hear(THIRD, Closed(entry))
    door.hear(FIRST, Sum(entry.hash, 0, BAD))
    door.hear(THIRD, SumRequest(entry.hash, (0,)))
    door.on(Summed(SumName(entry.hash, 0), GOOD))
    come(door, BAD.root)
    assert knows(door, SumName(entry.hash, 0)) == GOOD


def test_a_sum_that_we_made_under_another_name_is_here() -> None:
    """Two parts that nobody moved come to the same bytes."""
    door = Door(FIRST, P, RULES)
    contribute(door, LAST)
    take(door, LAST, 0)
    entry = entry_of(LAST)
    door.hear(THIRD, Closed(entry))
    door.on(Summed(SumName(entry.hash, 0), GOOD))
    door.hear(SECOND, Sum(entry.hash, 1, GOOD))
    assert not door.sent(BlobRequest)
    assert door.written("sums") == {sum_key(0, SumName(entry.hash, 1))}


def test_a_sum_that_the_state_needs_comes_whatever_the_chain_does() -> None:
    """P3."""
    door = Door(THIRD, P, RULES)
    entry = entry_of(LAST)
    door.hear(FIRST, Closed(entry))
    door.hear(FIRST, Sum(entry.hash, 0, GOOD))
    go_on(door, 4)
    assert GOOD.root in door.peer._transfers._orders
    assert SumName(entry.hash, 1) in door.peer._gathering._wanted
    come(door, GOOD.root)
    assert door.written("sums") == {sum_key(0, SumName(entry.hash, 0))}


# Whose round it is of


def test_a_name_that_was_asked_for_too_early_is_kept_with_its_own_round() -> None:
    """P3: or the state would not find it there."""
    door = Door(THIRD, P, RULES)
    first = closed(START, SECOND, SECOND, None)
    mark = judge(RULES).follow(START, first)
    entry = closed(mark, SECOND, LAST, whole_of(parts(LAST)))
    name = SumName(entry.hash, 0)
    door.hear(LAST, SumRequest(entry.hash, (0,)))
    door.hear(SECOND, Closed(first))
    door.hear(SECOND, Closed(entry))
    (to,) = asked(door)
    door.hear(to, Sum(entry.hash, 0, GOOD))
    come(door, GOOD.root)
    assert door.written("sums") == {sum_key(1, name)}
    assert [(to, message.sum) for to, message in door.sent(Sum)] == [((LAST,), GOOD)]


def test_a_name_that_the_state_lacks_is_kept_with_its_own_round() -> None:
    door = Door(THIRD, P, RULES)
    go_on(door, 2)
    missing = SumName(Hash(digest("an older entry")), 0)
    door.hear(LAST, SumRequest(missing.entry, (0,)))
    door.on(Behind(1, 2, None, (), (), (missing,)))
    (to,) = asked(door)
    door.hear(to, Sum(missing.entry, 0, GOOD))
    come(door, GOOD.root)
    assert door.written("sums") == {sum_key(1, missing)}


def test_who_is_heard_is_asked_before_who_may_not_know_us() -> None:
    """P4: members that were never told of an applicant refuse its connection."""
    door = Door(STRANGER, P, RULES)
    for member in P:
        if member != SECOND:
            door.peer.membership.heard(member, Millis(0))
    turns = []
    for n in range(20):
        behind(door, entry_of(LAST), n)
        turns += asked(door, n)
    assert len(turns) == 20
    assert SECOND not in turns
    door.effects = []
    while SECOND not in turns:
        door.now += 1_000
        assert door.now < 60_000, "who was not heard is asked in the end"
        door.on(Tick())
        turns += asked(door)


# The state


def had(door: Door, entry: Entry, *numbers: int) -> None:
    """These sums came."""
    for number in numbers:
        (to,) = asked(door, number) or [FIRST]
        made = Attachment(digest("a sum", bytes([number])), 10)
        door.hear(to, Sum(entry.hash, number, made))
        come(door, made.root)


def test_what_the_state_lacks_twice_is_not_there() -> None:
    """Once it may have come meanwhile."""
    door = Door(THIRD, P, RULES)
    entry = closed(START, SECOND, LAST, whole_of(parts(LAST)))
    door.hear(SECOND, Closed(entry))
    door.peer._gathering.hold(SumName(entry.hash, 1), GOOD)
    had(door, entry, 0)
    name = SumName(entry.hash, 0)
    behind(door, entry, 0)
    assert asked(door) == []
    assert door.of(Proceed), "it is there"
    behind(door, entry, 0)
    assert len(asked(door)) == 1
    assert not door.of(Proceed)
    assert not door.peer._gathering.holds([name])
    (to,) = asked(door)
    door.hear(to, Sum(entry.hash, 0, GOOD))
    come(door, GOOD.root)
    assert door.of(Proceed)
    behind(door, entry, 0)
    assert asked(door) == [], "it may have come meanwhile, again"
    door.on(Applied(1, entry.hash, 7))
    behind(door, entry, 0)
    assert asked(door) == []


def test_the_state_is_not_given_up_while_sums_come() -> None:
    """P4: one after the other; or a piece of one."""
    door = Door(THIRD, P, LARGE)
    entry = closed(START, SECOND, LAST, whole_of(parts(LAST)))
    door.hear(SECOND, Closed(entry))
    behind(door, entry, 0, 1)
    ceiling = LARGE.deadline_ceiling_ms
    door.now = ceiling - 1_000
    number_0 = door.peer._gathering._wanted[SumName(entry.hash, 0)]
    door.hear(number_0.asked[-1], Sum(entry.hash, 0, GOOD))
    come(door, GOOD.root)
    door.now = 2 * ceiling - 2_000
    door.on(Tick())
    assert not door.of(Rebuild)
    number_1 = door.peer._gathering._wanted[SumName(entry.hash, 1)]
    to = number_1.asked[-1]
    door.hear(to, Sum(entry.hash, 1, LONG))
    begin(door, to)
    door.now = 2 * ceiling - 1_500
    door.hear(to, Piece(LONG.root, Level.CHUNK, 0, CHUNKS[0]))
    door.now = 2 * ceiling + 7_000
    door.on(Tick())
    assert not door.of(Rebuild)
    door.now = 3 * ceiling
    door.on(Tick())
    assert door.of(Rebuild)


def test_a_state_that_came_past_needs_nothing_older() -> None:
    """P8: nobody is asked any more."""
    door = Door(THIRD, P, RULES)
    entry = closed(START, SECOND, LAST, whole_of(parts(LAST)))
    door.hear(SECOND, Closed(entry))
    door.hear(LAST, SumRequest(entry.hash, (1,)))
    door.on(Applied(1, entry.hash, 7))
    wanted = door.peer._gathering._wanted
    assert list(wanted) == [SumName(entry.hash, 1)], "somebody else wants that"
    tick(door, 1_000)
    assert asked(door) == asked(door, 1) == []


def test_what_a_vote_waits_for_is_needed_wherever_the_state_stands() -> None:
    """P5."""
    door = Door(THIRD, P, MAJORITY)
    entry = closed(START, FIRST, LAST, whole_of(parts(LAST)))
    door.hear(FIRST, Propose(0, entry))
    door.on(Applied(1, entry.hash, 7))
    tick(door, 1_000)
    assert asked(door) == [FIRST]


# Voting


def test_a_proposal_whose_sums_are_here_is_accepted_at_once() -> None:
    door = Door(THIRD, P, MAJORITY)
    entry = closed(START, FIRST, LAST, whole_of(parts(LAST)))
    door.hear(FIRST, Propose(0, entry))
    gathering = door.peer._gathering
    for number in range(2):
        gathering.hold(SumName(entry.hash, number), GOOD)
    door.hear(FIRST, Propose(1, entry))
    assert [message.ballot for _, message in door.sent(Accepted)] == [1]
    door.hear(FIRST, Propose(1, entry))
    assert [message.ballot for _, message in door.sent(Accepted)] == [1], "it did not hear of it"


# Bounds


def test_what_others_ask_for_is_bounded() -> None:
    """P6: only members make us remember a name, and no more than so many."""
    door = Door(THIRD, P, RULES)
    wanted = door.peer._gathering._wanted
    door.hear(STRANGER, SumRequest(Hash(bytes(32)), tuple(range(8))))
    assert not wanted
    for number in range(9):
        entry = Hash(digest("made up", bytes([number])))
        door.hear(FIRST, SumRequest(entry, tuple(range(1_024))))
    assert len(wanted) == 8_192
    go_on(door, 3)
    assert not wanted, "P8: nobody asks any more for what was older"


def test_who_asks_is_remembered_up_to_a_number() -> None:
    """P6."""
    door = Door(THIRD, P, RULES)
    entry = entry_of(LAST)
    door.hear(FIRST, Closed(entry))
    (wanted,) = (one for name, one in door.peer._gathering._wanted.items() if name.number == 0)
    for number in range(4_096):
        wanted.askers[PeerId(digest("one", number.to_bytes(2, "big")))] = None
    door.hear(LAST, SumRequest(entry.hash, (0,)))
    assert LAST not in wanted.askers


def test_questions_are_rationed() -> None:
    """P6."""
    door = Door(THIRD, P, RULES)
    name = SumName(entry_of(LAST).hash, 0)
    door.peer._gathering.hold(name, GOOD)
    answers = 0
    for _ in range(40):
        door.hear(LAST, SumRequest(name.entry, (0,)))
        answers += len(door.of(OfferSum))
    assert answers == 32


def test_what_is_known_to_be_here_is_bounded() -> None:
    """P8."""
    gathering = Door(THIRD, P, RULES).peer._gathering
    for number in range(65_537):
        gathering.hold(SumName(START.hash, number), GOOD)
    assert not gathering.holds([SumName(START.hash, 0)])
    assert gathering.holds([SumName(START.hash, 1)])


def test_what_was_waited_for_long_ago_is_forgotten() -> None:
    """P8: a proposal that came to nothing."""
    door = Door(THIRD, P, MAJORITY)
    door.hear(FIRST, Propose(0, closed(START, FIRST, LAST, whole_of(parts(LAST)))))
    assert len(door.peer._gathering._waits) == 1
    for _ in range(3):
        entry = closed(door.mark, SECOND, SECOND, None)
        ballot = 4 + ranking(RUN, door.mark.round, door.mark.roster).index(SECOND)
        door.hear(SECOND, Propose(ballot, entry))
        accepted = door.peer._closing._round.accepted
        assert accepted is not None
        door.peer._adopt(entry)
    assert not door.peer._gathering._waits


@pytest.mark.parametrize("number", [0, 1])
def test_a_refused_sum_is_wanted_again(number: int) -> None:
    """P3: in its own round, also when nobody wanted it meanwhile."""
    door = Door(LAST, P, RULES)
    entry = entry_of(THIRD)
    door.hear(THIRD, Closed(entry))
    go_on(door, 2)
    name = SumName(entry.hash, number)
    door.peer._gathering._wanted.clear()
    door.peer._gathering.hold(name, BAD)
    door.on(SumRefused(name, 0))
    (to,) = asked(door, number)
    door.hear(to, Sum(entry.hash, number, GOOD))
    come(door, GOOD.root)
    assert door.written("sums") == {sum_key(0, name)}


def test_of_two_lines_both_parts_are_called_for() -> None:
    """A part of one author is none of another's."""
    door = Door(FIRST, P, RULES)
    contribute(door, LAST)
    take(door, LAST, 0)
    assert part(LAST, 0).root != part(THIRD, 0).root
    door.hear(SECOND, Closed(closed(START, SECOND, THIRD, whole_of(parts(THIRD)))))
    assert [to[0] for to, _ in door.sent(PartRequest)] == [THIRD]
    assert not door.of(AddUp)
