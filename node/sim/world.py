"""Whole swarms in one process: a heap of events under a virtual clock.

Everything follows from the seed: names, delays, work times, faults. Every message passes through
the real codec, every effect through the real `perform`. A peer that crashes loses all but its disk.
As with the real transport, a process hears from those whose cards it has, and from guests.
"""

import heapq
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from node.perform import Shell, perform
from node.ports import NoGossiper
from node.sim.blobs import SimBlob, SimBlobs
from node.sim.gossiping import Gossiping, StubGossiper
from node.sim.network import Link, Network
from node.sim.stub import Commits, Payloads, Snapshots, StubWorker
from protocol.codec import decode, encode
from protocol.effects import Halt, Note
from protocol.entries import Card, Token, card_bytes, token_bytes
from protocol.events import Event, Received, Started, StopAsked, Tick
from protocol.ids import Hash, Millis, PeerId, RunId, digest
from protocol.ledger import Judge, Mark, Write
from protocol.messages import Hello, Message, Welcome
from protocol.peer import Peer
from protocol.relaying import RelayLimits
from protocol.restore import TABLES, restore, saved_cards
from protocol.roster import Roster
from protocol.rules import Rules

_DAY_S: Final = 86_400
_GUEST: Final = b"guest "
_KNOCK_MS: Final = 1_000
_NAMED_BY_CONTENT: Final = ("entries", "rosters")


class StubKeys:
    """Signatures that cost one hash: they catch what was altered, not who could forge them."""

    def __init__(self, peer: PeerId) -> None:
        self.peer = peer

    def sign(self, message: bytes) -> bytes:
        return digest("stub signature", self.peer, message) * 2

    def verify(self, peer: PeerId, message: bytes, signature: bytes) -> bool:
        return signature == digest("stub signature", peer, message) * 2

    def is_peer(self, peer: PeerId) -> bool:
        return True


class CrashError(Exception):
    """The simulated process ends here."""


class SimDisk:
    """Records that outlive a crash. `before` and `after` are called at each commit, and may raise
    CrashError.

    Records that are named by their content are held once for all disks that get the same `shared`.
    """

    def __init__(self, shared: dict[bytes, bytes] | None = None) -> None:
        self._tables: dict[str, dict[bytes, bytes]] = {table: {} for table in TABLES}
        self._shared = {} if shared is None else shared
        self.before: Callable[[], None] = lambda: None
        self.after: Callable[[], None] = lambda: None
        self.commits = 0

    def commit(self, writes: Sequence[Write]) -> None:
        self.before()
        for write in writes:
            if write.value is None:
                self._tables[write.table].pop(write.key, None)
                continue
            value = write.value
            if write.table in _NAMED_BY_CONTENT:
                known = self._shared.setdefault(write.key, value)
                value = known if known == value else value
            self._tables[write.table][write.key] = value
        self.commits += 1
        self.after()

    def get(self, table: str, key: bytes) -> bytes | None:
        return self._tables[table].get(key)

    def scan(self, table: str, first: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        records = self._tables[table]
        for key in sorted(key for key in records if key >= first):
            yield key, records[key]


@dataclass(slots=True)
class SimPeer:
    """One machine: its disk is always there, its process only while it is up."""

    name: str
    keys: StubKeys
    disk: SimDisk
    slowness: float  # 1: works for exactly the window
    token: Token | None
    contacts: tuple[Card, ...]
    replay_ms_per_round: float | None = None  # None: in no time
    loads_ms: float = 0.0  # a newcomer's model and data
    sequence: int = 0
    shell: Shell | None = None
    worker: StubWorker | None = None
    gossiper: StubGossiper | None = None  # where peers gossip
    life: int = 0  # counts starts, so that events for an earlier process are dropped
    paused_until_ms: float = 0.0
    wake_ms: float | None = None
    wants_up: bool = True
    halted: Halt | None = None
    made: list[bytes] = field(default_factory=list)  # units of every life
    blobs: dict[Hash, SimBlob] = field(default_factory=dict)  # on its disk
    clock_ms: int = 0  # how far its clock is ahead of the world's
    commit_ms: float = 0.0  # how long its disk takes for a commit
    commits_before: int = 0  # made before the event that is being handled
    links: set[PeerId] = field(default_factory=set)  # of its process: all others are refused
    is_welcome: bool = False  # who invited it has let it in, once

    @property
    def lag_ms(self) -> float:
        """How much later it is for this peer, after the commits of the event at hand."""
        if not self.commit_ms:
            return 0.0
        return self.commit_ms * (self.disk.commits - self.commits_before)

    @property
    def id(self) -> PeerId:
        return self.keys.peer

    @property
    def peer(self) -> Peer:
        assert self.shell is not None, f"{self.name} is down"
        return self.shell.peer

    @property
    def up(self) -> bool:
        return self.shell is not None

    @property
    def place(self) -> tuple[int, Hash]:
        """Where the state stands: the open round, and the entry before it."""
        assert self.worker is not None, f"{self.name} is down"
        return self.worker.place

    @property
    def state(self) -> int:
        """The digest of what has been merged."""
        assert self.worker is not None, f"{self.name} is down"
        return self.worker.state


class World:
    """A swarm. Peers are called p0, p1, ...; `founders` of them are members from the start, the
    rest join.
    """

    def __init__(
        self,
        peers: int,
        seed: int,
        rules: Rules | None = None,
        link: Link | None = None,
        founders: int | None = None,
        work_ms: Callable[[random.Random, float], float] | None = None,
        payloads: Payloads | None = None,
        snapshots: Snapshots | None = None,
        own_links: Sequence[Link] = (),  # one for each peer; none: all have `link`
        on_frame: Callable[[bytes], None] = lambda frame: None,
        relay_limits: RelayLimits | None = None,
        gossiping: Gossiping | None = None,
    ) -> None:
        self.gossiping = gossiping
        self.chance = random.Random(seed)
        self.rules = rules or Rules(window_ms=1_000, deadline_ceiling_ms=3_000)
        self._relay_limits = relay_limits
        self.network = Network(link or Link(), self.chance)
        self.now_ms = 0.0
        self.events = 0
        self.notes: list[tuple[float, str, Note]] = []
        self.keep_notes = True
        self.counts: Counter[str] = Counter()  # notes by event, kept or not
        # Who counted a fault, against whom, and what it says.
        self.blamed: list[tuple[SimPeer, PeerId, str]] = []
        self.on_event: Callable[[SimPeer], None] = lambda peer: None
        self.on_frame = on_frame
        self.on_note: Callable[[SimPeer, Note], None] = lambda peer, note: None
        self._heap: list[tuple[float, int, SimPeer, int, Event | Callable[[], None] | None]] = []
        self._sequence = 0
        self._work_ms = work_ms or (lambda chance, window: window * (0.9 + 0.2 * chance.random()))
        self.payloads = payloads or Payloads()
        self.snapshots = snapshots or Snapshots()
        self.commits = Commits(self.payloads)
        self._records: dict[bytes, bytes] = {}
        self._decode = lru_cache(maxsize=4096)(decode)
        self._manifest = b"simulated %d" % seed
        self.run = RunId(digest("run", self._manifest))
        names = [f"p{number}" for number in range(peers)]
        ids = {name: self.id_of(name) for name in names}
        assert len(own_links) in (0, peers), "one link for each peer, or none"
        self.network.own_links = dict(zip(ids.values(), own_links, strict=False))
        first = names[: founders or peers]
        self._founders = [ids[name] for name in first]
        self.judge = Judge(self.run, self.rules, StubKeys(self._founders[0]), self.payloads.weigh)
        self.peers: dict[str, SimPeer] = {}
        self.by_id: dict[PeerId, SimPeer] = {}
        cards = tuple(self._card(StubKeys(ids[name]), 0) for name in first)
        for name in names:
            token = None if name in first else self._token()
            self._add(name, ids[name], token, cards if name in first else cards[:1])
        for peer in self.peers.values():
            self.start(peer)

    # Building

    def _add(self, name: str, id: PeerId, token: Token | None, contacts: tuple[Card, ...]) -> None:
        slowness = 1.0
        peer = SimPeer(name, StubKeys(id), SimDisk(self._records), slowness, token, contacts)
        self.peers[name] = self.by_id[id] = peer

    def id_of(self, name: str) -> PeerId:
        return PeerId(digest("stub peer", self.run, name.encode()))

    def join(self, name: str, contact: str = "p0") -> SimPeer:
        """A new machine joins with an invite from `contact`."""
        id = self.id_of(name)
        card = self._card(self.peers[contact].keys, 0)
        self._add(name, id, self._token(), (card,))
        self.start(self.peers[name])
        return self.peers[name]

    def _card(self, keys: StubKeys, sequence: int) -> Card:
        nat = self.network.link_of(keys.peer).nat
        addresses = () if nat else (f"sim://{keys.peer[:4].hex()}",)
        signed = card_bytes(self.run, keys.peer, sequence, addresses)
        return Card(keys.peer, sequence, addresses, keys.sign(signed))

    def _token(self) -> Token:
        minter = StubKeys(self._founders[0])
        nonce = self.chance.randbytes(8)
        signed = token_bytes(self.run, minter.peer, _DAY_S, nonce)
        return Token(minter.peer, _DAY_S, nonce, minter.sign(signed))

    # Processes

    def start(self, who: SimPeer) -> None:
        """Start, or start again, with what is on disk."""
        assert not who.up
        self.network.reach.restarted(who.id)
        who.life += 1
        who.sequence += 1
        who.wants_up, who.halted = True, None
        who.links.clear()
        genesis = Mark(0, Hash(self.run), 0, Roster(self._founders))
        saved = restore(who.disk, genesis)
        seed = b"%b %d" % (who.id, who.life)
        peer = Peer(
            self.run,
            self.rules,
            who.keys,
            self._founders,
            self._manifest,
            self.judge,
            seed,
            self._clock(who),
            saved,
            self._decode,
            self._relay_limits,
        )
        life = who.life

        def later(delay_ms: float, event: Event) -> None:
            self._push(self.now_ms + who.lag_ms + delay_ms, who, life, event)

        def call_later(delay_ms: float, call: Callable[[], None]) -> None:
            self._push(self.now_ms + delay_ms, who, life, call)

        def send(to: bytes, message: Message) -> None:
            self.send(who, to, encode(message))

        worker = StubWorker(
            who.id,
            who.disk,
            self.commits,
            self.chance,
            lambda: self._work_ms(self.chance, self.rules.window_ms * who.slowness),
            later,
            self.rules,
            self.snapshots,
            who.blobs,
            send,
            call_later,
            Roster(self._founders),
        )
        worker.replay_ms_per_round = who.replay_ms_per_round
        worker.loads_ms = who.loads_ms
        who.worker = worker
        who.shell = Shell(
            peer,
            _SimTransport(self, who),
            who.disk,
            worker,
            SimBlobs(who.blobs, who.disk, send, later),
            _SimWatcher(self, who),
            gossiper=self._gossiper(who, later, call_later) or NoGossiper(),
        )
        who.wake_ms = None
        known = saved_cards(who.disk) or who.contacts
        card = self._card(who.keys, who.sequence)
        sponsor = who.contacts[0].peer if who.token is not None else None
        self._step(who, Started(card, known, who.token, sponsor))
        if who.token is not None and not who.is_welcome:
            self._knock(who, encode(Hello(card, who.token)))

    def _knock(self, who: SimPeer, hello: bytes) -> None:
        """As a guest of who invited it, until that one lets it in: nobody knows it before."""
        if who.is_welcome:
            return
        door = self.by_id[who.contacts[0].peer]
        for at_ms in self.network.arrivals(who.id, door.id, len(hello), self.now_ms):
            self._push(at_ms, door, -1, Received(_GUEST + who.id, hello, 0))
        self._push(self.now_ms + _KNOCK_MS, who, who.life, lambda: self._knock(who, hello))

    def _gossiper(
        self,
        who: SimPeer,
        later: Callable[[float, Event], None],
        call_later: Callable[[float, Callable[[], None]], None],
    ) -> StubGossiper | None:
        if self.gossiping is None:
            return None
        mass = self.mass_at_first(who)
        who.gossiper = StubGossiper(
            who.id,
            self.run,
            self.gossiping,
            who.disk,
            mass,
            later,
            call_later,
            self.chance.random,
        )
        return who.gossiper

    def mass_at_first(self, who: SimPeer) -> list[int]:
        """Of a peer that gossips, before its first exchange."""
        assert self.gossiping is not None
        numbers = range(self.gossiping.stretches)
        return [int.from_bytes(digest("mass", who.id, bytes([n]))[:5], "big") for n in numbers]

    def crash(self, who: SimPeer) -> None:
        """kill -9."""
        if who.worker is not None:
            who.made += who.worker.made
        who.shell = who.worker = who.gossiper = None
        who.life += 1
        self.network.reach.restarted(who.id)

    def stop(self, who: SimPeer) -> None:
        """Ctrl-C."""
        if who.up:
            self._step(who, StopAsked())

    def pause(self, who: SimPeer, ms: float) -> None:
        """SIGSTOP for a while: events wait."""
        who.paused_until_ms = max(who.paused_until_ms, self.now_ms + ms)

    def suspend(self, who: SimPeer, ms: int) -> None:
        """The machine sleeps: events wait, and its clock stands still."""
        self.pause(who, ms)
        who.clock_ms -= ms
        self._reschedule(who)

    def jump(self, who: SimPeer, ms: int) -> None:
        """Its clock leaps ahead; or back, which a peer sees as standing still for so long."""
        who.clock_ms += ms
        self._reschedule(who)

    # Time

    def _clock(self, who: SimPeer) -> Millis:
        return Millis(int(self.now_ms) + who.clock_ms)

    def _push(
        self, at_ms: float, who: SimPeer, life: int, event: Event | Callable[[], None] | None
    ) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (at_ms, self._sequence, who, life, event))

    def send(self, who: SimPeer, to: bytes, data: bytes) -> None:
        """Nowhere, if it is nobody whom its process knows."""
        if to.startswith(_GUEST):
            guest = self.by_id[PeerId(to.removeprefix(_GUEST))]
            guest.is_welcome |= isinstance(self._decode(data), Welcome)
        elif to in who.links:
            self.post(who.id, PeerId(to), data)

    def post(self, sender: PeerId, to: PeerId, data: bytes) -> None:
        self.on_frame(data)
        receiver = self.by_id.get(to)
        now_ms = self.now_ms + self.by_id[sender].lag_ms
        for at_ms in self.network.arrivals(sender, to, len(data), now_ms):
            if receiver is not None:
                self._push(at_ms, receiver, -1, Received(sender, data, 0))

    def step(self) -> bool:
        """The next event; False when there is none."""
        while self._heap:
            at_ms, _, who, life, event = heapq.heappop(self._heap)
            self.now_ms = max(self.now_ms, at_ms)
            if not who.up or (life != -1 and life != who.life):
                continue
            if who.paused_until_ms > self.now_ms:
                self._push(who.paused_until_ms, who, life, event)
                continue
            if isinstance(event, Received) and not _is_let_in(who, event.source):
                self.counts["refused"] += 1
                continue
            if event is None:
                if who.wake_ms is None or who.wake_ms > self.now_ms:
                    continue
                who.wake_ms = None
                event = Tick()
            self._step(who, event)
            return True
        return False

    def _step(self, who: SimPeer, event: Event | Callable[[], None]) -> None:
        assert who.shell is not None
        self.events += 1
        who.commits_before = who.disk.commits
        try:
            if callable(event):
                event()
            else:
                perform(who.peer.handle(event, self._clock(who)), who.shell)
        except CrashError:
            self.crash(who)
        if who.commit_ms:
            self.pause(who, who.lag_ms)
            who.commits_before = who.disk.commits
        if who.halted is not None and who.up:
            self.crash(who)
            who.wants_up = False
        self._schedule(who)
        self.on_event(who)

    def _schedule(self, who: SimPeer) -> None:
        if not who.up:
            return
        wake = who.peer.wake_ms
        if wake is None:
            return
        wake_at = float(wake - who.clock_ms)
        if wake_at <= self.now_ms:
            wake_at = self.now_ms + 1
        if who.wake_ms is None or wake_at < who.wake_ms:
            who.wake_ms = wake_at
            self._push(wake_at, who, who.life, None)

    def _reschedule(self, who: SimPeer) -> None:
        """Its clock was changed, and with it the time at which it wants to be woken."""
        who.wake_ms = None
        self._schedule(who)

    def run_for(self, ms: float) -> None:
        end = self.now_ms + ms
        while self._heap and self._heap[0][0] <= end:
            self.step()
        self.now_ms = max(self.now_ms, end)

    def run_until(self, done: Callable[[], bool], most_ms: float) -> bool:
        """Step until `done()`, asked once a virtual second; False if `most_ms` pass first."""
        end = self.now_ms + most_ms
        while not done():
            if self.now_ms >= end:
                return False
            self.run_for(1_000)
        return True

    # Reading

    def up(self) -> list[SimPeer]:
        return [peer for peer in self.peers.values() if peer.up]

    def rounds(self) -> list[int]:
        return [who.peer.ledger.head.round for who in self.up()]

    def run_until_round(self, round: int, most_ms: float = 600_000) -> bool:
        return self.run_until(lambda: min(self.rounds(), default=0) >= round, most_ms)


class _SimTransport:
    def __init__(self, world: World, who: SimPeer) -> None:
        self._world, self._who = world, who

    def connect(self, card: Card) -> None:
        self._who.links.add(card.peer)

    def disconnect(self, peer: PeerId) -> None:
        self._who.links.discard(peer)

    def send(self, to: bytes, data: bytes) -> None:
        self._world.send(self._who, to, data)


def _is_let_in(who: SimPeer, source: bytes) -> bool:
    return source in who.links or source.startswith(_GUEST)


class _SimWatcher:
    def __init__(self, world: World, who: SimPeer) -> None:
        self._world, self._who = world, who

    def note(self, note: Note) -> None:
        self._world.counts[note.event] += 1
        if note.event == "fault":
            source = note.fields["peer"]
            assert isinstance(source, bytes)
            self._world.blamed.append((self._who, PeerId(source), str(note.fields["error"])))
        self._world.on_note(self._who, note)
        if self._world.keep_notes:
            self._world.notes.append((self._world.now_ms, self._who.name, note))

    def halt(self, halt: Halt) -> None:
        self._who.halted = halt
