"""What peers say in their own logs."""

import json
from collections.abc import Iterable
from pathlib import Path

from node.store import load_identity
from node.swarm import PeerProcess
from protocol.identity import Identity
from protocol.ids import PeerId, short


def identity_of(home: Path) -> PeerId:
    return Identity(load_identity(home)).peer


def read_events(home: Path) -> list[dict[str, object]]:
    """A peer's log, oldest first; a torn last line is left out."""
    found = []
    for name in ("events.jsonl.2", "events.jsonl.1", "events.jsonl"):
        path = home / name
        for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
    return found


def told_faults(peers: Iterable[PeerProcess]) -> list[str]:
    """Whom each of these peers blames for what, as its own log has it."""
    listed = list(peers)
    names = {short(identity_of(peer.home)): peer.name for peer in listed}
    return [
        f"{peer.name} blames {names.get(str(event['peer']), event['peer'])}: {event['error']}"
        for peer in listed
        for event in read_events(peer.home)
        if event["event"] == "fault"
    ]
