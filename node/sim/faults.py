"""A bad world, drawn from a seed; then healing.

Loss, delays with and without a heavy tail, duplicates, crashes at any write, slow disks, pauses,
clocks that leap or stand still, splits, one-way cuts, peers that nobody can dial, memory that
fails, machines so slow at replaying that they fetch snapshots, and contributions with attachments.
"""

import random
from dataclasses import dataclass, replace

from node.sim.blobs import STATE_BYTES
from node.sim.network import Link
from node.sim.stub import Payloads
from node.sim.world import CrashError, SimPeer, World
from protocol.codec import CHUNK_BYTES
from protocol.rules import Quorum, Rules

_HIDDEN = (0, 0, 1, 1, 2, 3)
_LEAP_MS_MAX = 300_000
_REPLAY_MS = 300.0  # a round


@dataclass(frozen=True, slots=True)
class Weather:
    """How bad it is. Rates are per virtual second for the whole swarm, unless said otherwise."""

    peers: int
    link: Link
    crash: float
    crash_at_write: float  # chance per commit
    restart_after_ms: float
    pause: float
    split: float
    heal_after_ms: float
    cut: float = 0.0  # one way only
    leap: float = 0.0  # of a clock
    suspend: float = 0.0
    hidden: int = 0  # peers behind a NAT
    slow_disks: float = 0.0  # chance of each peer
    commit_ms: float = 0.0  # of a slow disk
    flip: float = 0.0  # of a bit in somebody's state
    snapshot_every: int = 50
    slow_replay: float = 0.0  # chance of each peer
    attached_bytes: int = 0  # to each contribution
    parts_max: int = 0  # that are summed by members of their own

    @classmethod
    def draw(cls, chance: random.Random, more: random.Random) -> "Weather":
        """`more`: for what was added later, so that the worlds of earlier seeds stay alike."""

        def some(most: float) -> float:
            """Often nothing, else anything up to `most`."""
            return 0.0 if chance.random() < 0.3 else most * chance.random()

        peers = chance.choice([1, 2, 3, 3, 4, 5, 5, 7, 8])
        return cls(
            peers=peers,
            link=Link(
                delay_ms=chance.choice([1.0, 20.0, 150.0]),
                jitter_ms=chance.choice([0.0, 20.0, 400.0]),
                heavy_tail=chance.random() < 0.3,
                loss=some(0.2),
                duplicate=some(0.2),
            ),
            crash=some(0.1),
            crash_at_write=some(0.01),
            restart_after_ms=chance.choice([1.0, 500.0, 5_000.0, 30_000.0]),
            pause=some(0.1),
            split=some(0.05),
            heal_after_ms=chance.choice([2_000.0, 20_000.0, 60_000.0]),
            cut=some(0.05),
            leap=some(0.05),
            suspend=some(0.05),
            hidden=min(peers - 1, chance.choice(_HIDDEN)),
            slow_disks=some(0.5),
            commit_ms=chance.choice([10.0, 100.0, 600.0]),
            flip=more.choice([0.0, 0.0, 0.02, 0.1]),
            snapshot_every=more.choice([4, 10, 50]),
            slow_replay=more.choice([0.0, 0.0, 0.5]),
            attached_bytes=more.choice([0, 0, 0, 0, 9, 9, CHUNK_BYTES + 1]),
            parts_max=more.choice([0, 1, 3, 8]),
        )


class Storm:
    """Applies the weather to a world, once a virtual second."""

    def __init__(self, world: World, weather: Weather, chance: random.Random) -> None:
        self._world, self.weather, self._chance = world, weather, chance
        self._restarts: dict[str, float] = {}
        self._heals_ms: float | None = None
        self.calm = False
        for peer in world.peers.values():
            peer.disk.before = self._maybe_crash
            if weather.slow_disks and chance.random() < weather.slow_disks:
                peer.commit_ms = weather.commit_ms
            if weather.slow_replay and chance.random() < weather.slow_replay:
                peer.replay_ms_per_round = _REPLAY_MS

    def _maybe_crash(self) -> None:
        if not self.calm and self._chance.random() < self.weather.crash_at_write:
            raise CrashError

    def second(self) -> None:
        """One second of weather."""
        world, weather, chance = self._world, self.weather, self._chance
        for peer in world.peers.values():
            self._revive(peer)
        if self._happens(weather.crash):
            world.crash(chance.choice(world.up()))
        if self._happens(weather.pause):
            world.pause(chance.choice(world.up()), chance.random() * 15_000)
        if self._happens(weather.suspend):
            world.suspend(chance.choice(world.up()), chance.randrange(60_000))
        if self._happens(weather.leap):
            leap = chance.choice([1_000, 10_000, _LEAP_MS_MAX])
            world.jump(chance.choice(world.up()), chance.choice([leap, -leap // 10]))
        if self._happens(weather.flip):
            self._flip(chance.choice(world.up()))
        self._cut()

    def _flip(self, peer: SimPeer) -> None:
        """Of a few peers the sound ones must be most, or nobody could say who is."""
        world = self._world
        if len(world.up()) >= 3 and peer.worker is not None:
            peer.worker.state ^= 1 << self._chance.randrange(64)

    def _happens(self, rate: float) -> bool:
        return rate > 0 and self._chance.random() < rate and bool(self._world.up())

    def _cut(self) -> None:
        world, weather, chance = self._world, self.weather, self._chance
        if self._heals_ms is not None and world.now_ms >= self._heals_ms:
            world.network.heal()
            self._heals_ms = None
        splits, cuts = self._happens(weather.split), self._happens(weather.cut)
        everybody = [peer.id for peer in world.peers.values()]
        if splits:
            world.network.split([peer for peer in everybody if chance.random() < 0.5])
        if cuts:
            some = [peer for peer in everybody if chance.random() < 0.3]
            rest = [peer for peer in everybody if peer not in some]
            world.network.cut(*chance.choice([(some, rest), (rest, some)]))
        if splits or cuts:
            self._heals_ms = world.now_ms + weather.heal_after_ms * chance.random()

    def _revive(self, peer: SimPeer) -> None:
        if peer.up or not peer.wants_up:
            return
        due = self._restarts.setdefault(
            peer.name, self._world.now_ms + self.weather.restart_after_ms * self._chance.random()
        )
        if self._world.now_ms >= due:
            del self._restarts[peer.name]
            # A process can also die while it starts.
            try:
                self._world.start(peer)
            except CrashError:
                self._world.crash(peer)

    def clear(self) -> None:
        """Heal everything: the network is whole, every process runs. Who is hidden stays so, and
        clocks stay as they are.
        """
        world = self._world
        self.calm = True
        world.network.heal()
        world.network.link = Link()
        links = world.network.own_links
        links.update({peer: Link(nat=link.nat) for peer, link in links.items()})
        for peer in world.peers.values():
            peer.paused_until_ms = peer.commit_ms = 0.0
            peer.replay_ms_per_round = None
            if peer.worker is not None:
                peer.worker.hurry()
            if not peer.up:
                world.start(peer)


def bad_world(
    seed: int, quorum: Quorum, *, attachments_anywhere: bool = False
) -> tuple[World, Storm]:
    """The world of a seed.

    Attachments are drawn where most accept them. Where any seal counts, they can be lost, and not
    every storm in which chains are left for that and joined again comes to its end yet: such worlds
    are drawn with `attachments_anywhere`.
    """
    chance = random.Random(seed)
    weather = Weather.draw(chance, random.Random(f"more of {seed}"))
    if quorum is Quorum.ANY and not attachments_anywhere:
        weather = replace(weather, attached_bytes=0)
    rules = Rules(
        quorum=quorum,
        window_ms=1_000,
        deadline_ceiling_ms=3_000,
        deadline_floor_ms=200,
        snapshot_every=weather.snapshot_every,
        attachment_bytes_max=max(weather.attached_bytes, 8 * STATE_BYTES),
        parts_max=weather.parts_max if weather.attached_bytes else 0,
    )
    payloads = Payloads(attached_bytes=weather.attached_bytes)
    founders = weather.peers if chance.random() < 0.5 else 1
    open_peers = weather.peers - weather.hidden
    own = [replace(weather.link, nat=number >= open_peers) for number in range(weather.peers)]
    links = own if weather.hidden else []
    world = World(
        weather.peers, seed, rules, weather.link, founders, payloads=payloads, own_links=links
    )
    return world, Storm(world, weather, chance)
