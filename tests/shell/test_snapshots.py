"""Snapshots on a real disk: the same bytes everywhere, taken beside the work, checked, bounded."""

import random
import struct
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from node import snapshots as module
from node.attachments import Attachments
from node.donor import Cap, Donor
from node.guard import StateGuard
from node.keeper import StateKeeper
from node.snapshots import Record, SnapshotReader, Snapshots
from node.store import Store, StoreFull
from node.stream import StateStream
from protocol.blobs import chunk_count, chunk_id, pages_of
from protocol.codec import CHUNK_BYTES
from protocol.effects import BlobKind, Note, OpenBlob, ServeMend, ServePieces
from protocol.events import BlobOpened, ChecksTaken, Event
from protocol.ids import Hash, PeerId
from protocol.ledger import Write
from protocol.messages import BlobOffer, Level, Mend, Message, Piece, PieceRefused

ME, OTHER = PeerId(bytes(32)), PeerId(b"o" * 32)


def tensors(seed: int = 0) -> dict[str, Tensor]:
    """Two and a half chunks of several kinds."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(300, 500, generator=generator)
    return {
        "weight": weight,
        "turned": torch.randn(7, 5, generator=generator).T,
        "half": torch.randn(33, generator=generator).to(torch.bfloat16),
        "step": torch.tensor(3, dtype=torch.int64),
        "none": torch.empty(0),
    }


class Replica:
    """As much of one as a keeper needs."""

    def __init__(self, state: dict[str, Tensor], round: int = 50) -> None:
        self.guard, self.state = StateGuard(), state
        self.round, self.hash = round, Hash(bytes([round]) * 32)

    @property
    def place(self) -> tuple[int, Hash]:
        return self.round, self.hash

    def stream(self) -> StateStream:
        return StateStream(self.state, {"round": str(self.round), "entry": self.hash.hex()})

    def merge(self) -> None:
        with self.guard.writing():
            self.state["weight"].add_(1)
            self.round += 1
            self.hash = Hash(bytes([self.round]) * 32)


class Shelf:
    """A home's snapshots, a keeper, and what they said."""

    def __init__(self, home: Path, replica: Replica | None = None) -> None:
        self.home = home
        self.store = Store.open(home)
        self.snapshots = Snapshots(home, self.store, every=50)
        self.replica = replica or Replica(tensors())
        self.posted: list[Event] = []
        self.sent: list[tuple[PeerId, Message]] = []
        self.notes: list[Note] = []

    def keeper(self) -> StateKeeper:
        return StateKeeper(
            self.replica,  # type: ignore[arg-type]
            self.snapshots,
            self.posted.append,
            lambda to, message: self.sent.append((to, message)),
            self.notes.append,
            _fail,
        )

    def take(self) -> Record:
        keeper = self.keeper()
        assert keeper.take_snapshot()
        keeper.start()
        keeper.close(30.0)
        found = self.snapshots.find(*self.replica.place)
        assert found is not None
        return found

    def path(self, record: Record) -> Path:
        return self.home / "snapshots" / f"{record.root.hex()}.safetensors"

    def reopened(self) -> Snapshots:
        return Snapshots(self.home, self.store, every=50)


def _fail(error: BaseException) -> None:
    raise error


@pytest.fixture
def shelf(tmp_path: Path) -> Any:  # noqa: ANN401 - a generator of one
    shelf = Shelf(tmp_path / "home")
    yield shelf
    shelf.store.close()


def same(found: Mapping[str, Tensor] | None, expected: Mapping[str, Tensor]) -> bool:
    assert found is not None
    assert found.keys() == expected.keys()
    return all(
        found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
        for name, tensor in expected.items()
    )


def test_a_state_is_one_string_of_bytes_however_it_is_held() -> None:
    """P1: neither the order of a dictionary nor the layout in memory shows."""
    state = tensors()
    mixed = dict(random.Random(1).sample(list(state.items()), len(state)))
    mixed["turned"] = mixed["turned"].contiguous()
    one, other = StateStream(state, {"a": "1", "b": "2"}), StateStream(mixed, {"b": "2", "a": "1"})
    assert one.read(0, one.size) == other.read(0, other.size)
    assert b"".join(one.chunk(n) for n in range(one.chunks)) == one.read(0, one.size)


def test_the_bytes_are_laid_out_as_published() -> None:
    """protocol/README.md, section 18: another implementation must come to the same root."""
    state = {
        "b": torch.tensor([[1.0, 2.0], [3.0, 4.0]]).T,
        "a": torch.tensor([-1], dtype=torch.int8),
        "é": torch.tensor([1.0]),
        "last": torch.tensor([7], dtype=torch.int64),
    }
    stream = StateStream(state, {"run": "ff", "round": "50", "format": "1", "entry": "00"})
    header = (
        b'{"__metadata__":{"entry":"00","format":"1","round":"50","run":"ff"},'
        b'"last":{"dtype":"I64","shape":[1],"data_offsets":[0,8]},'
        b'"b":{"dtype":"F32","shape":[2,2],"data_offsets":[8,24]},'
        b'"\\u00e9":{"dtype":"F32","shape":[1],"data_offsets":[24,28]},'
        b'"a":{"dtype":"I8","shape":[1],"data_offsets":[28,29]}}'
    )
    header = header.ljust(320 - 8)
    data = struct.pack("<q5fb", 7, 1, 3, 2, 4, 1, -1)
    expected = len(header).to_bytes(8, "little") + header + data
    assert stream.read(0, stream.size) == expected


def test_what_is_taken_is_loaded_and_is_a_safetensors_file(shelf: Shelf) -> None:
    record = shelf.take()
    assert same(shelf.snapshots.load(record), tensors())
    assert same(load_file(shelf.path(record)), tensors())
    again = shelf.reopened()
    assert again.rounds() == [50]
    assert same(again.load(record), tensors())
    assert same(SnapshotReader(shelf.home, shelf.store).load(record), tensors())


def test_a_merge_does_not_wait_and_the_snapshot_is_of_before(shelf: Shelf) -> None:
    """Copy on write: the state moves on while the file is written."""
    place, keeper = shelf.replica.place, shelf.keeper()
    assert keeper.take_snapshot()
    assert keeper._taking is not None
    keeper._next_chunk(keeper._taking, 0)
    keeper._taking.done = 0  # the file starts over; what matters is that reading had begun
    shelf.replica.merge()
    shelf.replica.merge()
    keeper.start()
    keeper.close(30.0)
    record = shelf.snapshots.find(*place)
    assert record is not None
    assert same(shelf.snapshots.load(record), tensors())
    assert not same(shelf.replica.state, tensors())


def test_a_merge_in_the_middle_of_writing(shelf: Shelf) -> None:
    keeper = shelf.keeper()
    before = shelf.replica.stream()
    expected = [before.chunk(number) for number in range(before.chunks)]
    assert keeper.take_snapshot()
    taking = keeper._taking
    assert taking is not None
    first = keeper._next_chunk(taking, 0)
    shelf.replica.merge()
    rest = [keeper._next_chunk(taking, number) for number in range(1, taking.stream.chunks)]
    assert [first, *rest] == expected


@pytest.mark.parametrize("error", [OSError(28, "No space left"), StoreFull("no room left")])
def test_a_snapshot_that_cannot_be_written_is_told(
    shelf: Shelf, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P7; and the next one is tried all the same."""

    def add(*_: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(shelf.snapshots, "add", add)
        keeper = shelf.keeper()
        assert keeper.take_snapshot()
        keeper.start()
        keeper.close(30.0)
    (note,) = shelf.notes
    assert (note.level, note.event) == ("warning", "snapshot-failed")
    assert note.fields == {"round": shelf.replica.round, "error": str(error)}
    assert not any((shelf.home / "snapshots").iterdir())
    assert shelf.take().round == shelf.replica.round


def test_two_newest_of_all_and_what_is_being_fetched_stay(shelf: Shelf) -> None:
    """P8: disk use is bounded."""
    records = {}
    for round in (50, 100, 123, 150):
        shelf.replica.round, shelf.replica.hash = round, Hash(bytes([round]) * 32)
        records[round] = shelf.take()
        if round == 50:
            assert shelf.snapshots.files.read(records[50].root, Level.CHUNK, 0)
    assert shelf.snapshots.rounds() == [50, 100, 150], "50 is being fetched"
    shelf.snapshots._leases.clear()
    shelf.replica.round, shelf.replica.hash = 200, Hash(bytes([200]) * 32)
    shelf.take()
    assert shelf.snapshots.rounds() == [150, 200]
    assert len(list((shelf.home / "snapshots").iterdir())) == 2


def test_what_the_ledger_named_lately_stays(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """P4: a newcomer asks for what its ledger names, and where rounds are short a newer one is
    named before its question is here. What is to be replayed from there stays, too.
    """
    now = 1_000.0
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
    for round in range(50, 650, 50):
        now += 1.0
        shelf.replica.round, shelf.replica.hash = round, Hash(bytes([round // 50]) * 32)
        first = shelf.snapshots.establish(shelf.take().root)
        assert first == max(50, round - 10 * 50)
    assert shelf.snapshots.rounds() == list(range(100, 650, 50))
    assert len(list((shelf.home / "snapshots").iterdir())) < module.bytes_max(1)
    shelf.snapshots.drop(first_root := shelf.snapshots.newest()[1].root)
    assert first_root not in shelf.snapshots._replaced
    monkeypatch.setattr(module, "_RECENT_BYTES", 1)
    shelf.replica.round, shelf.replica.hash = 650, Hash(bytes([13]) * 32)
    assert shelf.snapshots.establish(shelf.take().root) == 650, "large ones do not"
    assert shelf.snapshots.rounds() == [600, 650]


def test_the_most_that_are_on_disk_at_once(shelf: Shelf) -> None:
    """What `peer check` asks room for: the worst case, and the one that is being written then."""
    oldest: Record | None = None
    for round in (50, 100, 150, 200, 220):
        shelf.replica.round, shelf.replica.hash = round, Hash(bytes([round]) * 32)
        record = shelf.take()
        oldest = oldest or record
        if round == 100:
            shelf.snapshots.establish(record.root)
        assert shelf.snapshots.files.read(oldest.root, Level.CHUNK, 0), "somebody is fetching it"
    assert shelf.snapshots.rounds() == [50, 100, 150, 200, 220]
    assert len(list((shelf.home / "snapshots").iterdir())) + 1 == module.ON_DISK_MAX


def damage(path: Path, how: str) -> None:
    raw = bytearray(path.read_bytes())
    if how == "torn":
        raw = raw[: CHUNK_BYTES + 1000]
    elif how == "flipped":
        raw[CHUNK_BYTES + 5] ^= 1
    elif how == "empty":
        raw.clear()
    path.write_bytes(raw)


@pytest.mark.parametrize("how", ["torn", "flipped", "empty"])
def test_a_damaged_file_is_noticed_and_its_sound_chunks_are_kept(shelf: Shelf, how: str) -> None:
    record = shelf.take()
    chunks = [shelf.replica.stream().chunk(n) for n in range(chunk_count(record.blob.size))]
    damage(shelf.path(record), how)
    assert shelf.snapshots.files.read(record.root, Level.CHUNK, 1) is None
    assert shelf.snapshots.load(record) is None
    assert shelf.snapshots.rounds() == []
    assert shelf.snapshots.files.damaged > 0
    have = shelf.snapshots.files.open(record.blob)
    missing = [n for n in range(have.count) if n not in have]
    assert 1 in missing
    assert (0 in missing) == (how == "empty")
    assert (2 in missing) == (how != "flipped")
    for number in missing:
        shelf.snapshots.files.put(record.root, number, chunks[number])
    again = shelf.snapshots.finish(record.root, 50, record.entry)
    assert again is not None
    assert same(shelf.snapshots.load(again), tensors())


def test_a_snapshot_of_another_chain_is_not_taken_for_ours(shelf: Shelf) -> None:
    """Its bytes are sound and its place is not: the file says which chain it is of."""
    record = shelf.take()
    shelf.snapshots.drop(record.root)
    shelf.snapshots.files.open(record.blob)
    other = shelf.snapshots.finish(record.root, 50, b"another entry".ljust(32))
    assert other is not None
    assert shelf.snapshots.load(other) is None


def test_a_torn_record_is_as_good_as_none(shelf: Shelf) -> None:
    record = shelf.take()
    for raw in (b"", b"\xc1", b"\x94\x01\xc4\x00\x02\xc4\x00", b"\x01"):
        shelf.store.commit([Write("snapshots", record.root, raw)])
        assert shelf.reopened().rounds() == []


def test_leftovers_of_a_killed_process_go(shelf: Shelf) -> None:
    folder = shelf.home / "snapshots"
    (folder / "taking-7.part").write_bytes(b"half")
    (folder / f"{'ab' * 32}.safetensors").write_bytes(b"nobody knows it")
    fetched = folder / f"{'cd' * 32}.part"
    fetched.write_bytes(b"to go on with")
    shelf.reopened()
    assert list(folder.iterdir()) == [fetched]


def test_a_fetch_goes_on_after_a_kill(shelf: Shelf, tmp_path: Path) -> None:
    """P3: what came and was written down does not come again."""
    record = shelf.take()
    other = Shelf(tmp_path / "other")
    have = other.snapshots.files.open(record.blob)
    assert have.total() == 0
    for number in (0, 2):
        data = shelf.snapshots.files.read(record.root, Level.CHUNK, number)
        assert data is not None
        other.snapshots.files.put(record.root, number, data)
    again = other.reopened()
    assert set(again.files.open(record.blob)) == {0, 2}
    offer = again.files.offer(record.root)
    assert offer is not None
    assert offer.have == b"\x05", "others may have of us what is here"
    assert again.files.read(record.root, Level.CHUNK, 0) is not None
    assert again.files.read(record.root, Level.CHUNK, 1) is None
    other.store.close()


def test_pieces_are_served_refused_and_capped(shelf: Shelf) -> None:
    record = shelf.take()
    sent: list[Message] = []
    posted: list[Event] = []
    attachments = Attachments(shelf.home, shelf.store)
    send = lambda to, message: sent.append(message)  # noqa: E731
    donor = Donor(attachments, shelf.snapshots, send, posted.append, _fail)
    donor.offer(OTHER, record.root)
    donor.offer(OTHER, Hash(bytes(32)))
    donor.serve(ServePieces(OTHER, record.root, Level.PAGE, (0, 1)))
    donor.serve(ServePieces(OTHER, record.root, Level.CHUNK, (2, 0, 99)))
    donor.serve(ServePieces(OTHER, Hash(bytes(32)), Level.CHUNK, (5,)))
    donor.open(OpenBlob(Hash(b"n" * 32), CHUNK_BYTES, bytes(32), BlobKind.SNAPSHOT))
    donor._jobs.put(None)
    donor._take_jobs()
    while any(donor._askers.values()):
        donor._serve_one()
    (offer,) = [message for message in sent if isinstance(message, BlobOffer)]
    assert (offer.size, offer.have) == (record.blob.size, None)
    pieces = [message for message in sent if isinstance(message, Piece)]
    assert [(piece.level, piece.number) for piece in pieces] == [
        (Level.PAGE, 0),
        (Level.CHUNK, 2),
        (Level.CHUNK, 0),
    ]
    assert pieces[0].data == pages_of(record.blob.chunk_ids)[0]
    assert chunk_id(pieces[1].data) == record.blob.name(2)
    refused = [message.numbers for message in sent if isinstance(message, PieceRefused)]
    assert refused == [(1,), (99,), (5,)]
    assert posted == [BlobOpened(Hash(b"n" * 32), b"\x00")]


def test_one_asker_cannot_queue_without_end(shelf: Shelf) -> None:
    """P6."""
    record = shelf.take()
    sent: list[Message] = []
    send = lambda to, message: sent.append(message)  # noqa: E731
    donor = Donor(Attachments(shelf.home, shelf.store), shelf.snapshots, send, _ignore, _fail)
    for _ in range(3):
        donor.serve(ServePieces(OTHER, record.root, Level.CHUNK, tuple(range(60))))
    donor._jobs.put(None)
    donor._take_jobs()
    assert len(donor._askers[BlobKind.SNAPSHOT][OTHER].waiting) == 64
    waits = [message.wait_ms for message in sent if isinstance(message, PieceRefused)]
    assert len(waits) == 2
    assert min(waits) > 0


def _ignore(event: Event) -> None:
    pass


def test_a_cap_is_kept_on_average() -> None:
    now = [100.0]
    cap = Cap(1_000_000.0, lambda: now[0])
    start = now[0]
    for _ in range(50):
        now[0] += cap.wait_s(250_000)
    assert 50 * 250_000 / (now[0] - start) == pytest.approx(1_000_000.0, rel=0.03)
    assert Cap(0.0).wait_s(1 << 30) == 0.0


def test_damage_is_answered_with_what_differs(tmp_path: Path) -> None:
    """A sound peer and a sick one at the same place."""
    sound, sick = Shelf(tmp_path / "sound"), Shelf(tmp_path / "sick")
    sick.replica.state["weight"].view(-1).view(torch.uint8)[280_000] ^= 1
    checks = sick.keeper()._read_checks(sick.replica.place)
    assert checks is not None
    keeper = sound.keeper()
    keeper.serve_mend(ServeMend(OTHER, *sound.replica.place, checks))
    keeper.serve_mend(ServeMend(OTHER, 49, Hash(bytes(32)), checks))
    keeper.serve_mend(ServeMend(OTHER, *sound.replica.place, checks[:8]))
    keeper.start()
    keeper.close(30.0)
    ((to, mend),) = sound.sent
    assert to == OTHER
    assert isinstance(mend, Mend)
    assert (mend.differing, [number for number, _ in mend.chunks]) == (1, [1])
    stream = sick.replica.stream()
    assert stream.write(*mend.chunks[0]) == (["weight"], 1)
    assert same(sick.replica.state, tensors())
    for bad in ((99, b"x"), (0, b"short")):
        with pytest.raises(ValueError, match="no chunk"):
            stream.write(*bad)
    sound.store.close()
    sick.store.close()


def test_checks_are_of_one_place_or_none(shelf: Shelf) -> None:
    from protocol.effects import TakeChecks

    keeper = shelf.keeper()
    keeper.take_checks(TakeChecks(*shelf.replica.place))
    keeper.take_checks(TakeChecks(49, Hash(bytes(32))))
    keeper.start()
    keeper.close(30.0)
    (taken,) = shelf.posted
    assert isinstance(taken, ChecksTaken)
    assert len(taken.checks) == 8 * shelf.replica.stream().chunks
