"""What a simulated swarm costs its links, and whose rounds go wrong.

Control is everything that is sent besides contributions and, once to each peer that has it, each
round's entry. What is sent twice is control too: nobody would miss it.
"""

from collections import Counter
from dataclasses import dataclass, field

from node.sim.network import FRAME_OVERHEAD_BYTES
from node.sim.world import SimPeer, World
from protocol.codec import encode, kind_of
from protocol.effects import Note
from protocol.messages import Closed, Contribute
from protocol.restore import entry_at


@dataclass(slots=True)
class Costs:
    """Counts for one world, from its first frame on if it is made with `on_frame`."""

    bytes_by_kind: Counter[str] = field(default_factory=Counter)
    late: Counter[str] = field(default_factory=Counter)  # rounds that a peer's work missed
    undone: Counter[str] = field(default_factory=Counter)  # rounds that a peer took back

    def on_frame(self, frame: bytes) -> None:
        self.bytes_by_kind[kind_of(frame).__name__] += len(frame) + FRAME_OVERHEAD_BYTES

    def on_note(self, who: SimPeer, note: Note) -> None:
        if note.event == "late":
            self.late[who.name] += 1
        elif note.event == "switched":
            left, fork = note.fields["left_round"], note.fields["fork_round"]
            assert isinstance(left, int)
            assert isinstance(fork, int)
            self.undone[who.name] += left - fork

    def control_bytes(self, world: World, reader: SimPeer) -> int:
        work = self.bytes_by_kind[Contribute.__name__] + _entries_bytes(world, reader)
        return max(0, self.bytes_by_kind.total() - work)


def _entries_bytes(world: World, reader: SimPeer) -> int:
    """Of each entry on the ledger once to each other peer that has it, headers included."""
    heads = [who.peer.ledger.head.round for who in world.up()]
    total = 0
    for round in range(reader.peer.ledger.head.round):
        entry = entry_at(reader.disk, round)
        assert entry is not None
        others = sum(head > round for head in heads) - 1
        total += others * (len(encode(Closed(entry))) + FRAME_OVERHEAD_BYTES)
    return total
