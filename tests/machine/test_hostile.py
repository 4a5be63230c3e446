"""What members, strangers and bad luck may try at the peer's door (P6), and what must come of it."""

import tracemalloc

import pytest

from protocol.codec import FRAME_BYTES_MAX, decode
from protocol.entries import Cause, Departure, Entry
from protocol.errors import RemoteError
from protocol.events import Apply, Save, ServeEntries, StartWork
from protocol.ids import Hash
from protocol.messages import (
    Closed,
    Contribute,
    Entries,
    EntriesRequest,
    Head,
    Locator,
    Ping,
    Prepare,
)
from tests.machine.making import RUN, Door, chain, contribution, entry, genesis, ids, judge, leave

P = ids(5)
ME, OTHER, THIRD = P[:3]


def forged(real: Entry) -> Entry:
    return Entry(real.body, real.raw, bytes(64), real.signatures)


def test_a_bad_entry_behind_good_ones_costs_only_itself() -> None:
    """The good ones are applied and saved before the bad one is held against its sender (P2, P6)."""
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
    """It waits for its round to open, is found false then, and work starts all the same (P4)."""
    door = Door(ME, P[:3])
    first = entry(door.mark, OTHER)
    after = judge().follow(door.mark, first)
    good = contribution(after, OTHER)
    bad = Contribute(1, first.hash[:8], 7, b"8 bytes!", 1.5, None, bytes(64))
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
    from protocol.entries import Admission
    from tests.machine.making import card

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
        from protocol.events import Tick
        from protocol.ids import Millis

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
