"""What gossip would come to, before anyone joins: mixing, loss and bytes, as they are counted here.

At each look the mean of all models is made, by work, and judged on held-out data beside a few of
the peers' own. How far peers are apart is computed, and estimated from the coordinates that they
would tell; the mixing rate is the estimate after a round's exchanges by that before them, on the
same coordinates, of the last round that nearly all have told of.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Final

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from node.build import Workshop
from node.config import NodeConfig, RunFile
from node.errors import ConfigError
from node.gossip.consensus import coordinates, distance, estimate, expected
from node.gossip.merge import merged, work_weights
from node.methods.parts.gossip_config import GossipConfig
from node.methods.parts.mixing import MODEL
from node.methods.registry import AnyGossip
from node.sim.gossip.crowd import Crowd
from node.sim.gossip.world import World
from node.sim.links import LinkKind, deal
from node.training.model_config import GptConfig

LOOKS: Final = 10
_JUDGED: Final = 8  # peers whose own models are judged at a look


class _Figures(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Look(_Figures):
    exchanges: float
    """Of each peer, on average."""
    virtual_s: float
    merged_loss: float | None
    """Held out, of the mean of all models by work; None: nobody trains."""
    own_loss: float | None
    """The mean over some peers' own models."""
    train_loss: float | None
    """Of all steps since the look before."""
    distance: float
    """Consensus distance: (1/N) sum ||x_i - mean||^2."""
    estimated: float
    """The same, from the coordinates that peers would tell."""
    mixing: float | None
    """What a round's exchanges leave of the distance, as peers would estimate it; None: unknown."""


class Distance(_Figures):
    exchanges: float
    """Of each peer, on average."""
    all: float
    """Consensus distance."""
    halves: float
    """The same, of each from the mean of its own half of the swarm."""


class GossipReport(_Figures):
    name: str
    method: str
    peers: int
    parameters: int
    links: dict[str, int]
    seed: int
    virtual_s: float
    wall_s: float
    exchanges: int
    """Meetings."""
    exchanges_a_peer: float
    bytes_an_exchange: float
    """That a peer sends in one, to each other; frames counted."""
    coded_bytes: int
    """The model, once, as it is coded; 2 of them for methods that send two vectors."""
    broken: int
    alone: int
    deaths: int
    joins: int
    sent_again: int
    """Stretches that were lost on their way."""
    waited_share: float
    """Of all peers' time, for others; asynchronous peers do not wait."""
    alive: int
    kept_worst: float | None
    """The most that one exchange changed the sum over its peers, in units of rounding of the
    largest element; None: the method keeps no such sum.
    """
    kept_drift: float | None
    """How far the mean over all, those counted that died, is from what steps made of it."""
    expected_mixing: float | None
    """What theory says of the pairing, in rounds where everybody meets."""
    looks: tuple[Look, ...]
    partition: tuple[int, int] | None
    """From and to which exchange the halves could not reach each other; None: they always could."""
    distances: tuple[Distance, ...]
    """After each exchange of all, if that was asked for."""


Tell = Callable[[float, float | None], None]
"""Exchanges of each peer so far, and seconds left."""


def simulate_gossip(
    run_file: RunFile,
    root: Path,
    *,
    peers: int,
    exchanges: int,  # of each peer
    links: tuple[LinkKind, ...],
    seed: int = 0,
    death: float = 0.0,  # chance that a meeting is the last one of one of its peers
    joins: bool = False,
    split: bool = False,  # each peer trains on another stretch of the data
    train: bool = True,
    spread: float = 0.0,  # peers begin this far from each other, each element
    partition: tuple[int, int] | None = None,  # halves are apart from this exchange to that one
    follow: bool = False,  # say how far peers are apart after each exchange
    node: NodeConfig | None = None,
    tell: Tell = lambda done, left: None,
) -> GossipReport:
    """Raises UserError."""
    config = _checked(run_file, exchanges, partition)
    data = run_file.data.model_copy(update={"private": False})
    workshop = Workshop.open(run_file.model, data, node or run_file.node, root)
    crowd = Crowd(
        config, workshop.model.module, workshop.data if train else None, peers,
        peers if split else 1,
    )  # fmt: skip
    if spread:
        crowd.spread(spread, seed)
    kinds = deal(links, peers, seed)
    rules = run_file.rules
    world = World(
        config,
        crowd,
        kinds,
        seed=seed,
        step_ms=rules.window_s * 1000 / config.inner.attempts_max,
        patience_ms=rules.patience_s * 1000,
        death=death,
        joins=joins,
        exchanges_max=exchanges,
    )
    watcher = _Watcher(world, workshop if train else None, config)
    started = time.monotonic()
    looks: list[Look] = []
    distances: list[Distance] = []
    for stop in _stops(exchanges, partition, follow=follow):
        is_going = world.run(stop.exchanges)
        took = time.monotonic() - started
        if stop.exchanges:
            tell(stop.exchanges, took / stop.exchanges * (exchanges - stop.exchanges))
        if stop.is_look or not is_going:
            looks.append(watcher.look())
        if follow:
            distances.append(watcher.measure())
        if not is_going:
            break
        if partition is not None and stop.exchanges in partition:
            world.part() if stop.exchanges == partition[0] else world.meet_again()
    wall_s = time.monotonic() - started
    return _report(run_file, config, world, looks, kinds, seed, wall_s, partition, tuple(distances))


def _checked(run_file: RunFile, exchanges: int, partition: tuple[int, int] | None) -> AnyGossip:
    """The method's settings, of a run that can be simulated. Raises ConfigError."""
    config = run_file.method
    if not isinstance(config, GossipConfig):
        raise ConfigError(f"{config.name} does not gossip", "peer simulate has rounds for it")
    if config.inner.steps is None:
        raise ConfigError(
            "how many steps peers take between two exchanges is not said",
            "set `steps` in [method.inner]",
        )
    if partition is not None and not 0 < partition[0] < partition[1] < exchanges:
        raise ConfigError(
            f"the swarm cannot be in halves from exchange {partition[0]} to {partition[1]}"
            f" of {exchanges}",
            "take two numbers above 0 and below --rounds, the smaller one first",
        )
    if not isinstance(run_file.model, GptConfig):
        raise ConfigError("only the built-in model is simulated", 'take a run of kind = "gpt"')
    return config


@dataclass(frozen=True, slots=True)
class _Stop:
    exchanges: float  # of each peer
    is_look: bool


def _stops(exchanges: int, partition: tuple[int, int] | None, *, follow: bool) -> list[_Stop]:
    """Where the world is looked at, or changed."""
    looks = {exchanges * number / LOOKS for number in range(LOOKS + 1)}
    each = {float(number) for number in range(exchanges + 1)} if follow else set()
    changes = set() if partition is None else {float(number) for number in partition}
    return [_Stop(at, at in looks) for at in sorted(looks | each | changes)]


class _Watcher:
    def __init__(self, world: World, workshop: Workshop | None, config: AnyGossip) -> None:
        self._world, self._config = world, config
        self._batches = [] if workshop is None else workshop.data.held_out()
        self._looks = 0

    def look(self) -> Look:
        world, crowd = self._world, self._world.crowd
        rows = [peer.row for peer in world.alive]
        models = crowd.state[MODEL][rows]
        apart = crowd.shown[rows]
        whole = merged(models, work_weights([crowd.tokens[row] for row in rows]))
        merged_loss, own_loss = self._judge(whole, models)
        places = coordinates(crowd.size, bytes(32), self._looks)
        self._looks += 1
        losses, world.losses = world.losses, []
        return Look(
            exchanges=fmean(peer.exchanges for peer in world.peers),
            virtual_s=world.now_ms / 1000,
            merged_loss=merged_loss,
            own_loss=own_loss,
            train_loss=fmean(losses) if losses else None,
            distance=distance(apart),
            estimated=estimate(apart[:, places], crowd.size),
            mixing=self._mixing(),
        )

    def measure(self) -> Distance:
        world, crowd = self._world, self._world.crowd
        halves: list[list[int]] = [[], []]
        for peer in world.alive:
            halves[world.half(peer.row)].append(peer.row)
        rows = [row for half in halves for row in half]
        inside = sum(len(half) * distance(crowd.shown[half]) for half in halves if half)
        return Distance(
            exchanges=fmean(peer.exchanges for peer in world.peers),
            all=distance(crowd.shown[rows]),
            halves=inside / max(1, len(rows)),
        )

    def _mixing(self) -> float | None:
        told = self._world.last_sketches()
        if told is None:
            return None
        before, after = (estimate(some, self._world.crowd.size) for some in told)
        return after / before if before > 0 else None

    def _judge(self, whole: Tensor, models: Tensor) -> tuple[float | None, float | None]:
        if not self._batches:
            return None, None
        some = models[:: max(1, len(models) // _JUDGED)][:_JUDGED]
        merged_loss, *own = self._world.crowd.held_out(
            torch.cat([whole[None], some]), self._batches
        )
        return merged_loss, fmean(own)


def _report(
    run_file: RunFile,
    config: AnyGossip,
    world: World,
    looks: list[Look],
    kinds: list[LinkKind],
    seed: int,
    wall_s: float,
    partition: tuple[int, int] | None,
    distances: tuple[Distance, ...],
) -> GossipReport:
    crowd, counts = world.crowd, world.counts
    alive = [peer.row for peer in world.alive]
    exchanged = sum(peer.exchanges for peer in world.peers)
    others = config.meeting_size - 1
    has_kept = world.kept.exchanges > 0
    return GossipReport(
        name=run_file.name,
        method=config.name,
        peers=len(world.peers),
        parameters=crowd.size,
        links={kind: sum(one.name == kind for one in kinds) for kind in {k.name for k in kinds}},
        seed=seed,
        virtual_s=world.now_ms / 1000,
        wall_s=wall_s,
        exchanges=counts.exchanges,
        exchanges_a_peer=exchanged / len(world.peers),
        bytes_an_exchange=sum(p.sent_bytes for p in world.peers) / max(1, exchanged) / others,
        coded_bytes=crowd.coder.bytes_in_all,
        broken=counts.broken,
        alone=counts.alone,
        deaths=counts.deaths,
        joins=counts.joins,
        sent_again=counts.lost,
        waited_share=sum(p.waited_ms for p in world.peers)
        / max(1e-9, world.now_ms * len(world.peers)),
        alive=len(alive),
        kept_worst=world.kept.worst if has_kept else None,
        kept_drift=world.kept.drift(alive) if has_kept else None,
        expected_mixing=_expected(config, len(world.peers)),
        looks=tuple(looks),
        partition=partition,
        distances=distances,
    )


def _expected(config: AnyGossip, peers: int) -> float | None:
    if config.kind is None:
        return None
    once = expected(config.kind, peers, config.meeting_size)
    return None if once is None else once**config.exchanges_a_round
