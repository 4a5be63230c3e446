"""From nothing to a run: found one, or knock at somebody's door with an invite.

What is agreed is kept in the peer's home (`meta`): the manifest's bytes, the door's secret, the
token that we came with.
"""

import json
import os
import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from node.config import Manifest, NodeConfig, RunFile
from node.errors import ConfigError, UserError
from node.methods.base import NOTHING_ATTACHED, Attaches
from node.store import Store
from node.transport_zmq import Inbound, ZmqTransport
from protocol.codec import decode, encode
from protocol.core import encode_card
from protocol.entries import Card, Token, card_bytes
from protocol.errors import RemoteError
from protocol.identity import Identity
from protocol.ids import PeerId, RunId, run_id, short
from protocol.invites import Invite
from protocol.ledger import Write
from protocol.messages import Hello, Refused, Welcome

KNOCK_S: Final = 1.0
Tell = Callable[[str], None]


class JoinError(UserError):
    """Nobody let us in."""

    exit_code = 4


@dataclass(frozen=True, slots=True)
class Membership:
    """What a home knows about its run."""

    raw: bytes  # the manifest, as it is hashed
    manifest: Manifest
    door: bytes
    token: Token | None

    @property
    def run(self) -> RunId:
        return run_id(self.raw)


def remembered(store: Store) -> Membership | None:
    """The run that this home belongs to, if any."""
    raw, door = store.get("meta", b"manifest"), store.get("meta", b"door")
    if raw is None or door is None:
        return None
    token = store.get("meta", b"token")
    return Membership(raw, Manifest.decode(raw), door, decode_token(token) if token else None)


def remember(store: Store, membership: Membership) -> None:
    writes = [Write("meta", b"manifest", membership.raw), Write("meta", b"door", membership.door)]
    if membership.token is not None:
        writes.append(Write("meta", b"token", encode_token(membership.token)))
    store.commit(writes)


def encode_token(token: Token) -> bytes:
    return b"".join(
        (token.minter, token.expires_s.to_bytes(8, "big"), token.nonce, token.signature)
    )


def decode_token(raw: bytes) -> Token:
    return Token(PeerId(raw[:32]), int.from_bytes(raw[32:40], "big"), raw[40:48], raw[48:])


def found(
    store: Store,
    run_file: RunFile,
    identity: Identity,
    model: bytes,
    data: bytes | None,
    attaches: Attaches = NOTHING_ATTACHED,
) -> Membership:
    """A new run, with us as its first member. `model` and `data` are digests; the last is what the
    method needs, should the run file not say.
    """
    rules = run_file.rules.saying(attaches)
    manifest = Manifest(
        name=run_file.name,
        founder=identity.peer.hex(),
        nonce=os.urandom(8).hex(),
        model=run_file.model,
        model_digest=model.hex(),
        data=run_file.data,
        data_digest=None if data is None else data.hex(),
        method=run_file.method,
        rules=rules,
    )
    membership = Membership(manifest.encode(), manifest, os.urandom(32), None)
    remember(store, membership)
    return membership


def next_card(store: Store, run: RunId, identity: Identity, addresses: Sequence[str]) -> Card:
    """Our card for this start. The sequence number only ever grows, also after an old copy of the
    home was put back: that is why it starts from the date.
    """
    kept = store.get("meta", b"card-sequence")
    sequence = max(int.from_bytes(kept or b"", "big") + 1, int(time.time()))
    store.commit([Write("meta", b"card-sequence", sequence.to_bytes(8, "big"))])
    listed = tuple(addresses)[:8]
    signature = identity.sign(card_bytes(run, identity.peer, sequence, listed))
    return Card(identity.peer, sequence, listed, signature)


class Knocker:
    """Asks the invite's contacts, one after the other, until one opens."""

    def __init__(self, invite: Invite, card: Card, transport: ZmqTransport) -> None:
        self._invite, self._card, self._transport = invite, card, transport
        self.inbox: queue.SimpleQueue[Inbound] = queue.SimpleQueue()

    def knock(self, wait_s: float, tell: Tell) -> Welcome:
        """Raises JoinError: refused, or nobody answered within `wait_s`."""
        hello = encode(Hello(self._card, self._invite.token))
        for contact in self._invite.contacts:
            self._transport.set_peer(contact.peer, contact.addresses, as_guest=True)
        end = time.monotonic() + wait_s
        attempt = 0
        refusal = ""
        while time.monotonic() < end:
            contact = self._invite.contacts[attempt % len(self._invite.contacts)]
            attempt += 1
            where = contact.addresses[0] if contact.addresses else short(contact.peer)
            tell(f"asking {where} to let us in ({max(0, end - time.monotonic()):.0f} s left)")
            self._transport.send(contact.peer, hello)
            welcome, refused = self._listen(time.monotonic() + KNOCK_S)
            if welcome is not None:
                return welcome
            refusal = refused or refusal
            if refused:
                break
        if refusal:
            raise JoinError(f"the run refused us: {refusal}", "ask a member for a new invite")
        raise JoinError(
            "no contact of the invite answered: " + ", ".join(self._addresses()),
            "is a member running, and can this machine reach it? ask for a newer invite",
        )

    def _addresses(self) -> list[str]:
        return [address for contact in self._invite.contacts for address in contact.addresses]

    def _listen(self, until: float) -> tuple[Welcome | None, str]:
        while (left := until - time.monotonic()) > 0:
            try:
                inbound = self.inbox.get(timeout=left)
                message = decode(inbound.data)
            except queue.Empty:
                return None, ""
            except RemoteError:
                continue
            if isinstance(message, Refused):
                return None, message.reason
            if isinstance(message, Welcome):
                if run_id(message.manifest) != self._invite.run:
                    raise JoinError(
                        "the contact answered with another run's manifest",
                        "the invite does not belong to that address; ask for a new one",
                    )
                return message, ""
        return None, ""


def accept(store: Store, invite: Invite, welcome: Welcome) -> Membership:
    """Remember the run that we were let into, and whom it knows."""
    membership = Membership(
        welcome.manifest, Manifest.decode(welcome.manifest), invite.door, invite.token
    )
    store.commit([Write("cards", card.peer, encode_card(card)) for card in welcome.cards])
    if welcome.cards:
        store.commit([Write("meta", b"sponsor", welcome.cards[0].peer)])
    remember(store, membership)
    return membership


def sponsor(store: Store) -> PeerId | None:
    """The member that let us in."""
    kept = store.get("meta", b"sponsor")
    return None if kept is None else PeerId(kept)


def check_same_run(kept: Membership, wanted: RunId, home: str) -> None:
    if kept.run != wanted:
        raise ConfigError(
            f"{home} belongs to the run {kept.manifest.name!r} ({short(kept.run)}),"
            f" the invite is for {short(wanted)}",
            "pass another folder with --home",
        )


def check_same_file(kept: Membership, run_file: RunFile, home: str) -> None:
    """Going on with a run takes the file that founded it: what all agreed on cannot change."""
    ours = kept.manifest
    unsaid = {
        key: None
        for key in ("attachment_bytes_max", "parts_max")
        if getattr(run_file.rules, key) is None
    }
    ours = ours.model_copy(update={"rules": ours.rules.model_copy(update=unsaid)})
    changed = [
        table
        for table in ("name", "model", "data", "method", "rules")
        if getattr(ours, table) != getattr(run_file, table)
    ]
    if changed:
        raise ConfigError(
            f"{home} holds the run {kept.manifest.name!r}, which differs from the run file in"
            f" {', '.join(changed)}",
            "pass another folder with --home to found a new run",
        )


def keep_settings(node: NodeConfig, root: Path) -> bytes:
    """What this machine's files and devices are, for commands that come without a run file."""
    return json.dumps({"node": node.model_dump(mode="json"), "root": str(root)}).encode()


def recall_settings(kept: bytes | None) -> tuple[NodeConfig, Path]:
    if kept is None:
        return NodeConfig(), Path.cwd()
    fields = json.loads(kept)
    return NodeConfig.model_validate(fields["node"]), Path(fields["root"])
