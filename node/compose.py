"""The one place that knows every class: a peer, put together and run to its end."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import uvloop

from node import bootstrap
from node.attachments import Attachments
from node.bootstrap import Knocker, Membership
from node.box.place import place_of
from node.config import NodeConfig, RunFile
from node.control import ControlServer
from node.curve import identity_keys
from node.donor import Donor
from node.driver import Driver, NodeWatcher, ObservedWorker, TransportPort, now_ms
from node.errors import ConfigError, UserError
from node.following import Reports, Setting
from node.front import Front, advertised, check, port_map
from node.gossip.port import GossipPort
from node.local import LocalState
from node.methods.base import MethodTable
from node.metrics import Endpoint, Metrics
from node.perform import Shell
from node.prober import NodeProber
from node.snapshots import Snapshots
from node.stats import Stats
from node.status import InviteError, Running, Status
from node.store import Store
from node.telemetry import EventLog
from node.training.data_config import DataConfig
from node.training.model_config import AnyModel
from node.transport_zmq import Inbound, ZmqTransport
from node.worker import Trainer, TrainingWorker
from protocol.codec import encode
from protocol.entries import Card
from protocol.events import MoveAsked, Started, StopAsked
from protocol.identity import Identity
from protocol.ids import Hash, PeerId, short
from protocol.invites import Invite
from protocol.ledger import Judge, Mark, Write
from protocol.messages import Message
from protocol.peer import Peer
from protocol.relaying import RelayLimits
from protocol.restore import restore, saved_cards
from protocol.roster import Roster
from protocol.rules import Rules

if TYPE_CHECKING:
    from node.box.leader import Box
    from node.build import Workshop

INVITE_DAYS: Final = 7
_CLOSE_S: Final = 30.0

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


@dataclass(frozen=True, slots=True)
class _Base:
    """What a peer stands on before it runs."""

    store: Store
    log: EventLog
    identity: Identity
    kept: Membership
    transport: ZmqTransport
    front: Front

    @property
    def rules(self) -> Rules:
        return self.kept.manifest.rules.rules()

    @property
    def founders(self) -> tuple[PeerId, ...]:
        return (PeerId(bytes.fromhex(self.kept.manifest.founder)),)


@dataclass(frozen=True, slots=True)
class _Parts:
    """What runs."""

    peer: Peer
    stats: Stats
    watcher: NodeWatcher
    snapshots: Snapshots
    worker: TrainingWorker
    donor: Donor
    prober: NodeProber
    gossip: GossipPort
    shell: Shell


class Node:
    """One peer's process."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._tell = plan, plan.tell
        self._started_s = time.monotonic()
        self._driver = Driver()
        self._knocker: Knocker | None = None
        self._workshop: Workshop | None = None
        self._box: Box | None = None

    def run(self) -> None:
        """Until it is asked to stop. Raises UserError for what a person must mend.

        Of a peer's processes only the first is a node: in the others it does not return.
        """
        place = place_of(self._plan.node)
        if place.rank:
            from node.box.rank import follow

            follow(place.rank, place.processes, None)
        home = self._plan.home
        try:
            with Store.open(home) as store, EventLog(home / "events.jsonl") as log:
                self._run(store, log)
        finally:
            if self._box is not None:
                self._box.close()

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
            if self._workshop is None:
                self._check_data(kept)
            settings = bootstrap.keep_settings(plan.node, plan.root)
            store.commit([Write("meta", b"settings", settings)])
            self._serve(_Base(store, log, identity, kept, transport, front))
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
        workshop = self._load(run_file.model, run_file.data)
        return bootstrap.found(
            store,
            run_file,
            identity,
            workshop.model_digest(),
            workshop.data_digest(),
            workshop.attaches(run_file.method),
        )

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

    def _check_data(self, kept: Membership) -> None:
        """What can be said before anything is loaded."""
        if kept.manifest.data.private and not self._plan.node.data:
            raise ConfigError(
                "the run trains on private data, and nobody but you may say which",
                "pass --data with the place of yours",
            )

    def _open(self, kept: Membership) -> "Workshop":
        manifest = kept.manifest
        if self._workshop is not None:
            return self._workshop
        workshop = self._load(manifest.model, manifest.data)
        workshop.check(manifest)
        return workshop

    def _load(self, model: AnyModel, data: DataConfig) -> "Workshop":
        """Seconds go by while torch alone is imported: who joins is up and fetching by then."""
        self._tell("loading model and data")
        from node.build import Workshop, open_box

        node, root = self._plan.node, self._plan.root
        self._box = open_box(node, self._driver.fail)
        self._workshop = Workshop.open(model, data, node, root, self._box)
        return self._workshop

    # Running

    def _serve(self, base: _Base) -> None:
        parts = self._put_together(base)
        card = bootstrap.next_card(base.store, base.kept.run, base.identity, base.front.addresses())
        status = Status(self._running(base, parts), card.addresses, self.stop)
        endpoint = _endpoint(self._plan.node, parts.stats.metrics)
        self._introduce(base, card)
        parts.gossip.begin()
        parts.worker.start()
        parts.donor.start()
        base.front.keep()
        where = ", ".join(card.addresses) or "no address"
        self._tell(f"peer {short(base.identity.peer)} is up on {where}")
        try:
            uvloop.run(self._loop(base, parts, status))
        except UserError:
            raise
        except Exception as error:
            base.log.error("crash", error=repr(error), story=list(parts.peer.story))
            raise
        finally:
            if endpoint is not None:
                endpoint.close()
            parts.gossip.close(_CLOSE_S)
            parts.donor.close()
            parts.worker.close(_CLOSE_S)

    def _put_together(self, base: _Base) -> _Parts:
        plan, transport, post = self._plan, base.transport, self._driver.post
        method: MethodTable = base.kept.manifest.method
        weigh = method.weigh
        attachments = Attachments(plan.home, base.store)  # first: it forgets what the disk lost
        peer = self._make_peer(base, weigh)
        stats = Stats(weigh, Metrics())

        def send(to: PeerId, message: Message) -> None:
            transport.send(to, encode(message))

        watcher = NodeWatcher(base.log, stats, stats.metrics, self._tell)
        snapshots = Snapshots(plan.home, base.store, base.rules.snapshot_every)
        reports = self._reports(stats, watcher, send)
        setting = Setting(base.kept.run, base.identity.peer, base.founders, base.rules)
        gossip, fail = GossipPort(), self._driver.fail
        make = self._trainer(base, peer, gossip, attachments, watcher)
        worker = TrainingWorker(
            make, setting, base.store, snapshots, attachments, LocalState(plan.home), reports
        )
        cap = plan.node.upload_mbit * 125_000
        donor = Donor(attachments, snapshots, send, post, fail, cap)
        prober = NodeProber(post, identity_keys(base.store.identity()))
        observed = ObservedWorker(worker, stats, base.log)
        port = TransportPort(transport)
        shell = Shell(peer, port, base.store, observed, donor, watcher, prober, gossip)
        return _Parts(peer, stats, watcher, snapshots, worker, donor, prober, gossip, shell)

    def _trainer(
        self,
        base: _Base,
        peer: Peer,
        gossip: GossipPort,
        attachments: Attachments,
        watcher: NodeWatcher,
    ) -> Callable[[], Trainer]:
        """Others wait for the work of a member that is up, so it loads first. A newcomer reads the
        ledger and fetches the state meanwhile.
        """
        kept = base.kept

        def make() -> Trainer:
            trainer = self._open(kept).trainer(kept.run, kept.manifest.method)
            if kept.manifest.method.gossips:
                trainer = self._let_gossip(trainer, base, peer, gossip, attachments, watcher)
            return trainer

        if not peer.is_member:
            return make
        made = make()
        return lambda: made

    def _let_gossip(
        self,
        trainer: Trainer,
        base: _Base,
        peer: Peer,
        port: GossipPort,
        attachments: Attachments,
        watcher: NodeWatcher,
    ) -> Trainer:
        """The model gets a thread of its own; for the ledger there is what that thread tells."""
        from node.gossip.checkpoints import Checkpoints
        from node.gossip.gossiper import Learner, TrainingGossiper

        method, driver = trainer.method, self._driver
        assert isinstance(method, Checkpoints), "what gossips has checkpoints for rounds"
        is_new = base.identity.peer in base.founders and not peer.ledger.head.round
        live = TrainingGossiper(
            Learner(method, trainer.heldout, needs_model=not is_new),
            self._plan.home,
            base.kept.run,
            base.identity.peer,
            base.rules,
            attachments,
            lambda: peer.ledger.head.round,
            driver.post,
            watcher.note,
            driver.fail,
            self._tell,
        )
        port.attach(live)
        return replace(trainer, heldout=method.told_heldout)

    def _make_peer(self, base: _Base, weigh: Callable[[bytes], int]) -> Peer:
        run = base.kept.run
        return Peer(
            run,
            base.rules,
            base.identity,
            base.founders,
            base.kept.raw,
            Judge(run, base.rules, base.identity, weigh),
            os.urandom(16),
            now_ms(),
            restore(base.store, Mark(0, Hash(run), 0, Roster(base.founders))),
            relay_limits=RelayLimits(self._plan.node.relay_bytes_per_s),
        )

    def _reports(
        self, stats: Stats, watcher: NodeWatcher, send: Callable[[PeerId, Message], None]
    ) -> Reports:
        def progress(what: str, done: int, total: int) -> None:
            stats.activity = f"{what} {done}/{total}"
            self._tell(stats.activity)

        def merged(seconds: float) -> None:
            stats.metrics.observe("peer_apply_seconds", seconds)

        return Reports(self._driver.post, send, watcher.note, self._driver.fail, progress, merged)

    def _running(self, base: _Base, parts: _Parts) -> Running:
        return Running(
            self._plan.home,
            self._started_s,
            base.identity,
            base.kept,
            self._device,
            self._processes,
            base.front.bound,
            parts.peer,
            base.transport,
            parts.prober,
            parts.snapshots,
            parts.donor,
            parts.stats,
            parts.gossip,
            self._driver.post,
        )

    def _device(self) -> str:
        return "unknown" if self._workshop is None else str(self._workshop.device)

    def _processes(self) -> int | None:
        if self._workshop is None:
            return None
        return 1 if self._box is None else self._box.processes

    def _introduce(self, base: _Base, card: Card) -> None:
        """Everybody whom the disk knows, to the transport and to the peer."""
        known = tuple(one for one in saved_cards(base.store) if one.peer != base.identity.peer)
        for other in known:
            base.transport.set_peer(other.peer, other.addresses)
        sponsor = bootstrap.sponsor(base.store)
        self._driver.post(Started(card, known, base.kept.token, sponsor))

    async def _loop(self, base: _Base, parts: _Parts, status: Status) -> None:
        def each_second() -> None:
            status.count_traffic()
            self._watch_addresses(base, status)

        control = ControlServer(self._plan.home, status.answer)
        await control.start()
        try:
            self._offer_invite(status)
            halt = await self._driver.run(
                parts.peer, parts.shell, parts.watcher, parts.stats, each_second
            )
            if not halt.clean:
                hint = "give each process a home of its own; more in events.jsonl"
                raise HaltedError(f"this peer stopped: {halt.reason}", hint)
        finally:
            await control.close()

    def _watch_addresses(self, base: _Base, status: Status) -> None:
        addresses = base.front.addresses()
        if addresses != status.addresses:
            card = bootstrap.next_card(base.store, base.kept.run, base.identity, addresses)
            status.addresses = card.addresses
            self._driver.post(MoveAsked(card))

    def _offer_invite(self, status: Status) -> None:
        path = self._plan.invite_file
        if path is None:
            return
        try:
            write_invite(path, status.invite(self._plan.invite_days))
        except InviteError as error:
            self._tell(f"no invite was written: {error.message}; {error.hint}")

    def stop(self) -> None:
        self._driver.post(StopAsked())


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
