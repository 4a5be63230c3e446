"""Far behind: entry by entry, or from a snapshot? By measured rates, said aloud (P7)."""

from typing import Any

import pytest

from protocol.blobs import Bits, page_id, root_of
from protocol.codec import CHUNK_BYTES
from protocol.effects import (
    DropBlob,
    Effect,
    Hold,
    Note,
    OpenBlob,
    Rebuild,
    Restore,
    StorePiece,
)
from protocol.entries import Body, Entry, Line
from protocol.events import Applied, Behind, BlobOpened, Event, Tick
from protocol.ids import Hash, Millis, PeerId
from protocol.ledger import Ledger, Mark
from protocol.messages import (
    BlobOffer,
    BlobRequest,
    Head,
    Level,
    Piece,
    PieceRefused,
    PieceRequest,
    Ping,
)
from protocol.recovery import Pace, choose
from protocol.rules import Rules
from protocol.snapshots import SnapshotAt, established, is_taken, named_in, naming_rounds
from tests.machine.making import RULES, Door, genesis, ids, judge

ME, ONE, TWO, THREE = ids(4)
COUNT = 12
CHUNKS = [bytes([number]) * CHUNK_BYTES for number in range(COUNT)]


class Newcomer(Door):
    """Behind by 1,000 rounds, at so many milliseconds each."""

    def __init__(self) -> None:
        super().__init__(ME, [ONE, TWO, THREE])
        from protocol.blobs import chunk_id

        self.names = b"".join(map(chunk_id, CHUNKS))
        self.root = root_of(COUNT * CHUNK_BYTES, self.names)
        self.snapshot = SnapshotAt(950, self.root)
        self.asked: list[tuple[PeerId, Level, int]] = []
        self.notes: list[Note] = []

    def on(self, event: Event) -> list[Effect]:
        self.effects = self.peer.handle(event, Millis(self.now))
        self._look()
        return self.effects

    def _look(self) -> None:
        self.notes += self.of(Note)
        for to, asked in self.sent(PieceRequest):
            self.asked += [(PeerId(to[0]), asked.level, number) for number in asked.numbers]

    def behind(self, ms: float | None, round: int = 0) -> list[Effect]:
        return self.on(Behind(round, 1_000, ms, (self.snapshot,)))

    def told(self, event: str) -> list[dict[str, Any]]:
        return [note.fields for note in self.notes if note.event == event]

    def offer(self, holder: PeerId) -> None:
        pages = (page_id(self.names),)
        self.hear(holder, BlobOffer(self.root, COUNT * CHUNK_BYTES, pages, None))
        self._look()

    def answer(self, most: int, each_ms: int) -> list[Effect]:
        """Members send the next pieces, so fast; all that was wanted because of it."""
        wanted: list[Effect] = []
        for _ in range(most):
            if not self.asked:
                break
            holder, level, number = self.asked.pop(0)
            self.now += each_ms
            data = self.names if level is Level.PAGE else CHUNKS[number]
            wanted += self.hear(holder, Piece(self.root, level, number, data))
            self._look()
            if self.of(OpenBlob):
                wanted += self.on(BlobOpened(self.root, bytes(2)))
        return wanted

    def start_fetch(self) -> None:
        self.behind(100.0)
        assert self.sent(BlobRequest)
        self.offer(ONE)
        self.offer(TWO)


def test_a_short_way_is_replayed_without_a_word() -> None:
    newcomer = Newcomer()
    newcomer.behind(2.0)
    assert not newcomer.sent(BlobRequest)
    newcomer.on(Behind(930, 960, None, (newcomer.snapshot,)))
    assert not newcomer.sent(BlobRequest), "a few rounds are looked at first"
    newcomer.behind(None)
    assert not newcomer.sent(BlobRequest), "how long a round takes is known from before"


def test_many_rounds_are_not_waited_for_until_one_was_measured() -> None:
    """The model may still be loading, and one round alone may take a while."""
    newcomer = Newcomer()
    newcomer.behind(None)
    assert newcomer.sent(BlobRequest)
    newcomer.offer(ONE)
    wanted = newcomer.answer(50, each_ms=10)
    assert Restore(newcomer.snapshot) in wanted
    assert not newcomer.told("catching-up"), "nothing is said of a pace that nobody measured (P7)"


def test_while_more_of_the_chain_is_known_of_no_snapshot_is_chosen() -> None:
    """It would be an old one: members keep the newest only."""
    newcomer = Newcomer()
    newcomer.hear(ONE, Ping(1, Head(2_000, 2_000, bytes(8)), ()))
    newcomer.behind(None)
    assert not newcomer.sent(BlobRequest)
    newcomer.behind(100.0)
    assert not newcomer.sent(BlobRequest)


def test_a_replay_that_turns_out_to_be_short_bothers_nobody() -> None:
    newcomer = Newcomer()
    newcomer.behind(None)
    newcomer.offer(ONE)
    newcomer.behind(2.0)
    assert newcomer.of(DropBlob) == [DropBlob(newcomer.root)]


def test_who_is_at_the_head_fetches_no_further() -> None:
    newcomer = Newcomer()
    newcomer.start_fetch()
    newcomer.now += 250
    newcomer.on(Applied(1_000, Hash(bytes(32)), 7))
    assert newcomer.of(DropBlob) == [DropBlob(newcomer.root)]
    newcomer.on(Applied(1_000, Hash(bytes(32)), 7))
    (said,) = newcomer.told("caught-up")  # once
    assert said["took_ms"] == 250


def test_nobody_asks_to_be_a_member_before_its_state_stands() -> None:
    """However young the run is: members would wait for it while its model loads."""
    newcomer = Newcomer()
    assert not newcomer.peer._is_ready()
    newcomer.on(Applied(0, Hash(bytes(32)), 7))
    assert newcomer.peer._is_ready()


def test_a_fast_line_beats_a_slow_replay() -> None:
    newcomer = Newcomer()
    newcomer.start_fetch()
    newcomer.answer(6, each_ms=10)
    newcomer.behind(100.0, round=5)
    assert newcomer.of(Hold)
    (said,) = newcomer.told("catching-up")
    assert said["way"] == "snapshot"
    assert "995 rounds at 100.0 ms takes 100 s" in str(said["why"])
    wanted = newcomer.answer(50, each_ms=10)
    assert [effect for effect in wanted if isinstance(effect, Restore)] == [
        Restore(newcomer.snapshot)
    ]
    stored = {effect.number for effect in wanted if isinstance(effect, StorePiece)}
    assert len(stored) >= COUNT - 6
    assert newcomer.told("snapshot-fetched")[0]["repeated"] == 0


def test_nearly_done_is_what_the_measured_rates_say() -> None:
    """So that it can ask to be a member while the last chunks come: at 5 ms a chunk, and 50 rounds
    after the snapshot at 100 ms each.
    """
    newcomer = Newcomer()
    newcomer.start_fetch()
    newcomer.answer(6, each_ms=5)
    newcomer.behind(100.0, round=5)
    recovery = newcomer.peer._recovery
    assert not recovery.is_nearly_done(1_000)
    newcomer.answer(50, each_ms=5)
    tail_ms = 0  # our own ledger is empty in this test, so no round follows
    assert recovery.is_nearly_done(tail_ms)
    newcomer.on(Applied(1_000, Hash(bytes(32)), 7))
    assert not recovery.is_nearly_done(1 << 40)


def test_a_snapshot_that_is_here_already_takes_no_time() -> None:
    """Replaying cannot go on, and all of it came before an earlier attempt was cut off."""
    newcomer = Newcomer()
    newcomer.start_fetch()
    assert newcomer.peer._recovery.instead(Behind(7, 1_000, None, (newcomer.snapshot,)))
    (holder, level, number), *_ = newcomer.asked
    newcomer.hear(holder, Piece(newcomer.root, level, number, newcomer.names))
    wanted = newcomer.on(BlobOpened(newcomer.root, Bits.full(COUNT).encode()))
    assert Restore(newcomer.snapshot) in wanted


def test_as_long_as_neither_way_is_clearly_faster_both_are_gone() -> None:
    """What the first second says of a line may be half of what it gives."""
    behind = Behind(0, 1_000, 100.0, ())
    at = SnapshotAt(950, Hash(bytes(32)))
    pace = pace_of(behind)
    fetches = [choose(behind, at, 1_000, rate, pace) for rate in (0.1, 0.01, 0.013, 0.006)]
    assert [one and one.by_snapshot for one in fetches] == [True, None, None, False]


def test_a_slow_line_loses_to_a_quick_replay() -> None:
    newcomer = Newcomer()
    newcomer.start_fetch()
    newcomer.answer(6, each_ms=60_000)
    newcomer.behind(5.0, round=10)
    assert not newcomer.of(Hold)
    assert newcomer.of(DropBlob) == [DropBlob(newcomer.root)]
    assert newcomer.told("catching-up")[0]["way"] == "replay"
    newcomer.behind(5.0, round=20)
    assert not newcomer.sent(BlobRequest), "it was refused once"


def test_a_snapshot_that_stops_coming_is_given_up() -> None:
    """P4: the members that had it are gone; the ledger is still there."""
    newcomer = Newcomer()
    newcomer.start_fetch()
    newcomer.answer(6, each_ms=10)
    newcomer.behind(100.0)
    assert newcomer.of(Hold)
    rebuilt: list[Rebuild] = []
    for _ in range(40):
        newcomer.now += 1_000
        newcomer.on(Tick())
        rebuilt += newcomer.of(Rebuild)
    assert [task.from_scratch for task in rebuilt] == [False]
    assert newcomer.told("catching-up")[-1]["way"] == "replay"


def test_progress_is_told_every_two_seconds() -> None:
    """P7: a rate is what came in how long, and unknown before anything did."""
    newcomer = Newcomer()
    newcomer.start_fetch()
    newcomer.answer(3, each_ms=700)
    (said, *_) = newcomer.told("fetching-snapshot")
    assert said["bytes"] == COUNT * CHUNK_BYTES
    assert said["bytes_per_s"] is None, "too little has come to say"
    newcomer.answer(4, each_ms=700)
    said = newcomer.told("fetching-snapshot")[-1]
    assert said["bytes_per_s"] == pytest.approx(CHUNK_BYTES / 0.7, rel=0.01)
    assert said["left_s"] is not None


def test_the_choice_names_both_ways() -> None:
    """P7: by what was measured; while replaying has not been, nothing is chosen."""
    behind = Behind(0, 1_000, 10.0, ())
    snapshot = SnapshotAt(900, Hash(bytes(32)))
    pace = pace_of(behind)
    fast = choose(behind, snapshot, 50_000_000, 12_500.0, pace)
    assert fast is not None
    assert fast.by_snapshot
    assert "fetching 50.0 MB at 12.50 MB/s and replaying 100 rounds takes 5 s" in fast.why
    slow = choose(behind, snapshot, 500_000_000, 12_500.0, pace)
    assert slow is not None
    assert not slow.by_snapshot
    unmeasured = Behind(0, 1_000, None, ())
    assert choose(unmeasured, snapshot, 1, 1.0, pace_of(unmeasured)) is None


def test_rounds_take_as_long_as_the_work_in_them() -> None:
    """A swarm that grew: 100 rounds of one unit, then 100 of ten."""
    founders = ids(1)
    start = genesis(founders)
    marks = [start]
    for round in range(1, 201):
        work = round if round <= 100 else 100 + 10 * (round - 100)
        marks.append(Mark(round, Hash(round.to_bytes(32, "big")), work, start.roster))
    pace = Pace(Ledger(judge(RULES), founders, marks))
    pace.heard(Behind(0, 200, None, ()))
    pace.heard(Behind(50, 200, 2.0, ()))
    assert pace.ms(50, 100) == pytest.approx(100.0)
    assert pace.ms(100, 200) == pytest.approx(2_000.0)
    assert pace.ms(150, 300) == pytest.approx(300.0), "nothing is known of rounds past the head"


def pace_of(behind: Behind) -> Pace:
    """With a ledger that tells nothing of those rounds."""
    pace = Pace(Ledger(judge(RULES), ids(1)))
    pace.heard(behind)
    return pace


@pytest.mark.parametrize("every", [1, 2, 3, 50])
def test_each_snapshot_is_named_once_and_found_again(every: int) -> None:
    rules = Rules(snapshot_every=every)
    taken = [round for round in range(200) if is_taken(round, rules)]
    named = {round: named_in(round, rules) for round in range(300)}
    roots = [snapshot for snapshot in named.values() if snapshot is not None]
    assert roots[: len(taken)] == taken
    assert all(round > taken for round, taken in named.items() if taken is not None)
    found = [round for round in range(200) if named[round] is not None]
    assert list(naming_rounds(200, rules)) == found[::-1]


def test_a_root_is_in_the_ledger_when_most_members_name_it() -> None:
    rules = Rules(snapshot_every=10)
    right, wrong = Hash(b"r" * 32), Hash(b"w" * 32)

    def after(*roots: Hash | None, round: int = 15, members: int = 3) -> SnapshotAt | None:
        lines = tuple(Line(n, b"8 bytes!", None, None, root) for n, root in enumerate(roots))
        body = Body(round, Hash(bytes(32)), 0, 0, 0, lines, (), ())
        return established(Entry(body, b"", b"", ()), rules, members)

    assert after(right, right, wrong) == SnapshotAt(10, right)
    assert after(right, right, None, None, members=4) is None
    assert after(right, wrong) is None
    assert after(None) is None
    assert after(right) is None, "the others are members too, and said nothing"
    assert after(right, members=1) == SnapshotAt(10, right)
    assert after(right, members=1, round=16) is None


def test_a_root_that_the_ledger_does_not_know_is_nobodys_business() -> None:
    """P6: offers and chunks that were not asked for change nothing and are not written down."""
    newcomer = Newcomer()
    offer = BlobOffer(newcomer.root, COUNT * CHUNK_BYTES, (page_id(newcomer.names),), None)
    assert not newcomer.hear(ONE, offer)
    assert not newcomer.hear(ONE, Piece(newcomer.root, Level.PAGE, 0, newcomer.names))
    assert not newcomer.hear(ONE, Piece(newcomer.root, Level.CHUNK, 0, CHUNKS[0]))
    assert not newcomer.hear(ONE, PieceRefused(newcomer.root, Level.CHUNK, (0,), 0))


def test_a_request_for_pieces_is_bounded() -> None:
    newcomer = Newcomer()
    for numbers in ((), (1, 1)):
        newcomer.hear(ONE, PieceRequest(newcomer.root, Level.CHUNK, numbers))
        assert newcomer.faults() == ["a request for no piece, or for one twice"]
