"""A replica that differs: found by its digest, and mended from one that agrees with most (P1)."""

from protocol.codec import MENDED_MAX
from protocol.effects import Effect, Note, Patch, Rebuild, ServeMend, TakeChecks
from protocol.entries import Entry
from protocol.events import Applied, ChecksTaken, Patched
from protocol.ids import Hash, Millis, PeerId
from protocol.messages import Closed, Mend, MendRequest
from protocol.rounds import ranking
from tests.machine.making import RUN, Door, entry, genesis, ids

P = ids(4)
START = genesis(P)
FIRST, SECOND, THIRD, ME = ranking(RUN, 0, START.roster)
CHECKS = b"check 01check 02"


class Replica(Door):
    """A peer whose state is said to be right (7) or wrong (99)."""

    def __init__(self) -> None:
        super().__init__(ME, P)
        self.applied(99)

    def applied(self, state: int) -> list[Effect]:
        event = Applied(self.mark.round, self.mark.hash, state)
        self.effects = self.peer.handle(event, Millis(self.now))
        return self.effects

    def close(self) -> Entry:
        """A round of the others closes."""
        made = entry(self.mark, FIRST, [FIRST, SECOND])
        self.hear(FIRST, Closed(made))
        return made

    def checked(self) -> tuple[PeerId, MendRequest]:
        event = ChecksTaken(self.mark.round, self.mark.hash, CHECKS)
        self.effects = self.peer.handle(event, Millis(self.now))
        ((to, asked),) = self.sent(MendRequest)
        return PeerId(to[0]), asked


def damaged() -> Replica:
    """The others' digest was 7, ours 99; the state stands at the next round now."""
    replica = Replica()
    replica.close()
    replica.applied(99)
    return replica


def test_a_mismatch_is_said_loudly_and_looked_into() -> None:
    """P1: a replica that differs does not go unnoticed."""
    replica = Replica()
    replica.close()
    notes = [note for note in replica.of(Note) if note.event == "digest-mismatch"]
    assert [note.level for note in notes] == ["error"]
    replica.applied(99)
    assert replica.of(TakeChecks) == [TakeChecks(1, replica.mark.hash)]


def test_a_donor_is_one_that_stood_on_the_common_state() -> None:
    donor, asked = damaged().checked()
    assert donor in (FIRST, SECOND)
    assert asked.checks == CHECKS


def test_what_differs_is_put_in_place() -> None:
    replica = damaged()
    donor, asked = replica.checked()
    chunks = ((1, b"right"),)
    replica.hear(donor, Mend(asked.round, asked.parent, 1, chunks))
    assert replica.of(Patch) == [Patch(asked.round, asked.parent, chunks)]
    event = Patched(asked.round, asked.parent, ("weights.head",), 3)
    replica.effects = replica.peer.handle(event, Millis(replica.now))
    (note,) = replica.of(Note)
    assert (note.level, note.event, note.fields["tensors"]) == ("error", "repaired", "weights.head")
    again = Patched(asked.round, asked.parent, (), 0)
    replica.effects = replica.peer.handle(again, Millis(replica.now))
    assert not replica.of(Note), "another answer had nothing left to mend"
    replica.applied(7)
    replica.close()
    replica.applied(7)
    assert not replica.of(TakeChecks), "it agrees again"
    assert not [note for note in replica.of(Note) if note.event == "digest-mismatch"]


def test_what_nobody_asked_for_is_not_put_in_place() -> None:
    """P6: a member cannot write into another's weights unasked."""
    replica = damaged()
    donor, asked = replica.checked()
    mend = Mend(asked.round, asked.parent, 1, ((0, b"evil"),))
    replica.hear(THIRD, mend)
    assert not replica.of(Patch)
    replica.hear(donor, Mend(asked.round, Hash(bytes(32)), 1, ((0, b"evil"),)))
    assert not replica.of(Patch)
    replica.hear(donor, mend)
    assert replica.of(Patch)
    replica.hear(donor, mend)
    assert not replica.of(Patch), "once is enough"


def test_a_chunk_twice_is_a_fault() -> None:
    replica = damaged()
    donor, asked = replica.checked()
    replica.hear(donor, Mend(asked.round, asked.parent, 2, ((0, b"a"), (0, b"b"))))
    assert replica.faults() == ["a chunk twice"]
    assert not replica.of(Patch)


def test_too_much_damage_is_rebuilt() -> None:
    replica = damaged()
    donor, asked = replica.checked()
    chunks = tuple((number, b"x") for number in range(MENDED_MAX))
    replica.hear(donor, Mend(asked.round, asked.parent, 1_000, chunks))
    assert not replica.of(Patch)
    assert [task.from_scratch for task in replica.of(Rebuild)] == [True]


def test_damage_that_stays_is_rebuilt_in_the_end() -> None:
    """P1: five tries at most, then from what the ledger vouches for."""
    replica = damaged()
    rebuilt = 0
    for _ in range(6):
        replica.close()
        rebuilt += len(replica.of(Rebuild))
        replica.applied(99)
        rebuilt += len(replica.of(Rebuild))
    assert rebuilt == 1


def test_only_a_sound_member_mends_and_only_members() -> None:
    replica = Replica()
    replica.applied(7)
    asked = MendRequest(0, START.hash, CHECKS)
    replica.hear(FIRST, asked)
    assert replica.of(ServeMend) == [ServeMend(FIRST, 0, START.hash, CHECKS)]
    replica.hear(PeerId(bytes(31) + b"s"), asked)
    assert not replica.of(ServeMend)
    replica.hear(FIRST, MendRequest(0, START.hash, CHECKS + b"odd"))
    assert replica.faults() == ["checks that are not 8 bytes each"]
    sick = damaged()
    sick.hear(FIRST, MendRequest(1, sick.mark.hash, CHECKS))
    assert not sick.of(ServeMend)


def test_one_against_one_nobody_is_believed() -> None:
    """P1: a single other member may be the damaged one, so the ledger is asked instead."""
    replica = Replica()
    replica.hear(FIRST, Closed(entry(replica.mark, FIRST, [FIRST])))
    assert [task.from_scratch for task in replica.of(Rebuild)] == [True]
    replica.applied(99)
    assert not replica.of(TakeChecks)


def test_a_claim_that_the_ledger_does_not_bear_out_is_forgotten() -> None:
    """P4: it was of an entry that was left, so the state comes to its place once more, as it was.
    Starting over for ever would help nobody.
    """
    replica = Replica()
    place = replica.mark.round, replica.mark.hash
    replica.hear(FIRST, Closed(entry(replica.mark, FIRST, [FIRST])))
    assert replica.of(Rebuild)
    replica.effects = replica.peer.handle(Applied(*place, 99), Millis(replica.now))
    assert not replica.of(Rebuild)
