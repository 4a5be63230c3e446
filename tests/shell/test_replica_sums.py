"""The replicated state and sums on disk: what lacks, what is none, and what a method is given."""

from collections.abc import Sequence

import pytest

from node.methods.base import Contribution, RoundContext
from node.replica import LackingError, Replica
from protocol.entries import Attachment, Body, Entry, Line
from protocol.ids import Hash, PeerId, digest
from protocol.ledger import Mark
from protocol.parts import SumName
from tests.machine.making import RUN, genesis, ids, sealed

P = tuple(ids(3))
ME = P[0]
PARTS = 2


class Sums:
    """A method that merges sums of these bytes, and remembers what it was given."""

    def __init__(self) -> None:
        self.merged: list[tuple[Sequence[Contribution], Sequence[bytes]]] = []

    def add_up(
        self, round: RoundContext, number: int, contributions: Sequence[Contribution]
    ) -> bytes:
        return b"sum"

    def check_sum(self, round: RoundContext, number: int, data: bytes) -> None:
        if data != b"sum %d" % number:
            raise ValueError("no sum")

    def merge_sums(
        self, round: RoundContext, contributions: Sequence[Contribution], sums: Sequence[bytes]
    ) -> None:
        self.merged.append((contributions, sums))


class Shelf:
    """What is on disk."""

    def __init__(self) -> None:
        self.found: dict[Hash, bytes] = {}
        self.names: dict[SumName, Attachment] = {}

    def put(self, data: bytes) -> Attachment:
        made = Attachment(digest("on a shelf", data), len(data))
        self.found[made.root] = data
        return made

    def has(self, attached: Attachment) -> bool:
        return attached.root in self.found

    def read(self, attached: Attachment) -> bytes | None:
        return self.found.get(attached.root)

    def sum(self, round: int, name: SumName) -> Attachment | None:
        return self.names.get(name) if round == 0 else None


def entry_of(mark: Mark, attached: dict[PeerId, Attachment]) -> Entry:
    lines = tuple(
        Line(mark.roster.seat(peer) or 0, b"8 bytes!", None, None, None, attached.get(peer))
        for peer in P
    )
    body = Body(mark.round, mark.hash, 0, 1_000, 7, lines, (), ())
    return sealed(body, P[0], tuple(bytes(64) for _ in lines))


def test_sums_are_merged_once_all_are_there_and_are_sums() -> None:
    """P2, P6: nothing happens before, and what is none is named."""
    shelf, method = Shelf(), Sums()
    ours, theirs = shelf.put(b"ours"), shelf.put(b"theirs")
    entry = entry_of(genesis(P), {ME: ours, P[1]: theirs})
    replica = Replica(method, dict, RUN, ME, P, shelf, lambda members: PARTS)  # type: ignore[arg-type]
    names = [SumName(entry.hash, number) for number in range(PARTS)]
    with pytest.raises(LackingError) as lacking:
        replica.merge(entry, P)
    assert (lacking.value.sums, lacking.value.refused) == (tuple(names), ())
    shelf.names[names[0]] = shelf.put(b"sum 0")
    shelf.names[names[1]] = shelf.put(b"something")
    with pytest.raises(LackingError) as refused:
        replica.merge(entry, P)
    assert (refused.value.sums, refused.value.refused) == ((names[1],), (names[1],))
    assert not method.merged
    assert replica.round == 0
    shelf.names[names[1]] = shelf.put(b"sum 1")
    replica.merge(entry, P)
    ((lines, sums),) = method.merged
    assert list(sums) == [b"sum 0", b"sum 1"]
    assert [line.attachment for line in lines] == [b"ours", b"", b""], "ours alone"
    assert replica.place == (1, entry.hash)
