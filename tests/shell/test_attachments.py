"""Attachments on disk, and between real processes."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.attachments import AttachmentReader, Attachments, read_held
from node.chunks import Blob
from node.donor import Donor
from node.snapshots import Snapshots
from node.store import Store
from node.swarm import Swarm
from protocol.blobs import chunk_id, chunks_of, root_of
from protocol.codec import CHUNK_BYTES, encode, encode_attachments
from protocol.effects import BlobKind, KeepBlob, OpenBlob, ServePieces, StorePiece
from protocol.entries import Attachment
from protocol.events import BlobKept, Event
from protocol.gathering import sum_record
from protocol.ids import Hash, PeerId
from protocol.ledger import Write, round_key
from protocol.messages import Contribute, Level, Message, Piece
from protocol.parts import SumName, whole_of
from tests.shell.bulky_probes import BYTES
from tests.shell.runs import write_run
from tests.shell.swarms import WAIT_S, entries, grow, reach, words

BULKY = Path(__file__).with_name("bulky_probes.py")
DATA = bytes(range(256)) * (CHUNK_BYTES // 128) + b"end"  # two chunks and a little
OTHER, THIRD = PeerId(b"o" * 32), PeerId(b"t" * 32)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path) as store:
        yield store


def fetched(shelf: Attachments, data: bytes, round: int) -> Attachment:
    """As if it had come from others, chunk by chunk."""
    chunks = chunks_of(data)
    names = b"".join(map(chunk_id, chunks))
    blob = Blob(root_of(len(data), names), len(data), names)
    shelf.files.open(blob)
    assert not shelf.keep(blob.root, round), "nothing of it has come"
    for number, chunk in enumerate(chunks):
        shelf.files.put(blob.root, number, chunk)
    assert shelf.keep(blob.root, round)
    return Attachment(blob.root, blob.size)


def test_ours_and_others_are_read_again(tmp_path: Path, store: Store) -> None:
    shelf = Attachments(tmp_path, store)
    ours, theirs = shelf.add(3, DATA), fetched(shelf, DATA[1:], 4)
    again = Attachments(tmp_path, store)
    assert (again.read(ours), again.read(theirs)) == (DATA, DATA[1:])
    assert AttachmentReader(tmp_path, store).read(theirs) == DATA[1:]
    assert again.read(Attachment(Hash(bytes(32)), 1)) is None


@pytest.mark.parametrize("how", ["flipped", "torn", "gone"])
def test_a_damaged_one_is_not_there(tmp_path: Path, store: Store, how: str) -> None:
    """It is lacking then, and what is sound of it is kept for the fetch."""
    shelf = Attachments(tmp_path, store)
    one = shelf.add(3, DATA)
    path = shelf.files.path(one.root)
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(b"?" + DATA[1:] if how == "flipped" else DATA[:-1])
    assert shelf.read(one) is None
    assert not shelf.has(one)
    again = Attachments(tmp_path, store)
    assert not again.has(one)
    assert list(store.scan("attachments")) == []


def test_old_ones_go_and_what_may_be_given_back_stays(tmp_path: Path, store: Store) -> None:
    """P3, P8."""
    shelf = Attachments(tmp_path, store)
    old, ours, same, new = (shelf.add(n, DATA[n:]) for n in (1, 2, 3, 9))
    shelf.add(9, DATA[3:])  # the same bytes in a later round
    message = Contribute(2, bytes(8), 0, b"8 bytes!", None, None, None, ours, bytes(64))
    store.commit([Write("outbox", round_key(2), encode(message))])
    shelf.collect(before=5)
    assert [shelf.has(one) for one in (old, ours, same, new)] == [False, True, True, True]
    assert len(list((tmp_path / "attachments").iterdir())) == 3


def test_of_old_ones_of_our_own_the_newest_stay(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P8: as many as there is room for."""
    monkeypatch.setattr("node.attachments._SPARED_BYTES", 2 * len(DATA))
    shelf = Attachments(tmp_path, store)
    ours = [shelf.add(n, DATA[n:]) for n in range(4)]
    for round, one in enumerate(ours):
        message = Contribute(round, bytes(8), 0, b"8 bytes!", None, None, None, one, bytes(64))
        store.commit([Write("outbox", round_key(round), encode(message))])
    shelf.add(9, b"the newest is not in the outbox yet")
    shelf.collect(before=5)
    assert [shelf.has(one) for one in ours] == [False, False, True, True]


def test_parts_are_one_attachment_and_go_with_it(tmp_path: Path, store: Store) -> None:
    """P3, P8: a part's blob, the record of what a whole is made of, and that of a sum."""
    shelf = Attachments(tmp_path, store)
    pieces = [DATA[:10], DATA[10:30]]
    made = shelf.add_parts(2, pieces)
    whole = whole_of(made)
    store.commit([Write("parts", whole.root, encode_attachments(made))])
    name = SumName(Hash(bytes(32)), 1)
    sum = shelf.put(2, DATA[:50])
    store.commit([sum_record(2, name, sum)])
    assert shelf.read(whole) == DATA[:30]
    assert AttachmentReader(tmp_path, store).read(whole) == DATA[:30]
    assert shelf.sum(2, name) == AttachmentReader(tmp_path, store).sum(2, name) == sum
    assert shelf.sum(3, name) is None
    shelf.files.path(made[1].root).unlink()
    assert shelf.read(whole) is None
    shelf.add(9, b"the newest")
    shelf.collect(before=5)
    assert not list(store.scan("parts"))
    assert not list(store.scan("sums"))
    assert [path.name for path in (tmp_path / "attachments").iterdir()] != []
    assert not shelf.has(sum)


def test_what_is_about_to_be_given_back_is_still_known_in_parts(
    tmp_path: Path, store: Store
) -> None:
    """P3: it was made a moment ago, so no outbox holds it yet."""
    shelf = Attachments(tmp_path, store)
    shelf.add(1, DATA[5:])
    made = shelf.add_parts(2, [DATA[:9], DATA[9:]])
    whole = whole_of(made)
    store.commit([Write("parts", whole.root, encode_attachments(made))])
    shelf.collect(9)
    assert shelf.read(whole) == DATA
    shelf.add_parts(9, [DATA[1:9], DATA[9:]])
    store.commit([Write("sums", round_key(at) + bytes(34), bytes(40)) for at in (8, 9)])
    shelf.collect(9)
    assert not list(store.scan("parts"))
    assert [key[:8] for key, _ in store.scan("sums")] == [round_key(9)]


def test_parts_that_may_be_given_back_stay(tmp_path: Path, store: Store) -> None:
    """P3."""
    shelf = Attachments(tmp_path, store)
    made = shelf.add_parts(2, [DATA[:9], DATA[9:]])
    whole = whole_of(made)
    mine = Contribute(2, bytes(8), 0, b"mine", None, None, None, whole, bytes(64))
    store.commit(
        [
            Write("outbox", round_key(2), encode(mine)),
            Write("parts", whole.root, encode_attachments(made)),
        ]
    )
    shelf.add(3, DATA[5:])
    shelf.collect(9)
    assert shelf.read(whole) == DATA
    store.commit([Write("outbox", round_key(2), None)])
    shelf.collect(9)
    assert shelf.read(whole) is None


def test_what_lacks_a_part_is_not_there(tmp_path: Path, store: Store) -> None:
    """P3: as little as a damaged one."""
    shelf = Attachments(tmp_path, store)
    made = shelf.add_parts(2, [DATA[:9], DATA[9:]])
    whole = whole_of(made)
    store.commit([Write("parts", whole.root, encode_attachments(made))])
    shelf.files.remove(made[0].root)
    assert shelf.read(whole) is None
    assert shelf.read(made[1]) == DATA[9:]


def test_attachments_are_served_before_snapshots(tmp_path: Path, store: Store) -> None:
    """A round waits for them; a newcomer has time."""
    shelf, snapshots = Attachments(tmp_path, store), Snapshots(tmp_path, store, 50)
    one = shelf.add(3, DATA)
    path = snapshots.files.partial_path("taking-50")
    path.write_bytes(DATA[1:])
    names = b"".join(
        chunk_id(DATA[1:][at : at + CHUNK_BYTES]) for at in range(0, len(DATA), CHUNK_BYTES)
    )
    snapshot = snapshots.add(path, 50, bytes(32), len(DATA) - 1, names)
    sent: list[tuple[PeerId, Message]] = []
    posted: list[Event] = []
    donor = Donor(shelf, snapshots, lambda *what: sent.append(what), posted.append, _fail)
    donor.serve(ServePieces(OTHER, snapshot.root, Level.CHUNK, (0, 1)))
    donor.serve(ServePieces(THIRD, one.root, Level.CHUNK, (0, 1)))
    other = DATA[2 : 2 + 9]
    root = root_of(9, chunk_id(other))
    donor.open(OpenBlob(root, 9, chunk_id(other), BlobKind.ATTACHMENT))
    donor._jobs.put(None)
    donor._take_jobs()
    while any(donor._askers.values()):
        donor._serve_one()
    assert [to for to, message in sent if isinstance(message, Piece)] == [THIRD] * 2 + [OTHER] * 2
    donor.put(StorePiece(root, 0, other))
    donor._jobs.put(KeepBlob(root, 4))
    donor._jobs.put(None)
    donor._take_jobs()
    assert posted[-1] == BlobKept(root, is_here=True)
    assert shelf.read(Attachment(root, 9)) == other


def _fail(error: BaseException) -> None:
    raise error


def test_a_swarm_exchanges_attachments(tmp_path: Path) -> None:
    """P1, P3: three real processes; one is killed and comes back, one joins late and fetches what
    all rounds brought.
    """
    config = write_run(
        tmp_path, probes=60, patience_s=10.0, snapshot_every=200, attachment_bytes_max=BYTES
    )
    swarm = Swarm(tmp_path / "swarm", config, ["--threads", "1"], [str(BULKY)])
    try:
        grow(swarm, 3)
        last = max(swarm.rounds().values())
        reach(swarm, last + 4)
        swarm.kill(swarm.peers[1])
        reach(swarm, last + 7)
        swarm.restart(swarm.peers[1])
        swarm.join()
        reach(swarm, last + 12)

        def agree() -> bool:
            common = swarm.common_digests()
            return (
                common is not None and common[0] > last + 12 and len(set(common[1].values())) == 1
            )

        assert swarm.wait(agree, WAIT_S, every_s=0.1), words(swarm)
    finally:
        for peer in swarm.peers:
            if peer.up:
                peer.process.kill()
            peer.process.wait()
    chain = entries(swarm.peers[0])
    brought = [line.attached for entry in chain for line in entry.body.lines]
    assert all(one is not None and one.size == BYTES for one in brought)
    assert any(len(entry.body.lines) == 3 for entry in chain)
    for peer in swarm.peers:
        told = [json.loads(line) for line in (peer.home / "events.jsonl").read_text().splitlines()]
        assert not [one for one in told if one["event"] in ("attachment-unusable", "work-lost")]


def test_what_is_held_stays_when_the_peer_removes_its_own(tmp_path: Path) -> None:
    """Whoever merges models reads for longer than the peer keeps them."""
    folder = tmp_path / "merging"
    folder.mkdir()
    with Store.open(tmp_path) as store:
        shelf = Attachments(tmp_path, store)
        made = shelf.put(3, DATA)
        reader = AttachmentReader(tmp_path, store)
        held = reader.hold(made, folder)
        assert held is not None
        assert reader.hold(made, folder) == held, "asked for again"
        shelf.collect(before=4)
        assert reader.read(made) is None
        assert read_held(held, made) == DATA
        assert reader.hold(Attachment(chunk_id(b"other"), 5), folder) is None
    held.write_bytes(DATA[:-1] + b"?")
    assert read_held(held, made) is None
