"""The replicated state as it moves along the chain: what an entry lists, and nothing else."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from node.methods.base import Contribution, RoundContext
from node.methods.parts.probes import Probe, encode
from node.methods.parts.schedule import Schedule
from node.methods.parts.setup import Setup
from node.methods.spsa import Spsa
from node.methods.spsa_config import SpsaConfig
from node.replica import LackingError, Replica
from protocol.entries import Attachment, Body, Entry
from protocol.ids import Hash, PeerId
from tests.machine.making import RUN, ids, line, sealed
from tests.machine.making import genesis as start_of

MakeSetup = Callable[..., Setup]
CONFIG = SpsaConfig(learning_rate=Schedule(peak="0.05"), epsilon=0.01, probes=6)
P = ids(4)
START = start_of(P)
PAYLOADS = [
    encode([Probe(0, index, 7 * seat + index - 11) for index in range(6)]) for seat in range(len(P))
]


def entry_of(seats: Sequence[int]) -> Entry:
    """A closed round 0 that lists these."""
    signed = [line(START, P[seat], PAYLOADS[seat]) for seat in seats]
    lines = tuple(made for made, _ in signed)
    body = Body(0, Hash(RUN), 0, 5_000, 7, lines, (), ())
    return sealed(body, P[0], tuple(signature for _, signature in signed))


def digest_of(seats: Sequence[int], setup: Setup) -> int:
    """Of the state that exactly these contributions lead to."""
    method = Spsa(CONFIG, setup)
    context = RoundContext(RUN, 0, P[3], tuple(P), lambda: False)
    method.merge(context, [Contribution(P[seat], PAYLOADS[seat]) for seat in seats])
    return method.state_digest(1)


@pytest.mark.parametrize("seats", [[0], [1, 3], [0, 1, 2], [0, 1, 2, 3]])
def test_a_replica_merges_what_the_entry_lists(seats: list[int], make_setup: MakeSetup) -> None:
    """P2: all of it, and nothing else, whoever's replica it is."""
    for me in P:
        method = Spsa(CONFIG, make_setup())
        replica = Replica(method, method.replicated_state, RUN, me, tuple(P))
        made = entry_of(seats)
        replica.merge(made, tuple(P))
        assert replica.place == (1, made.hash)
        assert method.state_digest(1) == digest_of(seats, make_setup())
    others = [digest_of(some, make_setup()) for some in ([0, 1], [2], [1, 2, 3])]
    assert digest_of(seats, make_setup()) not in others


class Shelf:
    """Attachments in memory."""

    def __init__(self, *data: bytes) -> None:
        self.data = {Hash(name * 32): one for name, one in zip((b"a", b"b"), data, strict=False)}

    def has(self, attached: Attachment) -> bool:
        return attached.root in self.data

    def read(self, attached: Attachment) -> bytes | None:
        return self.data.get(attached.root)


def attached_entry() -> Entry:
    """Four contributions, two of them with attachments."""
    made = [line(START, P[seat], PAYLOADS[seat])[0] for seat in range(4)]
    made[1] = replace(made[1], attached=Attachment(Hash(b"a" * 32), 5))
    made[2] = replace(made[2], attached=Attachment(Hash(b"b" * 32), 5))
    body = Body(0, Hash(RUN), 0, 5_000, 7, tuple(made), (), ())
    return sealed(body, P[0], (bytes(64),) * 4)


class Picky(Spsa):
    def check(self, round: int, payload: bytes, attachment: bytes) -> None:
        if attachment not in (b"", b"sound"):
            raise ValueError("unsound")


def test_what_cannot_be_merged_is_left_out_by_all(make_setup: MakeSetup) -> None:
    """P2, P6: it is in the ledger, so every replica leaves out the same, and says whose it is."""
    method = Picky(CONFIG, make_setup())
    shelf = Shelf(b"sound", b"wrong")
    replica = Replica(method, method.replicated_state, RUN, P[0], tuple(P), shelf)
    told: list[tuple[int, PeerId, str]] = []
    replica.unusable = lambda *what: told.append(what)
    replica.merge(attached_entry(), tuple(P))
    assert told == [(0, P[2], "unsound")]
    assert method.state_digest(1) == digest_of([0, 1, 3], make_setup())


def test_nothing_is_merged_while_something_lacks(make_setup: MakeSetup) -> None:
    """P2: half a round is none."""
    method = Picky(CONFIG, make_setup())
    before = method.state_digest(1)
    replica = Replica(method, method.replicated_state, RUN, P[0], tuple(P), Shelf(b"sound"))
    with pytest.raises(LackingError) as caught:
        replica.merge(attached_entry(), tuple(P))
    assert [one.root for one in caught.value.attachments] == [b"b" * 32]
    assert (method.state_digest(1), replica.round) == (before, 0)
