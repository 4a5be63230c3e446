"""P3, for models that gossip: whatever a peer is killed in, with its disk a pair holds together
what it held, and each stretch moved on both sides or on neither.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from node.durable import write_atomically
from node.gossip.exchange import Exchange
from node.gossip.journal import FILE, Journal, log_path, read_log, recall
from node.gossip.pairings import Meeting
from node.gossip.party import Party
from node.methods.noloco import MOMENTUM
from node.methods.parts.mixing import MODEL
from node.methods.push_sum import MASS, WEIGHT
from tests.gossip.test_exchange import wide
from tests.methods.making import peer

SESSION = b"s" * 32
STRETCHES = 2  # that are exchanged
METHODS = pytest.mark.parametrize("method", ["d-psgd", "noloco", "push-sum"])


class KilledError(Exception):
    """The process ends here."""


class Side:
    """A peer with a disk, and the process that uses it."""

    made: ClassVar[list["Side"]] = []

    def __init__(self, home: Path, method: str, seat: int) -> None:
        self.made.append(self)
        home.mkdir(exist_ok=True)
        self.home, self._method, self._seat = home, method, seat
        self.party = wide(method)[seat]
        self.journal = Journal(home, self.party)
        if self.journal.load() is None:
            step(self.party, seat)
        self.journal.save({})

    def again(self) -> "Side":
        """The same machine after a kill."""
        self.journal.close()
        return Side(self.home, self._method, self._seat)


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    for side in Side.made:
        side.journal.close()
    Side.made.clear()


def step(party: Party, seed: int) -> None:
    """Something that a peer does by itself."""
    chance = torch.Generator().manual_seed(seed)
    party.state[MODEL].add_(0.01 * torch.randn(party.state[MODEL].shape, generator=chance))


def exchange(
    one: Side, other: Side, *, directed: bool = False, before_write: Callable[[], None]
) -> None:
    """As the protocol has it; `one` decides."""
    meeting = Meeting((peer(0), peer(1)), directed)
    mine, theirs = Exchange(one.party, peer(0), meeting), Exchange(other.party, peer(1), meeting)
    for number in range(STRETCHES):
        data, back = mine.offer(number), theirs.offer(number)
        theirs.receive(number, peer(0), data)
        if back:
            mine.receive(number, peer(1), back)
        before_write()
        other.journal.prepared(SESSION, number, peer(0), theirs.moves(number))
        before_write()
        mine.commit(number)
        one.journal.moved(SESSION, number, [peer(1)])
        before_write()
        theirs.commit(number)
        other.journal.moved(SESSION, number, [])
    before_write()
    one.journal.forgot(SESSION)


def settle(one: Side, other: Side) -> None:
    """The word comes, or that there is none."""
    decided, _ = one.journal.kept.decided.get(SESSION, (set[int](), ()))
    for session, number in list(other.journal.kept.prepared):
        if number in decided:
            moves = other.journal.kept.prepared[session, number].moves
            other.party.mixing.apply(other.party.part(number), moves)
            other.journal.moved(session, number, [])
    other.journal.dropped(SESSION)


Vectors = dict[str, Tensor]


def vectors(side: Side) -> Vectors:
    for number in range(len(side.party.stretches)):
        side.party.mixing.offer(side.party.part(number))  # which takes in what steps did
    return {name: vector.clone() for name, vector in side.party.state.items()}


def total(name: str, pair: list[Vectors]) -> Tensor:
    return torch.stack([one[name].double() for one in pair]).sum(0)


def killed_at(folder: Path, method: str, number: int) -> tuple[list[Vectors], list[Side], bool]:
    """Before the exchange, and after the restart; was there no such write?"""
    sides = [Side(folder / f"{seat}", method, seat) for seat in range(2)]
    before = [vectors(side) for side in sides]
    writes = 0

    def count() -> None:
        nonlocal writes
        if writes == number:
            raise KilledError
        writes += 1

    is_over = True
    try:
        exchange(*sides, directed=method == "push-sum", before_write=count)
    except KilledError:
        is_over = False
    again = [side.again() for side in sides]
    settle(*again)
    return before, again, is_over


@METHODS
def test_a_pair_is_killed_before_any_of_its_writes(tmp_path: Path, method: str) -> None:
    """P3: both sides moved, or neither; what is conserved still is."""
    for number in range(99):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        before, after, is_over = killed_at(folder, method, number)
        for part in after[0].party.stretches:
            moved = [
                not torch.equal(old[MODEL][part.elements], new.party.state[MODEL][part.elements])
                for old, new in zip(before, after, strict=True)
            ]
            if method == "push-sum":  # its model is a ratio, which the sender's half leaves alone
                weights = after[0].party.state[WEIGHT], after[1].party.state[WEIGHT]
                at = after[0].party.stretches.index(part)
                assert (float(weights[0][at]), float(weights[1][at])) in [(1, 1), (0.5, 1.5)]
            else:
                assert moved[0] == moved[1]
        name = {"d-psgd": MODEL, "push-sum": MASS}.get(method)
        if name is not None:
            gap = (total(name, list(map(vectors, after))) - total(name, before)).abs().max()
            assert float(gap) < 1e-6
        if is_over:
            assert number == 3 * STRETCHES + 1
            return
    raise AssertionError("it never ended")


@METHODS
def test_a_log_that_was_cut_short_holds_what_was_whole(tmp_path: Path, method: str) -> None:
    """P3, killed in the middle of a write: what came before it is there, to the bit."""
    side = Side(tmp_path / "0", method, 0)
    states, sizes = [], []
    path = log_path(side.home, 1)
    for number in range(2):
        step(side.party, 50 + number)
        side.journal.moved(SESSION, number, [])
        states.append(side.party.state[MODEL][side.party.stretches[number].elements].clone())
        sizes.append(path.stat().st_size)
    whole = path.read_bytes()
    side.journal.close()
    for size in {*range(0, len(whole), 4_001), *sizes, sizes[0] - 1, sizes[1] - 1}:
        path.write_bytes(whole[:size])
        records = read_log(path)
        assert len(records) == sum(size >= one for one in sizes)
        fresh = wide(method)[0]
        assert recall(side.home, fresh)
        for number in range(len(records)):
            found = fresh.state[MODEL][fresh.stretches[number].elements]
            assert torch.equal(found, states[number])


def test_a_restart_keeps_the_steps_before_the_last_exchange(tmp_path: Path) -> None:
    sides = [Side(tmp_path / f"{seat}", "noloco", seat) for seat in range(2)]
    for side in sides:
        step(side.party, 9)
    exchange(*sides, before_write=lambda: None)
    was = [vectors(side) for side in sides]
    step(sides[0].party, 10)  # lost
    for side, old in zip([side.again() for side in sides], was, strict=True):
        stop = side.party.stretches[STRETCHES - 1].stop
        for name in (MODEL, MOMENTUM):
            assert torch.equal(side.party.state[name][:stop], old[name][:stop])


@pytest.mark.parametrize(("took_s", "after_s"), [(0.0, 10.0), (1.0, 50.0), (60.0, 300.0)])
def test_the_whole_is_written_often_and_takes_little_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, took_s: float, after_s: float
) -> None:
    """Who meets nobody loses no more than the steps since then, and shows its model to others'
    commands.
    """
    side = Side(tmp_path, "d-psgd", 0)
    now_s, written = 1_000.0, 0

    def slow(path: Path, write: Callable[[Path], None]) -> None:
        nonlocal now_s, written
        now_s += took_s
        written += path.name == FILE
        write_atomically(path, write)

    monkeypatch.setattr("node.gossip.journal.time.monotonic", lambda: now_s)
    monkeypatch.setattr("node.gossip.journal.write_atomically", slow)
    side.journal.save({})
    now_s += after_s
    side.journal.save_if_due(dict)
    assert written == 1
    now_s += 0.5
    side.journal.save_if_due(dict)
    assert written == 2


def test_what_is_not_settled_survives_being_written_anew(tmp_path: Path) -> None:
    one, other = (Side(tmp_path / f"{seat}", "d-psgd", seat) for seat in range(2))
    stop = iter([None, None, KilledError])

    def second() -> None:
        if next(stop) is not None:
            raise KilledError

    with pytest.raises(KilledError):
        exchange(one, other, before_write=second)
    for _ in range(3):
        one.journal.save({})
        other.journal.save({})
        assert len(list(other.home.glob("gossip-*.log"))) == 1
    one, other = one.again(), other.again()
    assert one.journal.kept.decided == {SESSION: ({0}, (peer(1),))}
    assert list(other.journal.kept.prepared) == [(SESSION, 0)]
    before = total(MODEL, [vectors(one), vectors(other)])
    settle(one, other)
    part = one.party.stretches[0].elements
    gap = (one.party.state[MODEL][part] - other.party.state[MODEL][part]).abs().max()
    assert float(gap) < 1e-6, "they met"
    assert not torch.equal(before, total(MODEL, [vectors(one), vectors(other)])), (
        "one had moved alone so far"
    )


def test_a_damaged_file_is_said_to_be(tmp_path: Path) -> None:
    side = Side(tmp_path / "0", "d-psgd", 0)
    (side.home / FILE).write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="damaged"):
        Journal(side.home, side.party).load()
