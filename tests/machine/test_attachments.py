"""Attachments of contributions: nobody lists, accepts or merges what is not here."""

from protocol.blobs import chunk_id, page_id, root_of
from protocol.codec import CHUNK_BYTES
from protocol.effects import (
    Apply,
    BlobKind,
    DropBlob,
    GiveBack,
    Hold,
    KeepBlob,
    OfferBlob,
    OpenBlob,
    Proceed,
    Rebuild,
    StartWork,
)
from protocol.entries import Attachment, Entry
from protocol.events import Applied, Behind, BlobKept, BlobOpened, Tick, WorkDone
from protocol.ids import Hash, Millis, PeerId
from protocol.messages import (
    Accepted,
    BlobOffer,
    BlobRequest,
    Closed,
    Contribute,
    Entries,
    Level,
    Piece,
    PieceRequest,
    Propose,
)
from protocol.rounds import ranking
from protocol.rules import Quorum, Rules
from protocol.snapshots import SnapshotAt
from tests.machine.making import RUN, Door, bring, closed, genesis, ids, judge

P = ids(4)
START = genesis(P)
FIRST, SECOND, THIRD, LAST = ranking(RUN, 0, START.roster)
SIZE = CHUNK_BYTES + 9
CHUNKS = (b"a" * CHUNK_BYTES, b"b" * 9)
NAMES = b"".join(map(chunk_id, CHUNKS))
ONE = Attachment(root_of(SIZE, NAMES), SIZE)
ANY = Rules(attachment_bytes_max=SIZE)
MAJORITY = Rules(attachment_bytes_max=SIZE, quorum=Quorum.MAJORITY)


def give(door: Door, holder: PeerId) -> None:
    """`holder` sends all of it, and the disk keeps it."""
    door.hear(holder, BlobOffer(ONE.root, SIZE, (page_id(NAMES),), None))
    door.hear(holder, Piece(ONE.root, Level.PAGE, 0, NAMES))
    (opened,) = door.of(OpenBlob)
    assert opened.kind is BlobKind.ATTACHMENT
    door.on(BlobOpened(ONE.root, b"\x00"))
    for number, chunk in enumerate(CHUNKS):
        door.hear(holder, Piece(ONE.root, Level.CHUNK, number, chunk))
    (keep,) = door.of(KeepBlob)
    assert keep.root == ONE.root
    door.on(BlobKept(ONE.root, is_here=True))


def held(door: Door) -> set[PeerId]:
    return set(door.peer._closing._round.held)


def test_a_contribution_counts_once_its_attachment_is_here() -> None:
    """P2: a closer lists only what it holds."""
    door = Door(FIRST, P, ANY)
    door.hear(THIRD, bring(START, THIRD, ONE))
    ((to, request),) = door.sent(BlobRequest)
    assert to[0] == THIRD
    assert request.root == ONE.root
    assert held(door) == set()
    door.hear(THIRD, bring(START, THIRD, ONE))
    assert not door.sent(BlobRequest), "it is on its way"
    door.now = 900
    give(door, THIRD)
    assert held(door) == {THIRD}
    assert door.peer._closing._arrivals[-1] == 900, "so long it took to come"


def test_what_the_run_does_not_allow_is_refused() -> None:
    """P6."""
    for rules, attached in (
        (Rules(), ONE),
        (ANY, Attachment(ONE.root, SIZE + 1)),
        (ANY, Attachment(ONE.root, 0)),
    ):
        door = Door(FIRST, P, rules)
        door.hear(THIRD, bring(START, THIRD, attached))
        assert "an attachment of" in door.faults()[0]
        door.hear(THIRD, Closed(closed(START, THIRD, THIRD, attached)))
        assert door.faults()
        assert door.mark.round == 0


def test_a_blob_of_another_size_is_not_what_was_named() -> None:
    """P6: the author may lie about the size; nobody is made to fetch more than it said."""
    door = Door(FIRST, P, ANY)
    door.hear(THIRD, bring(START, THIRD, Attachment(ONE.root, SIZE - 1)))
    door.hear(THIRD, BlobOffer(ONE.root, SIZE, (page_id(NAMES),), None))
    assert not door.sent(PieceRequest)
    assert not door.faults(), "who offers it did not lie"


def test_an_attachment_is_part_of_what_is_signed() -> None:
    door = Door(FIRST, P, ANY)
    told = bring(START, THIRD, ONE)
    other = Contribute(
        told.round,
        told.tip,
        told.state,
        told.payload,
        told.loss,
        told.heldout,
        None,
        Attachment(ONE.root, SIZE - 2),
        told.signature,
    )
    door.hear(THIRD, other)
    assert door.faults() == ["a contribution with a false signature"]


def test_what_is_late_by_a_round_is_no_longer_fetched() -> None:
    door = Door(FIRST, P, ANY)
    door.hear(THIRD, bring(START, THIRD, ONE))
    mark = START
    for _ in range(2):
        entry = closed(mark, SECOND, SECOND, None)
        door.hear(SECOND, Closed(entry))
        mark = door.mark
    assert door.of(DropBlob) == [DropBlob(ONE.root)]
    assert not door.peer._attachments._waits


def test_a_member_accepts_only_what_it_could_merge() -> None:
    """P3: once most have accepted an entry, most hold all that it lists."""
    door = Door(THIRD, P, MAJORITY)
    proposal = Propose(0, closed(START, FIRST, SECOND, ONE))
    door.hear(FIRST, proposal)
    assert not door.sent(Accepted)
    asked = {peer for to, _ in door.sent(BlobRequest) for peer in to}
    assert {FIRST, SECOND} <= asked
    give(door, SECOND)
    ((to, accepted),) = door.sent(Accepted)
    assert to == (FIRST,)
    assert accepted.entry == proposal.entry.hash


def test_our_own_work_and_what_is_given_back_name_it() -> None:
    door = Door(THIRD, P, ANY)
    door.on(WorkDone(0, START.hash, 7, b"8 bytes!", 1.5, None, None, ONE))
    assert all(sent.attached == ONE for _, sent in door.sent(Contribute))
    door.hear(FIRST, Closed(closed(START, FIRST, FIRST, None)))
    assert door.of(GiveBack) == [GiveBack(0, b"8 bytes!", ONE)]


def test_an_entry_that_came_is_fetched_for_at_once() -> None:
    door = Door(LAST, P, ANY)
    entry = closed(START, FIRST, SECOND, ONE)
    door.hear(FIRST, Closed(entry))
    assert door.of(Apply)[0].entry == entry
    asked = {peer for to, _ in door.sent(BlobRequest) for peer in to}
    assert {FIRST, SECOND} <= asked


def lacking(door: Door, snapshots: tuple[SnapshotAt, ...] = ()) -> Entry:
    """The head's entry is here, and what it lists is not."""
    entry = closed(START, FIRST, SECOND, ONE)
    door.hear(FIRST, Closed(entry))
    door.on(Behind(0, 1, None, snapshots, (ONE,)))
    return entry


def test_the_state_goes_on_once_it_is_here() -> None:
    door = Door(LAST, P, ANY)
    lacking(door)
    give(door, FIRST)
    assert door.of(Proceed) == [Proceed()]
    door.on(Tick())
    assert not door.of(Proceed), "once"


def wait(door: Door, ms: int) -> None:
    end = door.now + ms
    while door.now < end:
        wake = door.peer.wake_ms
        door.now = min(end, max(door.now + 1, end if wake is None else int(wake)))
        door.on(Tick())
        if door.of(Rebuild) or door.of(Hold):
            return


def test_what_nobody_sends_is_left_behind_with_its_entry() -> None:
    """P4: its author and its closer are gone for good. The rest go on from before that round."""
    door = Door(LAST, P, ANY)
    entry = lacking(door)
    assert door.mark.round == 1
    wait(door, ANY.deadline_ceiling_ms + 1)
    (rebuild,) = door.of(Rebuild)
    assert (rebuild.round, rebuild.parent, rebuild.switched) == (0, START.hash, True)
    assert [task.round for task in door.of(StartWork)] == [0]
    door.hear(THIRD, Closed(entry))
    assert door.mark.round == 0, "it is not followed again"
    for _ in range(3):
        door.hear(THIRD, Closed(entry))
    assert len(door.peer._attachments._waits) == 1, "P6: whoever repeats it takes no memory"
    give(door, THIRD)
    door.hear(THIRD, Closed(entry))
    assert door.mark.hash == entry.hash, "until what it lists is here"


def test_what_was_left_is_asked_for_again_where_the_chain_moved() -> None:
    """P5: what was waited for before may have been given up. P6: so much is remembered of it."""
    door = Door(LAST, P, ANY)
    retreat, waits = door.peer._retreat, door.peer._attachments._waits
    entry = closed(START, FIRST, SECOND, ONE)
    for _ in range(2):
        assert not retreat.reconsider(THIRD, entry, ())
    assert len(waits) == 1
    door.hear(SECOND, Closed(closed(START, SECOND, SECOND, None)))
    for _ in range(2):
        assert not retreat.reconsider(THIRD, entry, ())
    assert len(door.peer._attachments._waits) == 2
    for size in range(1, 70):
        other = closed(START, FIRST, SECOND, Attachment(ONE.root, size))
        retreat.reconsider(THIRD, other, ())
    assert len(retreat._asked) == 64


def test_our_own_seal_binds_us() -> None:
    """Another for the same round would be equivocation."""
    door = Door(LAST, P, ANY)
    entry = closed(START, LAST, SECOND, ONE)
    door.hear(FIRST, Closed(entry))
    door.on(Behind(0, 1, None, (), (ONE,)))
    wait(door, 3 * ANY.deadline_ceiling_ms)
    assert door.mark.hash == entry.hash


def test_who_votes_waits() -> None:
    """P5: most hold what an entry lists that counts."""
    door = Door(LAST, P, MAJORITY)
    door.hear(FIRST, Entries((closed(START, FIRST, SECOND, ONE),), door.peer.ledger.summary()))
    door.on(Behind(0, 1, None, (), (ONE,)))
    wait(door, 3 * ANY.deadline_ceiling_ms)
    assert door.mark.round == 1


def test_trying_again_does_not_start_the_wait_anew() -> None:
    """P4: the state tries with each entry that comes meanwhile."""
    door = Door(LAST, P, ANY)
    snapshots = (SnapshotAt(5, Hash(b"s" * 32)),)
    lacking(door, snapshots)
    door.now += ANY.deadline_ceiling_ms - 1_000
    door.on(Behind(0, 1, None, snapshots))
    door.on(Behind(0, 1, None, snapshots, (ONE,)))
    assert not door.of(Hold)
    wait(door, 1_001)
    assert door.of(Hold)


def test_a_snapshot_leads_past_what_nobody_sends() -> None:
    door = Door(LAST, P, ANY)
    lacking(door, (SnapshotAt(5, Hash(b"s" * 32)),))
    wait(door, ANY.deadline_ceiling_ms + 1)
    assert door.of(Hold)
    assert not door.of(Rebuild)
    assert door.mark.round == 1


def test_who_is_up_and_came_past_it_will_help() -> None:
    """It holds what we lack, or a snapshot: no reason to leave its chain."""
    door = Door(LAST, P, ANY)
    lacking(door)
    for _ in range(3):
        after = closed(door.mark, FIRST, THIRD, None)
        door.hear(FIRST, Closed(after))
    door.on(Behind(0, 4, None, (), (ONE,)))
    for _ in range(40):
        door.now += 1_000
        for peer in (FIRST, SECOND, THIRD):
            door.peer.membership.heard(peer, Millis(door.now))
        door.on(Tick())
        assert not door.of(Rebuild)
    assert door.mark.round == 4


def test_a_state_that_came_past_needs_nothing_older() -> None:
    door = Door(LAST, P, ANY)
    lacking(door)
    mark = door.mark
    for _ in range(2):
        door.hear(FIRST, Closed(closed(door.mark, FIRST, THIRD, None)))
    door.on(Applied(door.mark.round, door.mark.hash, 7))
    assert DropBlob(ONE.root) in door.of(DropBlob)
    assert mark.round == 1


def test_those_who_asked_hear_of_what_has_come() -> None:
    """P8: so that not all take it from the few who had it first."""
    door = Door(FIRST, P, ANY)
    door.hear(THIRD, bring(START, THIRD, ONE))
    door.hear(LAST, BlobRequest(ONE.root))
    assert door.of(OfferBlob) == [OfferBlob(LAST, ONE.root)]
    door.hear(THIRD, BlobOffer(ONE.root, SIZE, (page_id(NAMES),), None))
    door.hear(THIRD, Piece(ONE.root, Level.PAGE, 0, NAMES))
    door.on(BlobOpened(ONE.root, b"\x00"))
    door.hear(THIRD, Piece(ONE.root, Level.CHUNK, 0, CHUNKS[0]))
    door.hear(THIRD, Piece(ONE.root, Level.CHUNK, 1, CHUNKS[1]))
    assert door.of(OfferBlob) == [OfferBlob(LAST, ONE.root)]


def test_the_same_bytes_in_a_later_round_stay_for_that_one() -> None:
    """P8 must not collect what another round still needs."""
    attachments = Door(FIRST, P, ANY).peer._attachments
    done: list[int] = []
    attachments.hold(ONE.root, 3)
    attachments.want((ONE,), 9, (), lambda: done.append(9))
    assert attachments._core.out[-1] == KeepBlob(ONE.root, 9)
    assert not done, "it may have been collected with round 3"
    attachments.kept(BlobKept(ONE.root, is_here=True))
    assert done == [9]


def test_what_was_collected_is_fetched_again() -> None:
    """P2: nobody lists what is no longer here."""
    door = Door(FIRST, P, ANY)
    door.peer._attachments.hold(ONE.root)
    door.hear(THIRD, bring(START, THIRD, ONE))
    assert held(door) == {THIRD}, "as the disk said, this round's is here"
    later = Door(FIRST, P, ANY)
    later.peer._attachments._held[ONE.root] = -1
    later.hear(THIRD, bring(START, THIRD, ONE))
    assert later.of(KeepBlob)
    later.on(BlobKept(ONE.root, is_here=False))
    assert later.sent(BlobRequest)
    give(later, THIRD)
    assert held(later) == {THIRD}


def test_what_a_heavier_chain_lists_may_be_lost_too() -> None:
    """P4, P5: we switched to it, and its holders are gone."""
    door = Door(LAST, P, ANY)
    door.hear(FIRST, Closed(closed(START, FIRST, FIRST, None)))
    begun = closed(START, SECOND, SECOND, None)
    after = judge(ANY).follow(START, begun)
    newest = closed(after, THIRD, SECOND, ONE)
    door.hear(THIRD, Entries((begun, newest), door.peer.ledger.summary()))
    assert door.mark.hash == newest.hash
    door.on(Behind(1, 2, None, (), (ONE,)))
    wait(door, ANY.deadline_ceiling_ms + 1)
    (rebuild,) = door.of(Rebuild)
    assert (rebuild.round, rebuild.parent) == (1, begun.hash)
