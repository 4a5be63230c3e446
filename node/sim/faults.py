"""A bad world, drawn from a seed; then healing.

Loss, delay, duplicates, crashes at any write, pauses and splits.
"""

import random
from dataclasses import dataclass

from node.sim.network import Link
from node.sim.world import CrashError, SimPeer, World
from protocol.rules import Quorum, Rules


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

    @classmethod
    def draw(cls, chance: random.Random) -> "Weather":
        def some(most: float) -> float:
            """Often nothing, else anything up to `most`."""
            return 0.0 if chance.random() < 0.3 else most * chance.random()

        return cls(
            peers=chance.choice([1, 2, 3, 3, 4, 5, 5, 7, 8]),
            link=Link(
                delay_ms=chance.choice([1.0, 20.0, 150.0]),
                jitter_ms=chance.choice([0.0, 20.0, 400.0]),
                loss=some(0.2),
                duplicate=some(0.2),
            ),
            crash=some(0.1),
            crash_at_write=some(0.01),
            restart_after_ms=chance.choice([500.0, 5_000.0, 30_000.0]),
            pause=some(0.1),
            split=some(0.05),
            heal_after_ms=chance.choice([2_000.0, 20_000.0, 60_000.0]),
        )


class Storm:
    """Applies the weather to a world, once a virtual second."""

    def __init__(self, world: World, weather: Weather, chance: random.Random) -> None:
        self._world, self._weather, self._chance = world, weather, chance
        self._restarts: dict[str, float] = {}
        self._heals_ms: float | None = None
        self.calm = False
        for peer in world.peers.values():
            peer.disk.before = self._maybe_crash

    def _maybe_crash(self) -> None:
        if not self.calm and self._chance.random() < self._weather.crash_at_write:
            raise CrashError

    def second(self) -> None:
        """One second of weather."""
        world, weather, chance = self._world, self._weather, self._chance
        for peer in world.peers.values():
            self._revive(peer)
        if chance.random() < weather.crash and world.up():
            world.crash(chance.choice(world.up()))
        if chance.random() < weather.pause and world.up():
            world.pause(chance.choice(world.up()), chance.random() * 15_000)
        if self._heals_ms is not None and world.now_ms >= self._heals_ms:
            world.network.heal()
            self._heals_ms = None
        if chance.random() < weather.split:
            side = [peer.id for peer in world.peers.values() if chance.random() < 0.5]
            world.network.split(side)
            self._heals_ms = world.now_ms + weather.heal_after_ms * chance.random()

    def _revive(self, peer: SimPeer) -> None:
        if peer.up or not peer.wants_up:
            return
        due = self._restarts.setdefault(
            peer.name, self._world.now_ms + self._weather.restart_after_ms * self._chance.random()
        )
        if self._world.now_ms >= due:
            del self._restarts[peer.name]
            # A process can also die while it starts.
            try:
                self._world.start(peer)
            except CrashError:
                self._world.crash(peer)

    def clear(self) -> None:
        """Heal everything: the network is whole, every process runs."""
        world = self._world
        self.calm = True
        world.network.heal()
        world.network.link = Link()
        for peer in world.peers.values():
            peer.paused_until_ms = 0.0
            if not peer.up:
                world.start(peer)


def bad_world(seed: int, quorum: Quorum) -> tuple[World, Storm]:
    """The world of a seed."""
    chance = random.Random(seed)
    weather = Weather.draw(chance)
    rules = Rules(quorum=quorum, window_ms=1_000, deadline_ceiling_ms=3_000, deadline_floor_ms=200)
    founders = weather.peers if chance.random() < 0.5 else 1
    world = World(weather.peers, seed, rules, weather.link, founders)
    return world, Storm(world, weather, chance)
