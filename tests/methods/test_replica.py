"""The replicated state as it moves along the chain: what an entry lists, and nothing else."""

from collections.abc import Callable, Sequence

import pytest

from node.methods.base import Contribution, RoundContext
from node.methods.parts.probes import Probe, encode
from node.methods.parts.schedule import Schedule
from node.methods.parts.setup import Setup
from node.methods.spsa import Spsa, SpsaConfig
from node.replica import Replica
from protocol.entries import Body, Entry
from protocol.ids import Hash
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
