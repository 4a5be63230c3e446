"""What goes wrong, and when: drawn from a seed before anything starts, then done to a swarm.

The kinds come in fixed shares, so that a run of a given length meets the same mix whatever the
seed; the seed says in which order, when, to whom, for how long and how badly.
"""

import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from tests.chaos.crew import Crew
from tests.chaos.net.network import Network

# Times are in windows of work, so that a run with short rounds meets as much in a shorter time.
REST: Final = 4.0  # a member that was hit is left alone for so long afterwards
# In seconds, since windows have no part in them; both together are less than the rest.
_FULL_S_MAX: Final = 8.0  # a disk stays full for so long if the peer does not notice
_SETTLES_S: Final = 2.0  # a commit that has failed by then has ended the process


class Kind(Enum):
    KILL = "kill"  # kill -9, and a start after a pause
    STOP = "stop"  # SIGSTOP, SIGCONT
    RESTART = "restart"  # Ctrl-C: it takes its leave, and comes back
    DISK = "disk"  # no room left; if it ends because of that, it is started again with room
    PARTITION = "partition"  # some are cut off from the rest
    DELAY = "delay"
    LOSS = "loss"
    RATE = "rate"


SHARES: Final = {
    Kind.KILL: 22,
    Kind.STOP: 10,
    Kind.RESTART: 8,
    Kind.PARTITION: 7,
    Kind.DELAY: 4,
    Kind.LOSS: 4,
    Kind.RATE: 4,
    Kind.DISK: 3,
}
NEED_NETWORK: Final = frozenset({Kind.PARTITION, Kind.DELAY, Kind.LOSS, Kind.RATE})
_LASTS: Final = {
    Kind.KILL: (0.4, 3.0),
    Kind.STOP: (0.4, 3.0),
    Kind.RESTART: (0.2, 2.0),
    Kind.DISK: (0.4, 2.0),
    Kind.PARTITION: (2.0, 6.0),
    Kind.DELAY: (2.0, 8.0),
    Kind.LOSS: (2.0, 8.0),
    Kind.RATE: (2.0, 8.0),
}
_HOW_BAD: Final = {  # ms one way, chance of each frame, Mbit/s
    Kind.DELAY: (20.0, 200.0),
    Kind.LOSS: (0.01, 0.1),
    Kind.RATE: (0.5, 5.0),
}


@dataclass(frozen=True, slots=True)
class Fault:
    at_s: float  # after the swarm is complete
    lasts_s: float
    kind: Kind
    victims: tuple[int, ...]  # numbers of peers, from 0
    how_bad: float | None = None

    def __str__(self) -> str:
        names = " ".join(f"p{victim + 1}" for victim in self.victims)
        bad = "" if self.how_bad is None else f" {self.how_bad:.3g}"
        return f"{self.at_s:6.1f} s  {self.kind.value}{bad} {names} for {self.lasts_s:.1f} s"


def draw(
    seed: int,
    count: int,
    seconds: float,
    peers: int,
    window_s: float,
    without: Collection[Kind] = (),
) -> tuple[Fault, ...]:
    """`count` faults that begin within `seconds`; no two hit one member at a time."""
    chance = random.Random(f"chaos {seed}")
    kinds = _mix(count, [kind for kind in SHARES if kind not in without])
    chance.shuffle(kinds)
    times = sorted(chance.uniform(0, seconds) for _ in kinds)
    busy_until = [0.0] * peers
    faults = []
    for at_s, kind in zip(times, kinds, strict=True):
        lasts_s = chance.uniform(*_LASTS[kind]) * window_s
        free = [peer for peer in range(peers) if busy_until[peer] <= at_s]
        wanted = chance.randint(1, max(1, peers // 8)) if kind is Kind.PARTITION else 1
        # When all were hit just now: the one that has had the longest rest.
        rested = sorted(range(peers), key=busy_until.__getitem__)
        victims = chance.sample(free, min(wanted, len(free))) or rested[:1]
        at_s = max(at_s, *(busy_until[victim] for victim in victims))
        for victim in victims:
            busy_until[victim] = at_s + lasts_s + REST * window_s
        bad = chance.uniform(*_HOW_BAD[kind]) if kind in _HOW_BAD else None
        faults.append(Fault(at_s, lasts_s, kind, tuple(sorted(victims)), bad))
    return tuple(sorted(faults, key=lambda fault: fault.at_s))


def _mix(count: int, kinds: Sequence[Kind]) -> list[Kind]:
    """In proportion to their shares, by largest remainders."""
    total = sum(SHARES[kind] for kind in kinds)
    exact = {kind: count * SHARES[kind] / total for kind in kinds}
    whole = {kind: int(exact[kind]) for kind in kinds}
    rest = sorted(kinds, key=lambda kind: whole[kind] - exact[kind])
    for kind in rest[: count - sum(whole.values())]:
        whole[kind] += 1
    return [kind for kind in kinds for _ in range(whole[kind])]


@dataclass(slots=True)
class Injector:
    """Does to a crew what the schedule says; `poll` is called several times a second."""

    crew: Crew
    network: Network | None
    faults: Sequence[Fault]
    tell: Callable[[str], None]
    done: int = 0
    _running: dict[int, Iterator[None]] = field(default_factory=dict)  # fault's number -> script
    _now_s: float = 0.0

    @property
    def is_over(self) -> bool:
        return self.done == len(self.faults) and not self._running

    def poll(self, now_s: float) -> None:
        """`now_s` counts from when the swarm was complete."""
        self._now_s = now_s
        while self.done < len(self.faults) and self.faults[self.done].at_s <= now_s:
            self.tell(f"{now_s:6.1f} s  fault {self.done + 1}: {self.faults[self.done]}")
            self._running[self.done] = self._script(self.faults[self.done])
            self.done += 1
        for number, script in list(self._running.items()):
            if next(script, self) is self:
                del self._running[number]
                self.tell(f"{now_s:6.1f} s  fault {number + 1} is over")

    def _script(self, fault: Fault) -> Iterator[None]:
        """Resumed at every poll."""
        match fault.kind:
            case Kind.KILL:
                return self._kill(fault)
            case Kind.STOP:
                return self._stop(fault)
            case Kind.RESTART:
                return self._restart(fault)
            case Kind.DISK:
                return self._fill(fault)
            case _:
                return self._disturb(fault)

    def _wait(self, seconds: float) -> Iterator[None]:
        end = self._now_s + seconds
        while self._now_s < end:
            yield

    def _kill(self, fault: Fault) -> Iterator[None]:
        victim = self.crew.peers[fault.victims[0]]
        self.crew.kill(victim)
        yield from self._wait(fault.lasts_s)
        self.crew.restart(victim)

    def _stop(self, fault: Fault) -> Iterator[None]:
        victim = self.crew.peers[fault.victims[0]]
        self.crew.pause(victim)
        yield from self._wait(fault.lasts_s)
        self.crew.resume(victim)

    def _restart(self, fault: Fault) -> Iterator[None]:
        victim = self.crew.peers[fault.victims[0]]
        self.crew.leave(victim)
        while victim.up:
            yield
        yield from self._wait(fault.lasts_s)
        self.crew.restart(victim)

    def _fill(self, fault: Fault) -> Iterator[None]:
        victim = self.crew.peers[fault.victims[0]]
        self.crew.fill_disk(victim)
        end_s = self._now_s + _FULL_S_MAX
        while victim.up and self._now_s < end_s:
            yield  # the database goes on for as long as there is room in its own files
        yield from self._wait(fault.lasts_s)
        self.crew.empty_disk(victim)
        yield from self._wait(_SETTLES_S)
        if victim.up:
            victim.gone = ""
        else:
            self.crew.restart(victim)

    def _disturb(self, fault: Fault) -> Iterator[None]:
        network = self.network
        assert network is not None, "without a network no such fault is drawn"
        nodes = [self.crew.node_of(self.crew.peers[victim]) for victim in fault.victims]
        bad = fault.how_bad or 0.0
        match fault.kind:
            case Kind.PARTITION:
                network.partition(nodes)
            case Kind.DELAY:
                network.set_lines(nodes, bad, jitter_ms=bad / 4)
            case Kind.LOSS:
                network.set_lines(nodes, network.delay_ms, loss=bad)
            case _:
                for node in nodes:
                    network.set_rate(node, bad, bad)
        yield from self._wait(fault.lasts_s)
        if fault.kind is Kind.PARTITION:
            network.heal(nodes)
        else:
            network.restore(nodes)
