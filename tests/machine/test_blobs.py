"""Blobs: named by content, fetched from many, each chunk checked, nothing twice (P6)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.blobs import (
    ASKED_MAX,
    Bits,
    Fetch,
    blob_root,
    chunk_count,
    chunk_id,
    page_id,
    pages_of,
    root_of,
)
from protocol.codec import CHUNK_BYTES
from protocol.dice import Dice
from protocol.errors import RemoteError
from protocol.ids import Hash, Millis, PeerId
from protocol.messages import BlobOffer, Level, Message, PieceRequest
from tests.machine.making import ids

ONE, TWO, THREE = ids(3)
LENGTH = 20 * CHUNK_BYTES + 100


def content(size: int) -> list[bytes]:
    chunks = [bytes([number % 251]) * CHUNK_BYTES for number in range(chunk_count(size))]
    chunks[-1] = chunks[-1][: size - (len(chunks) - 1) * CHUNK_BYTES]
    return chunks


class Swarm:
    """One fetch, and holders that answer when told to."""

    def __init__(self, size: int = LENGTH) -> None:
        self.size, self.chunks = size, content(size)
        self.names = b"".join(map(chunk_id, self.chunks))
        self.pages = tuple(map(page_id, pages_of(self.names)))
        self.root = root_of(size, self.names)
        self.asked: dict[PeerId, list[tuple[Level, int]]] = {}
        self.sent: list[tuple[PeerId, int]] = []  # chunks that holders sent
        self.now = Millis(0)
        self.fetch = Fetch(self.root, Dice(b"seed"), self.now, self._asked)

    def _asked(self, to: PeerId, message: Message) -> None:
        assert isinstance(message, PieceRequest)
        self.asked.setdefault(to, []).extend((message.level, n) for n in message.numbers)

    def offer(self, holder: PeerId, have: list[int] | None = None) -> None:
        bits = None
        if have is not None:
            bits = Bits(len(self.chunks))
            for number in have:
                bits.add(number)
        raw = None if bits is None else bits.encode()
        self.fetch.on_offer(holder, BlobOffer(self.root, self.size, self.pages, raw), self.now)

    def answer(self, holder: PeerId, most: int = 1 << 30) -> int:
        """`holder` sends up to `most` of what it was asked for."""
        asked, self.asked[holder] = self.asked.get(holder, []), []
        self.asked[holder] += asked[most:]
        for level, number in asked[:most]:
            data = self.chunks[number]
            if level is Level.PAGE:
                data = pages_of(self.names)[number]
            else:
                self.sent.append((holder, number))
            self.fetch.on_piece(holder, level, number, data, self.now)
            if self.fetch.chunk_ids is not None and not self.fetch.is_open:
                self.fetch.opened(Bits(len(self.chunks)), self.now)
        return len(asked[:most])

    def run(self, *holders: PeerId) -> None:
        while not self.fetch.is_whole:
            self.now = Millis(self.now + 10)
            assert any([self.answer(holder) for holder in holders]), "nobody was asked"


def test_a_blob_comes_from_many_and_no_chunk_twice() -> None:
    swarm = Swarm()
    for holder in (ONE, TWO, THREE):
        swarm.offer(holder)
    swarm.run(ONE, TWO, THREE)
    numbers = [number for _, number in swarm.sent]
    assert sorted(numbers) == list(range(21))
    assert {holder for holder, _ in swarm.sent} == {ONE, TWO, THREE}
    assert swarm.fetch.repeated == 0
    assert swarm.fetch.received_bytes == LENGTH


def test_a_page_that_is_still_awaited_is_not_taken_for_a_chunk() -> None:
    """P4: its first holder was silent, another was asked, and then the first one answered."""
    swarm = Swarm(100)  # one page and one chunk, both number 0
    swarm.offer(ONE)
    swarm.now = Millis(5_000)
    swarm.fetch.tick(swarm.now)
    swarm.offer(TWO)
    assert swarm.asked == {ONE: [(Level.PAGE, 0)], TWO: [(Level.PAGE, 0)]}
    swarm.answer(ONE)
    swarm.now = Millis(60_000)
    swarm.fetch.tick(swarm.now)
    swarm.answer(ONE)
    swarm.answer(TWO)
    swarm.answer(TWO)
    assert swarm.fetch.is_whole


def test_the_rarest_chunks_are_asked_for_first() -> None:
    swarm = Swarm()
    swarm.offer(ONE)
    swarm.answer(ONE)  # the page
    swarm.asked.clear()
    fresh = Swarm()
    common = list(range(19))
    fresh.offer(TWO, common)
    fresh.offer(THREE, common)
    fresh.answer(TWO)
    fresh.answer(THREE)
    fresh.asked.clear()
    fresh.offer(ONE)
    asked = [number for _, number in fresh.asked[ONE]]
    assert {19, 20} <= set(asked), "only it has those"


def test_a_holder_that_dies_is_replaced_and_nothing_comes_twice() -> None:
    """P4: what it was asked for goes to others; what it had sent does not come again."""
    swarm = Swarm()
    swarm.offer(ONE)
    swarm.offer(TWO)
    swarm.answer(ONE)
    swarm.answer(TWO)
    swarm.answer(ONE, 2)  # and then it is gone
    for _ in range(20):
        swarm.answer(TWO)
    assert not swarm.fetch.is_whole
    swarm.now = Millis(swarm.now + 10_000)
    swarm.fetch.tick(swarm.now)
    swarm.asked[ONE] = []
    swarm.run(TWO)
    numbers = [number for _, number in swarm.sent]
    assert sorted(numbers) == list(range(21))


def test_what_is_on_disk_already_is_not_asked_for() -> None:
    """P3: a fetch that was cut off goes on where it was."""
    swarm = Swarm()
    swarm.offer(ONE)
    have = Bits(21)
    for number in range(0, 21, 2):
        have.add(number)
    level, number = swarm.asked[ONE].pop()
    assert level is Level.PAGE
    swarm.fetch.on_piece(ONE, level, number, pages_of(swarm.names)[number], swarm.now)
    swarm.fetch.opened(have, swarm.now)
    swarm.run(ONE)
    assert sorted(number for _, number in swarm.sent) == list(range(1, 21, 2))


def test_a_chunk_that_is_not_what_it_says_ends_its_sender() -> None:
    """P6: named, never written down, and asked of somebody else."""
    swarm = Swarm()
    swarm.offer(ONE)
    swarm.answer(ONE)
    level, number = swarm.asked[ONE][0]
    with pytest.raises(RemoteError, match=f"chunk {number} is not what its name says"):
        swarm.fetch.on_piece(ONE, level, number, b"lies", swarm.now)
    swarm.offer(ONE)  # it is not believed again
    assert swarm.fetch.holders == 0
    swarm.offer(TWO)
    swarm.run(TWO)
    assert sorted(number for _, number in swarm.sent) == list(range(21))


def test_pages_and_offers_belong_to_their_root() -> None:
    swarm = Swarm()
    for size, pages in [(LENGTH + 1, swarm.pages), (LENGTH, (Hash(bytes(32)),)), (0, ())]:
        with pytest.raises(RemoteError, match="offer"):
            swarm.fetch.on_offer(ONE, BlobOffer(swarm.root, size, pages, None), swarm.now)
    swarm.offer(ONE)
    with pytest.raises(RemoteError, match="page 0 is not what its name says"):
        swarm.fetch.on_piece(ONE, Level.PAGE, 0, bytes(32), swarm.now)


def test_a_root_whose_pages_do_not_add_up() -> None:
    """Whoever made it is not who passes it on; it is named all the same."""
    names = bytes(32)
    pages = (page_id(names),)
    root = blob_root(LENGTH, pages)
    fetch = Fetch(root, Dice(b""), Millis(0), lambda to, message: None)
    fetch.on_offer(ONE, BlobOffer(root, LENGTH, pages, None), Millis(0))
    with pytest.raises(RemoteError, match="do not add up"):
        fetch.on_piece(ONE, Level.PAGE, 0, names, Millis(0))


def test_a_map_of_the_wrong_length_is_refused() -> None:
    swarm = Swarm()
    for have in (b"", bytes(2), bytes(4), b"\x00\x00\xff"):
        offer = BlobOffer(swarm.root, LENGTH, swarm.pages, have)
        with pytest.raises(RemoteError, match="map"):
            swarm.fetch.on_offer(ONE, offer, swarm.now)


def test_who_has_less_than_it_says_is_believed_less_and_less() -> None:
    """A donor that lies about what it has: others are asked, and in the end it is dropped."""
    swarm = Swarm()
    swarm.offer(ONE)
    swarm.answer(ONE)
    for _ in range(6):
        asked, swarm.asked[ONE] = swarm.asked.get(ONE, []), []
        numbers = [number for _, number in asked]
        swarm.fetch.on_refused(ONE, Level.CHUNK, numbers, 0, swarm.now)
    assert swarm.fetch.holders == 0
    swarm.offer(TWO)
    swarm.run(TWO)


def test_a_holder_that_collects_its_copy_loses_nothing_for_us() -> None:
    """P4: it is dropped after some refusals, and all that it still owed is asked of others."""
    swarm = Swarm(100 * CHUNK_BYTES)
    swarm.offer(ONE)
    swarm.answer(ONE)
    for _ in range(3):
        swarm.answer(ONE)  # its window grows
    while swarm.fetch.holders:
        level, number = swarm.asked[ONE].pop()
        swarm.fetch.on_refused(ONE, level, (number,), 0, swarm.now)
    swarm.offer(TWO)
    swarm.run(TWO)


def test_the_silent_make_room() -> None:
    """P6: identities that offer and never send cannot keep the others out."""
    swarm = Swarm()
    silent = ids(80)[10:]
    for holder in silent:
        swarm.offer(holder)
    for _ in range(10):
        swarm.now = Millis(swarm.now + 40_000)
        swarm.fetch.tick(swarm.now)
    assert swarm.fetch.holders < 64
    swarm.offer(ONE)
    swarm.asked = {ONE: swarm.asked.get(ONE, [])}
    while not swarm.fetch.is_whole:
        swarm.now = Millis(swarm.now + 5_000)
        swarm.fetch.tick(swarm.now)
        swarm.answer(ONE)
        assert swarm.now < 10_000_000


def test_a_repeated_chunk_is_counted_and_dropped() -> None:
    swarm = Swarm()
    swarm.offer(ONE)
    swarm.answer(ONE)
    level, number = swarm.asked[ONE][0]
    data = swarm.chunks[number]
    assert swarm.fetch.on_piece(ONE, level, number, data, swarm.now)
    assert not swarm.fetch.on_piece(ONE, level, number, data, swarm.now)
    assert not swarm.fetch.on_piece(TWO, level, number, data, swarm.now)
    assert swarm.fetch.repeated == 2


def test_a_slow_holder_is_asked_for_little_a_fast_one_for_much() -> None:
    swarm = Swarm(400 * CHUNK_BYTES)
    swarm.offer(ONE)
    swarm.offer(TWO)
    swarm.answer(ONE)
    swarm.answer(TWO)
    for turn in range(60):
        swarm.now = Millis(swarm.now + 50)
        swarm.answer(ONE)
        if turn % 30 == 29:
            swarm.answer(TWO)
    one, two = swarm.fetch._holders[ONE], swarm.fetch._holders[TWO]
    assert two.window < one.window <= ASKED_MAX


@given(st.sets(st.integers(0, 99)), st.integers(100, 130))
def test_maps_come_back_as_they_were(numbers: set[int], count: int) -> None:
    bits = Bits(count)
    for number in numbers:
        bits.add(number)
    again = Bits(count, bits.encode())
    assert set(again) == numbers
    assert again.total() == len(numbers)
    assert set(Bits.full(count)) == set(range(count))
