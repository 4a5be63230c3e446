"""Swarms whose contributions are too large for the ledger, and what is looked at in them."""

from node.sim.network import Link
from node.sim.stub import Payloads
from node.sim.world import SimPeer, World
from protocol.entries import Entry
from protocol.restore import entry_at
from protocol.rules import Quorum, Rules

FAST = Link(up_bytes_per_ms=20_000, down_bytes_per_ms=20_000)


def attaching(
    peers: int = 6,
    seed: int = 1,
    quorum: Quorum = Quorum.ANY,
    *,
    size: int,
    parts_max: int = 0,
    link: Link = FAST,
    own_links: tuple[Link, ...] = (),
    window_ms: int = 1_000,
    snapshot_every: int = 50,
    collectors: int = 3,
) -> World:
    """Each contribution has so many bytes beside it."""
    rules = Rules(
        quorum=quorum,
        window_ms=window_ms,
        deadline_ceiling_ms=6_000,
        attachment_bytes_max=size,
        parts_max=parts_max,
        snapshot_every=snapshot_every,
        collectors=collectors,
    )
    payloads = Payloads(attached_bytes=size)
    return World(peers, seed, rules, link, payloads=payloads, own_links=own_links)


def newest(who: SimPeer, count: int) -> list[Entry]:
    """Of its chain."""
    head = who.peer.ledger.head.round
    found = [entry_at(who.disk, round) for round in range(head - count, head)]
    return [entry for entry in found if entry is not None]


def agree(world: World) -> bool:
    """All who are up have one chain, and states at one place of it that are the same."""
    heads = {who.peer.ledger.head.hash for who in world.up()}
    return len(heads) == 1 and len({who.state for who in world.up()}) == 1
