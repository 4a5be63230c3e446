"""What members, strangers and bad luck may try at the door (P6), and what must come of it."""

import tracemalloc

import pytest

from node.sim.world import SimDisk, StubKeys
from protocol.codec import FRAME_BYTES_MAX, GUEST_FRAME_BYTES_MAX, decode, encode
from protocol.core import STRANGERS_MAX
from protocol.effects import Apply, GiveBack, Save, ServeEntries, StartWork
from protocol.entries import ENTRY_BYTES_MAX, Admission, Cause, Departure, Entry
from protocol.errors import LocalError, RemoteError
from protocol.events import Received, Tick
from protocol.ids import Hash, Millis, PeerId, digest
from protocol.ledger import Write, round_key
from protocol.messages import (
    Accepted,
    Ack,
    Closed,
    Commit,
    Contribute,
    Entries,
    EntriesRequest,
    Head,
    Health,
    Hello,
    Join,
    Locator,
    Message,
    Nack,
    Ping,
    PingRequest,
    Prepare,
    Propose,
    Rumor,
    View,
)
from protocol.peer import Peer
from protocol.restore import unlisted
from protocol.rounds import ranking
from tests.machine.making import (
    MAJORITY,
    RULES,
    RUN,
    Door,
    card,
    chain,
    contribution,
    entry,
    ids,
    judge,
    leave,
    token,
)

P = ids(5)
ME, OTHER, THIRD = P[:3]


def forged(real: Entry) -> Entry:
    return Entry(real.body, real.raw, bytes(64), real.signatures)


def test_a_bad_entry_behind_good_ones_costs_only_itself() -> None:
    """The good ones are applied and saved; then the bad one is held against its sender (P2)."""
    door = Door(ME, P[:3])
    first, second = chain(door.mark, OTHER, 2)
    door.hear(OTHER, Entries((first, forged(second)), Head(2, 2, second.hash[:8])))
    assert door.mark.hash == first.hash
    assert [effect.entry.hash for effect in door.of(Apply)] == [first.hash]
    assert any(write.table == "chain" for save in door.of(Save) for write in save.writes)
    assert [work.round for work in door.of(StartWork)] == [1]
    assert door.faults() == ["entry 1 has a false seal"]


def test_a_forged_seal_convicts_nobody() -> None:
    """A forgery in the closer's name, then the real entry: the closer signed only one (P6)."""
    door = Door(ME, P[:3])
    real = entry(door.mark, OTHER)
    fake = forged(entry(door.mark, OTHER, took_ms=1))
    door.hear(THIRD, Closed(fake))
    door.hear(THIRD, Closed(real))
    assert door.mark.hash == real.hash
    assert not door.peer._catchup.guilty


def test_two_real_seals_convict() -> None:
    door = Door(ME, P[:3])
    first, second = entry(door.mark, OTHER), entry(door.mark, OTHER, took_ms=1)
    door.hear(THIRD, Closed(first))
    door.hear(THIRD, Closed(second))
    assert list(door.peer._catchup.guilty) == [OTHER]


def test_an_early_contribution_with_a_false_signature_stops_nothing() -> None:
    """It waits for its round, is found false then, and work starts all the same (P4)."""
    door = Door(ME, P[:3])
    first = entry(door.mark, OTHER)
    after = judge().follow(door.mark, first)
    good = contribution(after, OTHER)
    bad = Contribute(1, first.hash[:8], 7, b"8 bytes!", 1.5, *[None] * 3, bytes(64))
    door.hear(THIRD, bad)
    door.hear(OTHER, good)
    door.hear(OTHER, Closed(first))
    assert [work.round for work in door.of(StartWork)] == [1]
    assert OTHER in door.peer._closing._round.held
    assert door.peer.faults == {THIRD: 1}


@pytest.mark.parametrize("loss", [float("inf"), float("-inf"), float("nan"), 1e300, -1e300])
def test_a_loss_that_is_no_number_is_unknown(loss: float) -> None:
    """A diverged model must not stop its peer, nor make entries that others cannot read (P7)."""
    door = Door(ME, [ME])
    door.work(loss=loss)
    (applied,) = door.of(Apply)
    assert applied.entry.body.lines[0].loss is None


def test_leaving_cannot_be_replayed_after_coming_back() -> None:
    """1. OTHER leaves and is dropped. 2. It joins again. 3. THIRD repeats the old notice."""
    door = Door(ME, P[:3])
    notice = leave(OTHER, 0)
    gone = entry(
        door.mark, ME, departures=(Departure(P.index(OTHER), Cause.LEFT, 0, notice.signature),)
    )
    door.hear(THIRD, Closed(gone))
    assert OTHER not in door.mark.roster
    back = entry(door.mark, ME, admissions=(Admission(card(OTHER, 2), None),))
    door.hear(THIRD, Closed(back))
    assert OTHER in door.mark.roster
    door.hear(THIRD, notice)
    assert not door.peer._admissions._leaves
    seat = door.mark.roster.seat(OTHER)
    assert seat is not None
    again = entry(door.mark, ME, departures=(Departure(seat, Cause.LEFT, 0, notice.signature),))
    with pytest.raises(RemoteError, match="notice of leaving"):
        judge().follow(door.mark, again)


def test_asking_for_entries_is_rationed() -> None:
    """A request of 100 bytes is worth up to a megabyte of answer (P6, P8)."""
    door = Door(ME, P[:3])
    request = EntriesRequest((Locator(0, Hash(RUN)),))
    served = sum(
        bool(door.hear(OTHER, request)) and bool(door.of(ServeEntries)) for _ in range(500)
    )
    assert 8 <= served <= 64
    door.hear(THIRD, request)
    assert door.of(ServeEntries), "others are served all the same"
    door.now += 60_000
    door.hear(OTHER, request)
    assert door.of(ServeEntries), "patience earns it again"


def test_a_lying_head_is_asked_only_now_and_then() -> None:
    """It promises a chain and sends nothing new: it must not keep us asking (P6)."""
    door = Door(ME, P[:3])
    known = entry(door.mark, THIRD)
    door.hear(THIRD, Closed(known))
    liar = Head(10**6, 10**12, b"nonsense")
    asked = 0
    for _ in range(200):
        door.now += 10
        door.hear(OTHER, Ping(1, liar, ()))
        asked += len(door.sent(EntriesRequest))
        door.hear(OTHER, Entries((known,), liar))
        asked += len(door.sent(EntriesRequest))
    assert asked <= 5


def test_an_absurd_ballot_silences_nobody() -> None:
    """In runs where any seal counts, a promise of the highest ballot would end the run (P4)."""
    door = Door(ME, P[:2])
    ranked = door.peer._core.ranked()
    highest = max(b for b in range(2**32 - 4, 2**32) if ranked[b % 2] == OTHER)
    door.hear(OTHER, Prepare(0, door.mark.hash[:8], highest))
    door.work()
    for _ in range(200):
        door.now += 500
        door.effects = door.peer.handle(Tick(), Millis(door.now))
        if door.mark.round:
            return
    pytest.fail("the round never closed")


def test_counts_in_a_frame_reserve_no_memory() -> None:
    """Lists within lists, each of which claims to be as long as the frame allows (P6)."""
    size = FRAME_BYTES_MAX - 2
    count = (size - 10).to_bytes(4, "big")
    frame = b"\x01\x14" + (b"\xdd" + count) * 500
    frame += bytes(size + 2 - len(frame))
    tracemalloc.start()
    try:
        with pytest.raises(RemoteError):
            decode(frame)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 32 * FRAME_BYTES_MAX


def test_the_first_entry_after_many_wordy_applicants_is_valid() -> None:
    """256 joins with long addresses are more than an entry holds: the rest waits (P4, P6)."""
    door = Door(ME, [ME])
    wordy = tuple("tcp://" + "a" * 250 for _ in range(8))
    invited = token(ME)
    for number in range(256):
        peer = PeerId(digest("applicant", bytes([number])))
        door.hear(peer, Join(card(peer, 1, wordy), invited))
    door.work()
    (applied,) = door.of(Apply)
    assert 64 < len(applied.entry.body.admissions) < 256
    assert len(applied.entry.raw) < ENTRY_BYTES_MAX


def test_invented_strangers_do_not_crowd_out_members() -> None:
    """Whoever has an invite can show any number of cards; members stay known (P6, P8)."""
    door = Door(ME, P[:3])
    invited = token(ME)
    for number in range(STRANGERS_MAX + 100):
        peer = PeerId(digest("stranger", number.to_bytes(2, "big")))
        door.hear(b"guest", Hello(card(peer), invited))
    assert len(door.peer.cards()) <= len(P[:3]) + STRANGERS_MAX
    assert {card.peer for card in door.peer.cards()} >= set(P[:3])
    door.hear(OTHER, View((), (card(THIRD, 9),), wants_reply=False))
    assert card(THIRD, 9) in door.peer.cards()


@pytest.mark.parametrize("message", [Nack(1), Ping(1, Head(0, 0, bytes(8)), ())])
def test_guests_may_only_say_hello(message: Message) -> None:
    door = Door(ME, P[:3])
    door.hear(b"guest", message)
    assert door.faults()[0].startswith("a guest that sends")


def test_guests_must_be_brief() -> None:
    """P6: a stranger gets no more than a greeting read."""
    door = Door(ME, P[:3])
    event = Received(b"guest", bytes(GUEST_FRAME_BYTES_MAX + 1), 0)
    door.effects = door.peer.handle(event, Millis(0))
    assert door.faults() == [f"a guest's frame of {GUEST_FRAME_BYTES_MAX + 1} bytes"]


def test_rumors_of_outsiders_are_not_believed() -> None:
    """Somebody who holds a connection but no membership cannot declare members dead (P6)."""
    door = Door(ME, P[:3], known=P[3:4])
    rumor = Rumor(OTHER, Health.DEAD, 5)
    door.hear(P[3], Ping(1, Head(0, 0, bytes(8)), (rumor,)))
    assert door.peer.membership.health(OTHER) is Health.ALIVE
    door.hear(THIRD, Ping(1, Head(0, 0, bytes(8)), (rumor,)))
    assert door.peer.membership.health(OTHER) is Health.DEAD


def test_only_the_target_answers_a_relayed_ping() -> None:
    """THIRD must not vouch for OTHER by guessing the number of the ping."""
    door = Door(ME, P[:4])
    door.hear(P[3], PingRequest(77, OTHER, ()))
    ((_, ping),) = door.sent(Ping)
    assert isinstance(ping, Ping)
    ack = Ack(ping.sequence, Head(0, 0, bytes(8)), ())
    door.hear(THIRD, ack)
    assert not door.sent(Ack)
    door.hear(OTHER, ack)
    assert [(to, answer.sequence) for to, answer in door.sent(Ack)] == [((P[3],), 77)]


def test_one_late_peer_counts_once_in_the_deadline() -> None:
    """Or else it could stretch everybody's rounds by repeating itself."""
    door = Door(ME, P[:3])
    late = contribution(door.mark, THIRD)
    door.hear(OTHER, Closed(entry(door.mark, OTHER)))
    door.now += 2_000
    before = len(door.peer._closing._arrivals)
    for _ in range(50):
        door.hear(THIRD, late)
    assert len(door.peer._closing._arrivals) == before + 1


def test_a_month_asleep_is_one_turn_not_thousands() -> None:
    """The clock jumps: the machine must neither hang nor send a month's ballots (P8)."""
    door = Door(ME, P[:3], MAJORITY)
    door.work()
    door.now += 31 * 86_400_000
    door.effects = door.peer.handle(Tick(), Millis(door.now))
    assert len(door.effects) < 50
    assert door.peer.wake_ms is not None
    assert door.peer.wake_ms > door.now


def test_a_clock_that_steps_back_stands_still() -> None:
    door = Door(ME, P[:3])
    door.now = 5_000
    door.work()
    wake = door.peer.wake_ms
    door.now = 10
    door.hear(OTHER, Nack(1))
    assert door.peer.wake_ms == wake


def test_nothing_happens_before_the_start() -> None:
    """What came before the disk was read could contradict what is on it."""
    peer = Peer(RUN, RULES, StubKeys(ME), P[:3], b"m", judge(), b"seed", Millis(0))
    hello = encode(Hello(card(P[3]), token(ME)))
    assert peer.handle(Received(b"guest", hello, 0), Millis(0)) == []
    assert peer.handle(Tick(), Millis(9_999)) == []
    assert peer.wake_ms is None


def test_work_that_is_not_valid_is_our_own_fault() -> None:
    door = Door(ME, P[:3])
    with pytest.raises(LocalError, match="our own work"):
        door.work(payload=b"7 bytes")


def test_a_second_proposal_under_one_ballot_is_refused() -> None:
    """Accepting both would let two entries be chosen (P5)."""
    door = Door(ME, P[:3], MAJORITY)
    first = entry(door.mark, OTHER)
    second = entry(door.mark, OTHER, took_ms=1)
    ballot = 3 + ranking(RUN, 0, door.mark.roster).index(OTHER)
    door.hear(OTHER, Propose(ballot, first))
    assert door.sent(Accepted)
    door.hear(OTHER, Propose(ballot, second))
    assert door.faults() == ["a second proposal under one ballot"]
    door.hear(OTHER, Propose(ballot, first))
    assert door.sent(Accepted), "the same again is answered again: the answer may have been lost"
    assert not door.of(Save), "but not written again"


def test_a_proposal_under_our_own_ballot_is_nobody_else_s() -> None:
    """P5: it would be passed on as if we had made it."""
    door = Door(ME, P[:3], MAJORITY)
    ballot = 3 + ranking(RUN, 0, door.mark.roster).index(ME)
    door.hear(OTHER, Propose(ballot, entry(door.mark, OTHER)))
    assert door.faults() == ["a proposal under our own ballot"]
    assert not door.sent(Propose)
    assert not door.sent(Accepted)


@pytest.mark.parametrize("kind", ["propose", "commit", "contribute", "prepare"])
def test_strangers_have_no_part_in_a_round(kind: str) -> None:
    door = Door(ME, P[:3], MAJORITY, known=P[3:])
    made = entry(door.mark, OTHER)
    door.hear(OTHER, Propose(1, made))
    head = door.mark.hash
    messages: dict[str, Message] = {
        "propose": Propose(2, made),
        "commit": Commit(0, 1, made.hash),
        "contribute": contribution(door.mark, P[3]),
        "prepare": Prepare(0, head[:8], 2),
    }
    door.hear(P[3], messages[kind])
    assert door.faults()
    assert door.mark.hash == head


def test_our_own_missed_work_is_ours_by_signature() -> None:
    """Another's equal bytes in the entry do not make ours listed (P3)."""
    disk = SimDisk()
    door = Door(ME, P[:3])
    start = door.mark
    ours = contribution(start, ME, b"8 bytes!")
    theirs = entry(start, OTHER, payload=b"8 bytes!")
    door.hear(OTHER, Closed(theirs))
    for save in door.of(Save):
        disk.commit(save.writes)
    disk.commit([Write("outbox", round_key(0), encode(ours))])
    assert list(unlisted(disk)) == [GiveBack(0, b"8 bytes!")]
    disk.commit([Write("outbox", round_key(0), encode(contribution(start, OTHER, b"8 bytes!")))])
    assert list(unlisted(disk)) == []


def test_an_old_join_of_a_departed_peer_is_forgotten() -> None:
    """It left before its own request was listed here; it must not be joined against its will."""
    door = Door(ME, P[:3])
    door.hear(THIRD, Join(card(P[3]), token(ME)))
    assert P[3] in door.peer._admissions._joins
    first = entry(door.mark, OTHER, admissions=(Admission(card(P[3]), token(ME)),))
    after = judge().follow(door.mark, first)
    seat = after.roster.seat(P[3])
    assert seat is not None
    bye = Departure(seat, Cause.LEFT, 1, leave(P[3], 1).signature)
    second = entry(after, OTHER, departures=(bye,))
    door.hear(OTHER, Entries((first, second), Head(2, 2, second.hash[:8])))
    assert door.mark.round == 2
    assert not door.peer._admissions._joins


def test_a_message_in_our_own_name_is_a_fault() -> None:
    """A connection proves who speaks; nothing that we sent comes back to us."""
    door = Door(ME, P[:3])
    door.hear(ME, contribution(door.mark, ME))
    assert door.faults() == ["a message from ourselves"]
    assert not door.peer._closing._round.held


def test_strangers_with_connections_leave_no_trace() -> None:
    """P6, P8: an invite's holder may make up a new key for each message."""
    door = Door(ME, P[:3])
    for number in range(2_000):
        door.hear(PeerId(digest("passer-by", number.to_bytes(2, "big"))), Nack(1))
    assert len(door.peer.membership._heard_ms) <= 3
