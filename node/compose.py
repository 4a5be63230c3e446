"""The one place that knows every class: a peer, put together and run to its end."""

import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import uvloop

from node import bootstrap
from node.attachments import Attachments
from node.bootstrap import Knocker, Membership
from node.build import Workshop
from node.config import NodeConfig, RunFile
from node.control import ControlServer
from node.curve import identity_keys
from node.donor import Donor
from node.driver import Driver, NodeWatcher, ObservedWorker, TransportPort, now_ms
from node.errors import ConfigError, UserError
from node.examine import examine
from node.front import Front, advertised, check, port_map
from node.metrics import Endpoint, Metrics
from node.offline import keep_settings
from node.perform import Shell
from node.prober import NodeProber
from node.room import disk_by_part
from node.snapshots import Snapshots
from node.stats import Stats
from node.store import Store
from node.telemetry import EventLog
from node.transport_zmq import Inbound, ZmqTransport
from node.worker import Place, Reports, TrainingWorker
from protocol.codec import encode
from protocol.events import MoveAsked, Started, StopAsked
from protocol.identity import Identity
from protocol.ids import Hash, PeerId, short
from protocol.invites import Contact, Invite, encode_invite, mint_token
from protocol.ledger import Judge, Mark, Write
from protocol.messages import Health, Message
from protocol.peer import Peer
from protocol.relaying import RelayLimits
from protocol.restore import restore, saved_cards
from protocol.roster import Roster

INVITE_DAYS: Final = 7
_CLOSE_S: Final = 30.0
_INVITE_CONTACTS: Final = 4

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run, and where."""

    home: Path
    node: NodeConfig
    root: Path = field(default_factory=Path.cwd)  # relative model and data paths count from here
    run_file: RunFile | None = None  # found this run, or go on with it
    invite: Invite | None = None  # join this one, or go on with it
    wait_s: float = 60.0  # how long to knock
    invite_file: Path | None = None  # write an invite here once it can be used
    invite_days: float = INVITE_DAYS
    tell: Tell = lambda text: None  # progress, for a person


class HaltedError(UserError):
    """The protocol cannot go on."""


class InviteError(UserError):
    """Nobody could use such an invite."""


class Node:
    """One peer's process."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._tell = plan, plan.tell
        self._started_s = time.monotonic()
        self._driver = Driver()
        self._knocker: Knocker | None = None

    def run(self) -> None:
        """Until it is asked to stop. Raises UserError for what a person must mend."""
        home = self._plan.home
        with Store.open(home) as store, EventLog(home / "events.jsonl") as log:
            self._run(store, log)

    def _run(self, store: Store, log: EventLog) -> None:
        plan = self._plan
        check(plan.node)
        identity = Identity(store.identity())
        kept = bootstrap.remembered(store)
        if plan.invite is not None and kept is not None:
            bootstrap.check_same_run(kept, plan.invite.run, str(plan.home))
        if plan.run_file is not None and kept is not None:
            bootstrap.check_same_file(kept, plan.run_file, str(plan.home))
        elif plan.run_file is not None:
            kept = self._found(store, plan.run_file, identity)
        door = kept.door if kept is not None else _door_of(plan)
        transport = ZmqTransport(
            store.identity(),
            listen=plan.node.listen,
            door=door,
            on_batch=self._receive,
            on_failure=self._driver.fail,
        )
        bound = transport.start()
        mapped = port_map(plan.node, bound, self._tell)
        front = Front(bound, plan.node.advertise or advertised(bound), mapped)
        try:
            front.open()
            if kept is None:
                assert plan.invite is not None
                kept = self._join(store, plan.invite, identity, transport, front.addresses())
            settings = keep_settings(plan.node, plan.root)
            store.commit([Write("meta", b"settings", settings)])
            workshop = self._open(kept)
            self._serve(store, log, identity, kept, workshop, transport, front)
        finally:
            front.close()
            transport.close()

    def _receive(self, batch: list[Inbound]) -> None:
        if self._knocker is not None:
            for item in batch:
                self._knocker.inbox.put(item)
        else:
            self._driver.receive(batch)

    # Getting a run

    def _found(self, store: Store, run_file: RunFile, identity: Identity) -> Membership:
        self._tell("loading model and data")
        workshop = Workshop.open(run_file.model, run_file.data, self._plan.node, self._plan.root)
        self._workshop = workshop
        return bootstrap.found(
            store, run_file, identity, workshop.model_digest(), workshop.data_digest()
        )

    _workshop: Workshop | None = None

    def _join(
        self,
        store: Store,
        invite: Invite,
        identity: Identity,
        transport: ZmqTransport,
        addresses: Sequence[str],
    ) -> Membership:
        card = bootstrap.next_card(store, invite.run, identity, addresses)
        self._knocker = Knocker(invite, card, transport)
        try:
            welcome = self._knocker.knock(self._plan.wait_s, self._tell)
        finally:
            self._knocker = None
        for contact in invite.contacts:
            transport.set_peer(contact.peer, contact.addresses)
        return bootstrap.accept(store, invite, welcome)

    def _open(self, kept: Membership) -> Workshop:
        manifest = kept.manifest
        workshop = self._workshop
        if workshop is None:
            if manifest.data.private and not self._plan.node.data:
                raise ConfigError(
                    "the run trains on private data, and nobody but you may say which",
                    "pass --data with the place of yours",
                )
            self._tell("loading model and data")
            workshop = Workshop.open(
                manifest.model, manifest.data, self._plan.node, self._plan.root
            )
            workshop.check(manifest)
        return workshop

    # Running

    def _serve(
        self,
        store: Store,
        log: EventLog,
        identity: Identity,
        kept: Membership,
        workshop: Workshop,
        transport: ZmqTransport,
        front: Front,
    ) -> None:
        plan, manifest, run = self._plan, kept.manifest, kept.run
        rules = manifest.rules.rules()
        trainer = workshop.trainer(run, manifest.method)
        founders = (PeerId(bytes.fromhex(manifest.founder)),)
        judge = Judge(run, rules, identity, trainer.method.weigh)
        attachments = Attachments(plan.home, store)
        saved = restore(store, Mark(0, Hash(run), 0, Roster(founders)))
        metrics = Metrics()
        stats = Stats(trainer.method.weigh, metrics)
        peer = Peer(
            run,
            rules,
            identity,
            founders,
            kept.raw,
            judge,
            os.urandom(16),
            now_ms(),
            saved,
            relay_limits=RelayLimits(plan.node.relay_bytes_per_s),
        )

        def progress(what: str, done: int, total: int) -> None:
            stats.activity = f"{what} {done}/{total}"
            self._tell(stats.activity)

        def send(to: PeerId, message: Message) -> None:
            transport.send(to, encode(message))

        place = Place(run, identity.peer, founders, rules)
        watcher = NodeWatcher(log, stats, metrics, self._tell)
        snapshots = Snapshots(plan.home, store, rules.snapshot_every)

        def merged(seconds: float) -> None:
            metrics.observe("peer_apply_seconds", seconds)

        post, fail = self._driver.post, self._driver.fail
        reports = Reports(post, send, watcher.note, fail, progress, merged)
        worker = TrainingWorker(trainer, place, store, snapshots, attachments, reports)
        donor = Donor(attachments, snapshots, send, post, fail, plan.node.upload_mbit * 125_000)
        observed = ObservedWorker(worker, stats, log)
        prober = NodeProber(post, identity_keys(store.identity()))
        port = TransportPort(transport)
        shell = Shell(peer, port, store, observed, donor, watcher, prober)
        card = bootstrap.next_card(store, run, identity, front.addresses())
        status = _Status(
            self,
            peer,
            stats,
            transport,
            kept,
            identity,
            workshop,
            prober,
            front.bound,
            card.addresses,
            snapshots,
            donor,
        )

        def each_second() -> None:
            status.count_traffic()
            if front.addresses() != status.addresses:
                card = bootstrap.next_card(store, run, identity, front.addresses())
                status.addresses = card.addresses
                post(MoveAsked(card))

        cards = tuple(card for card in saved_cards(store) if card.peer != identity.peer)
        for known in cards:
            transport.set_peer(known.peer, known.addresses)
        self._driver.post(Started(card, cards, kept.token, bootstrap.sponsor(store)))
        worker.start()
        donor.start()
        front.keep()
        where = ", ".join(card.addresses) or "no address"
        self._tell(f"peer {short(identity.peer)} is up on {where}")
        endpoint = _endpoint(plan.node, metrics)
        try:
            uvloop.run(self._loop(peer, shell, watcher, stats, status, each_second))
        except UserError:
            raise
        except Exception as error:
            log.error("crash", error=repr(error), story=list(peer.story))
            raise
        finally:
            if endpoint is not None:
                endpoint.close()
            donor.close()
            worker.close(_CLOSE_S)

    async def _loop(
        self,
        peer: Peer,
        shell: Shell,
        watcher: NodeWatcher,
        stats: Stats,
        status: "_Status",
        each_second: Callable[[], None],
    ) -> None:
        control = ControlServer(self._plan.home, status.answer)
        await control.start()
        try:
            self._offer_invite(status)
            halt = await self._driver.run(peer, shell, watcher, stats, each_second)
            if not halt.clean:
                hint = "give each process a home of its own; more in events.jsonl"
                raise HaltedError(f"this peer stopped: {halt.reason}", hint)
        finally:
            await control.close()

    def _offer_invite(self, status: "_Status") -> None:
        path = self._plan.invite_file
        if path is None:
            return
        try:
            write_invite(path, status.invite(self._plan.invite_days))
        except InviteError as error:
            self._tell(f"no invite was written: {error.message}; {error.hint}")

    def stop(self) -> None:
        self._driver.post(StopAsked())

    @property
    def uptime_s(self) -> float:
        return time.monotonic() - self._started_s

    @property
    def home(self) -> Path:
        return self._plan.home


class _Status:
    """Answers the command line's questions."""

    def __init__(
        self,
        node: Node,
        peer: Peer,
        stats: Stats,
        transport: ZmqTransport,
        kept: Membership,
        identity: Identity,
        workshop: Workshop,
        prober: NodeProber,
        bound: tuple[str, ...],
        addresses: tuple[str, ...],
        snapshots: Snapshots,
        donor: Donor,
    ) -> None:
        self.addresses, self._bound, self._prober = addresses, bound, prober
        self._snapshots, self._donor = snapshots, donor
        self._node, self._peer, self._stats = node, peer, stats
        self._transport, self._kept, self._identity = transport, kept, identity
        self._workshop = workshop

    def answer(self, request: dict[str, Any]) -> dict[str, Any] | Awaitable[dict[str, Any]]:
        match request["do"]:
            case "status":
                return self.status()
            case "invite":
                return {"invite": self.invite(float(request["days"]))}
            case "doctor":
                return self.examine()
            case "leave":
                self._node.stop()
                return {"leaving": True}
            case other:
                raise ValueError(f"unknown request {other!r}")

    def invite(self, days: float) -> str:
        """Raises InviteError."""
        if not 0 < days <= 3650:
            raise InviteError("an invite lasts more than 0 and at most 3650 days", "pass --days 7")
        expires_s = int(time.time() + days * 86_400)
        token = mint_token(self._identity, self._kept.run, expires_s, os.urandom(8))
        contacts = [Contact(self._identity.peer, self.addresses)]
        for member in self._peer.membership.others_up():
            addresses = self._peer.card_addresses(member)
            if addresses and len(contacts) < _INVITE_CONTACTS:
                contacts.append(Contact(member, addresses))
        reachable = tuple(contact for contact in contacts if contact.addresses)
        if not reachable:
            raise InviteError(
                "no member of this run that is up can be dialled",
                "pass --listen tcp://0.0.0.0:7700, or ask a member that can be dialled",
            )
        return encode_invite(Invite(self._kept.run, self._kept.door, reachable, token))

    async def examine(self) -> dict[str, Any]:
        """Asks those that are reached without a relay, connected ones first."""
        paths = self._transport.counters().paths
        up = [member for member in self._peer.membership.others_up() if self._is_alive(member)]
        direct = [member for member in up if self._peer.relay_of(member) is None]
        asked = sorted(direct or up, key=lambda member: (member not in paths, member))
        examined = await examine(self._prober, asked, dialled=bool(self.addresses))
        places = {"bound": list(self._bound), "addresses": list(self.addresses)}
        return {**places, **examined.as_json()}

    def _is_alive(self, peer: PeerId) -> bool:
        return self._peer.membership.health(peer) is Health.ALIVE

    def _reached(self, peer: PeerId, paths: Mapping[bytes, str]) -> dict[str, str | None]:
        """Over whose connection, or through whom; "unknown" before there was any."""
        if peer == self._identity.peer:
            return {"reached": "self", "through": None}
        relay = self._peer.relay_of(peer)
        if relay is not None:
            return {"reached": "relay", "through": relay.hex()}
        way = {"dial": "direct", "route": "inbound"}.get(paths.get(peer, ""), "unknown")
        return {"reached": way, "through": None}

    def count_traffic(self) -> None:
        counters = self._transport.counters()
        total = counters.total
        self._stats.traffic(total.bytes_in, total.bytes_out)
        members: dict[str, float] = {}
        for peer in self._peer.ledger.head.roster.members:
            name = self._health(peer)
            members[name] = members.get(name, 0) + 1
        metrics = self._stats.metrics
        metrics.set_all("peer_members", members)
        metrics.set("peer_bytes", total.bytes_in, "in")
        metrics.set("peer_bytes", total.bytes_out, "out")
        metrics.set("peer_messages", total.messages_in, "in")
        metrics.set("peer_messages", total.messages_out, "out")
        metrics.set("peer_refused_handshakes", counters.refused_handshakes)
        metrics.set_all("peer_drops", {str(cause): n for cause, n in counters.dropped.items()})
        metrics.set_all("peer_disk_bytes", disk_by_part(self._node.home))
        metrics.set("peer_chunk_bytes", self._donor.fetched_bytes, "in")
        metrics.set("peer_chunk_bytes", self._donor.served_bytes, "out")
        metrics.set("peer_damaged_chunks", self._donor.damaged)

    def _health(self, peer: PeerId) -> str:
        return Health(self._peer.membership.health(peer)).name.lower()

    def status(self) -> dict[str, Any]:
        peer, manifest = self._peer, self._kept.manifest
        head = peer.ledger.head
        counters = self._transport.counters()
        total, disk = counters.total, disk_by_part(self._node.home)
        return {
            "name": manifest.name,
            "run": self._kept.run.hex(),
            "peer": self._identity.peer.hex(),
            "pid": os.getpid(),
            "home": str(self._node.home),
            "uptime_s": round(self._node.uptime_s, 1),
            "addresses": list(self.addresses),
            "device": str(self._workshop.device),
            "method": manifest.method.name,
            "quorum": manifest.rules.quorum,
            "member": peer.is_member,
            "caught_up": peer.caught_up,
            "round": head.round,
            "entry": head.hash.hex(),
            "work": head.weight,
            "members": [
                {
                    "peer": member.hex(),
                    "health": self._health(member),
                    "addresses": list(peer.card_addresses(member)),
                    **self._reached(member, counters.paths),
                }
                for member in head.roster.members
            ],
            "bytes_in": total.bytes_in,
            "bytes_out": total.bytes_out,
            "messages_in": total.messages_in,
            "messages_out": total.messages_out,
            "dropped": {str(cause): n for cause, n in counters.dropped.items() if n},
            "relayed": peer.relay_counts.relayed,
            "relayed_bytes": peer.relay_counts.relayed_bytes,
            "relay_refused": {
                why.name.lower(): n for why, n in peer.relay_counts.refused.items() if n
            },
            "refused_handshakes": counters.refused_handshakes,
            "faults": sum(peer.faults.values()),
            "disk_bytes": sum(disk.values()),
            "disk": disk,
            "snapshot_every": manifest.rules.snapshot_every,
            "snapshots": self._snapshots.rounds(),
            "snapshot_bytes": disk["snapshots"],
            "chunks_served_bytes": self._donor.served_bytes,
            "chunks_fetched_bytes": self._donor.fetched_bytes,
            "damaged_chunks": self._donor.damaged,
            **self._stats.as_json(),
        }


def _door_of(plan: Plan) -> bytes:
    if plan.invite is None:
        raise ConfigError(
            f"{plan.home} belongs to no run yet", "found one with `peer start`, or `peer join` one"
        )
    return plan.invite.door


def write_invite(path: Path, invite: str) -> None:
    """Whole or not at all, and only for its owner's eyes: an invite lets its reader in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(invite + "\n")
    temporary.chmod(0o600)
    temporary.replace(path)


def _endpoint(node: NodeConfig, metrics: Metrics) -> Endpoint | None:
    if node.metrics is None:
        return None
    host, _, port = node.metrics.rpartition(":")
    if not port.isdigit():
        raise ConfigError(f"node.metrics = {node.metrics!r} is no host:port", "try 127.0.0.1:9100")
    return Endpoint(metrics, lambda: (True, "up"), host=host or "127.0.0.1", port=int(port))
