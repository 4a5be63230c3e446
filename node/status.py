"""Answers the command line's questions about a peer that runs, and counts what goes through it."""

import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from node.bootstrap import Membership
from node.donor import Donor
from node.errors import UserError
from node.examine import examine
from node.gossip.gather import gather
from node.gossip.port import GossipPort
from node.metrics import Metrics
from node.prober import NodeProber
from node.room import disk_by_part
from node.snapshots import Snapshots
from node.stats import Stats
from node.transport_zmq import ZmqTransport
from protocol.events import Event
from protocol.identity import Identity
from protocol.ids import PeerId
from protocol.invites import Contact, Invite, encode_invite, mint_token
from protocol.messages import Health
from protocol.peer import Peer

_INVITE_CONTACTS: Final = 4


class InviteError(UserError):
    """Nobody could use such an invite."""


@dataclass(frozen=True, slots=True)
class Running:
    """The parts of a peer that runs, as far as questions go."""

    home: Path
    started_s: float
    identity: Identity
    kept: Membership
    device: Callable[[], str]  # "unknown" until it is in use
    processes: Callable[[], int | None]  # of this peer; None until they are up
    bound: tuple[str, ...]
    peer: Peer
    transport: ZmqTransport
    prober: NodeProber
    snapshots: Snapshots
    donor: Donor
    stats: Stats
    gossip: GossipPort
    post: Callable[[Event], None]


def count_gossip(metrics: Metrics, facts: Mapping[str, Any]) -> None:
    """What `peer status` says of a run that gossips, as numbers; nothing of others."""
    if not facts["gossips"]:
        return
    metrics.set("peer_exchange_number", facts.get("exchange"))
    ended = {"whole": facts.get("exchanges_done"), "given_up": facts.get("exchanges_given_up")}
    known = {outcome: float(count) for outcome, count in ended.items() if count is not None}
    metrics.set_all("peer_exchanges", known)
    metrics.set("peer_exchanges_in_doubt", facts["exchanges_in_doubt"])
    metrics.set("peer_consensus_distance", facts.get("consensus_distance"))
    metrics.set("peer_own_heldout_loss", facts.get("own_heldout_loss"))


class Status:
    """`addresses` are those on our newest card."""

    def __init__(
        self, running: Running, addresses: tuple[str, ...], stop: Callable[[], None]
    ) -> None:
        self._running, self.addresses, self._stop = running, addresses, stop

    def answer(self, request: dict[str, Any]) -> dict[str, Any] | Awaitable[dict[str, Any]]:
        match request["do"]:
            case "status":
                return self.status()
            case "invite":
                return {"invite": self.invite(float(request["days"]))}
            case "doctor":
                return self.examine()
            case "models":
                return self.models()
            case "leave":
                self._stop()
                return {"leaving": True}
            case other:
                raise ValueError(f"unknown request {other!r}")

    # Invites

    def invite(self, days: float) -> str:
        """Raises InviteError."""
        running = self._running
        if not 0 < days <= 3650:
            raise InviteError("an invite lasts more than 0 and at most 3650 days", "pass --days 7")
        reachable = tuple(contact for contact in self._contacts() if contact.addresses)
        if not reachable:
            raise InviteError(
                "no member of this run that is up can be dialled",
                "pass --listen tcp://0.0.0.0:7700, or ask a member that can be dialled",
            )
        expires_s = int(time.time() + days * 86_400)
        token = mint_token(running.identity, running.kept.run, expires_s, os.urandom(8))
        return encode_invite(Invite(running.kept.run, running.kept.door, reachable, token))

    def _contacts(self) -> list[Contact]:
        running = self._running
        contacts = [Contact(running.identity.peer, self.addresses)]
        for member in running.peer.membership.others_up():
            addresses = running.peer.card_addresses(member)
            if addresses and len(contacts) < _INVITE_CONTACTS:
                contacts.append(Contact(member, addresses))
        return contacts

    # How well others are reached

    async def examine(self) -> dict[str, Any]:
        """Asks those that are reached without a relay, connected ones first."""
        running, peer = self._running, self._running.peer
        paths = running.transport.counters().paths
        up = [member for member in peer.membership.others_up() if self._is_alive(member)]
        direct = [member for member in up if peer.relay_of(member) is None]
        asked = sorted(direct or up, key=lambda member: (member not in paths, member))
        examined = await examine(running.prober, asked, dialled=bool(self.addresses))
        places = {"bound": list(running.bound), "addresses": list(self.addresses)}
        return {**places, **examined.as_json()}

    def _is_alive(self, peer: PeerId) -> bool:
        return self._running.peer.membership.health(peer) is Health.ALIVE

    def _reached(self, peer: PeerId, paths: Mapping[bytes, str]) -> dict[str, str | None]:
        """Over whose connection, or through whom; "unknown" before there was any."""
        if peer == self._running.identity.peer:
            return {"reached": "self", "through": None}
        relay = self._running.peer.relay_of(peer)
        if relay is not None:
            return {"reached": "relay", "through": relay.hex()}
        way = {"dial": "direct", "route": "inbound"}.get(paths.get(peer, ""), "unknown")
        return {"reached": way, "through": None}

    def _health(self, peer: PeerId) -> str:
        return Health(self._running.peer.membership.health(peer)).name.lower()

    # Models of peers that gossip

    async def models(self) -> dict[str, Any]:
        """Of every member that is up, as it is now, on this peer's disk. Raises UserError."""
        running = self._running
        if not running.kept.manifest.method.gossips:
            raise UserError(
                "all members of this run hold one model in common",
                "`peer export DIR` writes it; only runs that gossip have models to merge",
            )
        members = [one for one in running.peer.ledger.head.roster.members if self._is_alive(one)]
        return {"models": await gather(running.gossip, running.post, members)}

    # Counts

    def count_traffic(self) -> None:
        running = self._running
        counters, metrics = running.transport.counters(), running.stats.metrics
        total = counters.total
        running.stats.traffic(total.bytes_in, total.bytes_out)
        members: dict[str, float] = {}
        for peer in running.peer.ledger.head.roster.members:
            name = self._health(peer)
            members[name] = members.get(name, 0) + 1
        metrics.set_all("peer_members", members)
        metrics.set("peer_bytes", total.bytes_in, "in")
        metrics.set("peer_bytes", total.bytes_out, "out")
        metrics.set("peer_messages", total.messages_in, "in")
        metrics.set("peer_messages", total.messages_out, "out")
        metrics.set("peer_refused_handshakes", counters.refused_handshakes)
        metrics.set_all("peer_drops", {str(cause): n for cause, n in counters.dropped.items()})
        metrics.set_all("peer_disk_bytes", disk_by_part(running.home))
        metrics.set("peer_chunk_bytes", running.donor.fetched_bytes, "in")
        metrics.set("peer_chunk_bytes", running.donor.served_bytes, "out")
        metrics.set("peer_damaged_chunks", running.donor.damaged)
        count_gossip(metrics, self._about_gossip())

    def status(self) -> dict[str, Any]:
        return {
            **self._about_us(),
            **self._about_the_run(),
            **self._about_traffic(),
            **self._about_the_disk(),
            **self._running.stats.as_json(),
            **self._about_gossip(),
        }

    def _about_gossip(self) -> dict[str, Any]:
        """Of a run whose peers do not hold one model in common."""
        running = self._running
        if not running.kept.manifest.method.gossips:
            return {"gossips": False}
        return {
            "gossips": True,
            "exchanges_in_doubt": running.peer.doubts,
            **running.gossip.facts(),
        }

    def _about_us(self) -> dict[str, Any]:
        running = self._running
        return {
            "name": running.kept.manifest.name,
            "run": running.kept.run.hex(),
            "peer": running.identity.peer.hex(),
            "pid": os.getpid(),
            "home": str(running.home),
            "uptime_s": round(time.monotonic() - running.started_s, 1),
            "addresses": list(self.addresses),
            "device": running.device(),
            "processes": running.processes(),
            "method": running.kept.manifest.method.name,
            "quorum": running.kept.manifest.rules.quorum,
        }

    def _about_the_run(self) -> dict[str, Any]:
        peer = self._running.peer
        head, paths = peer.ledger.head, self._running.transport.counters().paths
        return {
            "member": peer.is_member,
            "caught_up": peer.caught_up,
            "round": head.round,
            "entry": head.hash.hex(),
            "work": head.weight,
            "unit_of_work": self._running.kept.manifest.method.unit_of_work,
            "members": [
                {
                    "peer": member.hex(),
                    "health": self._health(member),
                    "addresses": list(peer.card_addresses(member)),
                    **self._reached(member, paths),
                }
                for member in head.roster.members
            ],
        }

    def _about_traffic(self) -> dict[str, Any]:
        peer, counters = self._running.peer, self._running.transport.counters()
        total, relayed = counters.total, peer.relay_counts
        return {
            "bytes_in": total.bytes_in,
            "bytes_out": total.bytes_out,
            "messages_in": total.messages_in,
            "messages_out": total.messages_out,
            "dropped": {str(cause): n for cause, n in counters.dropped.items() if n},
            "relayed": relayed.relayed,
            "relayed_bytes": relayed.relayed_bytes,
            "relay_refused": {why.name.lower(): n for why, n in relayed.refused.items() if n},
            "refused_handshakes": counters.refused_handshakes,
            "faults": sum(peer.faults.values()),
        }

    def _about_the_disk(self) -> dict[str, Any]:
        running = self._running
        disk = disk_by_part(running.home)
        return {
            "disk_bytes": sum(disk.values()),
            "disk": disk,
            "snapshot_every": running.kept.manifest.rules.snapshot_every,
            "snapshots": running.snapshots.rounds(),
            "snapshot_bytes": disk["snapshots"],
            "chunks_served_bytes": running.donor.served_bytes,
            "chunks_fetched_bytes": running.donor.fetched_bytes,
            "damaged_chunks": running.donor.damaged,
        }
