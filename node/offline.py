"""A run's model without its daemon: read a home's ledger, which may be in use, and rebuild the
state from it.
"""

import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from node.attachments import AttachmentReader
from node.bootstrap import Membership, recall_settings
from node.build import Workshop
from node.config import Manifest, NodeConfig
from node.errors import UserError
from node.methods.base import Method
from node.replica import AttachmentLibrary, LackingError, Progress, Replica
from node.snapshots import SnapshotReader
from node.store import load_identity
from protocol.codec import decode_entry
from protocol.identity import Identity
from protocol.ids import PeerId
from protocol.restore import TABLES

# What the newest rounds attach may not be here yet, beside a peer that runs or was stopped: then
# the model is as it was before them.
_ON_THEIR_WAY: Final = 4


class ReadOnlyStore:
    """A `Reader` over a home's database; works beside the peer that owns it."""

    def __init__(self, home: Path) -> None:
        path = home / "peer.db"
        if not path.exists():
            raise UserError(f"there is no peer in {home}", "pass --home DIR of a peer that has run")
        self._db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)

    def get(self, table: str, key: bytes) -> bytes | None:
        assert table in TABLES
        row = self._db.execute(f'SELECT value FROM "{table}" WHERE key = ?', (key,)).fetchone()
        return None if row is None else row[0]

    def scan(self, table: str, first: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        assert table in TABLES
        query = f'SELECT key, value FROM "{table}" WHERE key >= ? ORDER BY key'
        yield from self._db.execute(query, (first,))

    def close(self) -> None:
        self._db.close()


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A run's state, as far as one home knows it."""

    membership: Membership
    workshop: Workshop
    replica: Replica
    bodies: tuple[bytes, ...]  # of all entries that were merged


def rebuild(home: Path, progress: Progress, changes: Mapping[str, Any] | None = None) -> Rebuilt:
    """`changes` go over the settings that the peer last ran with. Raises UserError."""
    disk = ReadOnlyStore(home)
    try:
        membership, node, root = recall_membership(home, disk, changes or {})
        me, attachments = Identity(load_identity(home)).peer, AttachmentReader(home, disk)
        replica, workshop = make_replica(membership, node, root, me, attachments)
        names = [name for _, name in disk.scan("chain")]
        bodies = tuple(_body(disk, name) for name in names)
        try:
            replica.rebuild(disk, SnapshotReader(home, disk), len(names), progress)
        except LackingError as error:
            if len(names) - error.round > _ON_THEIR_WAY:
                raise UserError(
                    f"what round {error.round} changed has not come to this disk yet",
                    "let this peer run until `peer status` says that it has caught up",
                ) from error
            names, bodies = names[: error.round], bodies[: error.round]
        if membership.manifest.method.gossips:
            _recall_model(home, replica.method)
        if replica.round != len(names):
            raise UserError("the ledger changed while it was read", "run the command again")
        return Rebuilt(membership, workshop, replica, bodies)
    finally:
        disk.close()


def recall_membership(
    home: Path, disk: ReadOnlyStore, changes: Mapping[str, Any]
) -> tuple[Membership, NodeConfig, Path]:
    """And the settings, with those changes. Raises UserError."""
    raw, door = disk.get("meta", b"manifest"), disk.get("meta", b"door")
    if raw is None or door is None:
        raise UserError(f"the peer in {home} has not joined a run yet", "start or join one first")
    node, root = recall_settings(disk.get("meta", b"settings"))
    membership = Membership(raw, Manifest.decode(raw), door, None)
    return membership, node.model_copy(update=changes), root


def _recall_model(home: Path, method: Method) -> None:
    """Peers that gossip have no model in the ledger: this one's own, as of its last exchange."""
    from node.gossip.checkpoints import Checkpoints
    from node.gossip.journal import recall

    assert isinstance(method, Checkpoints), "what gossips has checkpoints for rounds"
    try:
        is_there = recall(home, method.party)
    except ValueError as error:
        raise UserError(
            str(error), "`peer export --merge` takes the other members' models"
        ) from error
    if not is_there:
        raise UserError(f"the peer in {home} has no model yet", "let it become a member first")


def make_replica(
    membership: Membership,
    node: NodeConfig,
    root: Path,
    me: PeerId,
    attachments: AttachmentLibrary | None = None,
) -> tuple[Replica, Workshop]:
    """At the run's beginning."""
    manifest = membership.manifest
    workshop = Workshop.open(manifest.model, manifest.data, node, root)
    trainer = workshop.trainer(membership.run, manifest.method)
    founders = (PeerId(bytes.fromhex(manifest.founder)),)
    initial = trainer.initial_state
    parts = manifest.rules.rules().parts
    replica = Replica(trainer.method, initial, membership.run, me, founders, attachments, parts)
    return replica, workshop


def _body(disk: ReadOnlyStore, name: bytes) -> bytes:
    raw = disk.get("entries", name)
    assert raw is not None, "the chain names an entry that is not on disk"
    return decode_entry(raw).raw
