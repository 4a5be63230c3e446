"""What all peers' models add up to, as it is on their disks, whatever they were killed in.

A meeting's decider writes down that a stretch counts, with its own model's new values; the others
wrote down before what they will move by then. So what a disk holds is its model, and the moves of
those stretches that count for its decider and not yet for itself.

In the swarm here all weights begin at 0, and each step of each peer adds one whole number to all of
them. Meetings make fractions of these. But whatever steps a kill loses, all disks together hold a
whole number for each weight, if each meeting counts on both sides or on neither (P3); and the same
one for all weights of a stretch, as those are written together.
"""

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from node.gossip.checkpoints import Checkpoints
from node.gossip.journal import Kept, log_path, read_log, read_whole, replay
from node.gossip.party import Party
from node.offline import ReadOnlyStore, make_replica, recall_membership
from node.swarm import PeerProcess
from protocol.ids import PeerId
from tests.chaos.crew import Crew
from tests.chaos.logs import identity_of, read_events
from tests.chaos.record import read_chain
from tests.chaos.telling import tell

_PAUSE_S: Final = 1.0  # between a kill and the next start
_COME_S: Final = 120.0
_ANY_PORT: Final = "tcp://127.0.0.1:0"
_FRACTION_MAX: Final = 0.01  # of a whole number, by rounding; a lost move is any part of one

RUN: Final = """
name = "mass"

[model]
kind = "factory"
label = "table"

[data]
source = "text"
path = "{folder}/text.txt"
context = 16
batch = 2
held_out_batches = 1

[method]
name = "d-psgd"
stretch = 4096

[method.inner]
steps = 1

[rules]
network = "wan"  # so patient that who is started again was not dropped meanwhile
window_s = 1.0
heldout_every = 1000000

[node]
threads = 1
factories = {{ table = "tests.chaos.device:Table" }}

[node.optimizer]
path = "tests.chaos.device:Whole"
options = {{ lr = 1.0, go = "{folder}/go" }}
"""


def mass(folder: Path, peers: int, seconds: float, seed: int) -> dict[str, object]:
    """Peers that meet all the time are killed (-9) and started again, some at a time; at the end
    all are killed at once.
    """
    folder.mkdir(parents=True)
    config = folder / "run.toml"
    config.write_text(RUN.format(folder=folder))
    (folder / "text.txt").write_text("as everybody knows, and nobody learns. " * 400)
    chance = random.Random(f"mass {seed}")
    with Crew(folder / "swarm", config) as crew:
        crew.start(peers)
        crew.until(lambda: all(map(_has_met, crew.peers)), "not all met somebody", _COME_S)
        (folder / "go").touch()
        end_s = time.monotonic() + seconds
        kills = 0
        while time.monotonic() < end_s:
            crew.wait(lambda: False, chance.uniform(1.0, 4.0))
            victims = chance.sample(crew.peers, chance.randint(1, peers - 1))
            _kill_and_restart(crew, victims)
            kills += len(victims)
        crew.close()
        tell(f"mass: {kills} kills; what is on {peers} disks is added up")
        homes = {identity_of(home): home for home in crew.homes()}
        founder = crew.peers[0].home
        whole = sum_up(homes, party_of(founder))
        dropped = sum(len(entry.body.departures) for entry in read_chain(founder))
        exchanges = sum(e["event"] == "exchange" and bool(e["whole"]) for e in _events(crew))
        faults = sum(e["event"] == "fault" for e in _events(crew))
    return {
        "peers": peers,
        "kills": kills + peers,
        "exchanges": exchanges // 2,
        "faults": faults,
        "dropped_as_dead": dropped,
        "open": whole.open,
        "open_that_count": whole.counting,
        "totals": sorted({float(part[0].round()) for part in whole.parts}),
        "fraction_most": max(float((part - part.round()).abs().max()) for part in whole.parts),
        "met": exchanges > 0 and faults == 0 and all(map(is_whole, whole.parts)),
    }


def is_whole(part: Tensor) -> bool:
    """One whole number for all of a stretch."""
    return bool(((part - part[0].round()).abs() <= _FRACTION_MAX).all())


def _kill_and_restart(crew: Crew, victims: Sequence[PeerProcess]) -> None:
    for victim in victims:
        _stay(victim)
        crew.kill(victim)
    crew.wait(lambda: False, _PAUSE_S)
    for victim in victims:
        crew.restart(victim)
        victim.seen = None  # what it said before it was killed
    names = ", ".join(victim.name for victim in victims)
    complaint = f"of {names}, started again, not all met somebody"
    crew.until(lambda: all(map(_has_met, victims)), complaint, _COME_S)


def _stay(peer: PeerProcess) -> None:
    """It comes back where it was: if all were elsewhere at once, nobody would find anybody."""
    assert peer.seen is not None
    (here,) = peer.seen["addresses"]
    peer.command = tuple(here if part == _ANY_PORT else part for part in peer.command)


def _has_met(peer: PeerProcess) -> bool:
    return bool(peer.seen and peer.seen.get("exchanges_done"))


def _events(crew: Crew) -> Iterator[dict[str, object]]:
    return (event for home in crew.homes() for event in read_events(home))


# What is on disks


@dataclass(frozen=True, slots=True)
class Sum:
    parts: tuple[Tensor, ...]  # (n,) float64 for each stretch, over all peers
    open: int  # stretches that a peer was ready to move by
    counting: int  # of these: their decider had moved


def party_of(home: Path) -> Party:
    """Of the same run, to read models with."""
    disk = ReadOnlyStore(home)
    try:
        membership, node, root = recall_membership(home, disk, {})
        replica, _ = make_replica(membership, node, root, identity_of(home))
    finally:
        disk.close()
    assert isinstance(replica.method, Checkpoints)
    return replica.method.party


def sum_up(homes: Mapping[PeerId, Path], party: Party) -> Sum:
    """Of a method that keeps a sum. Nobody may be at work there."""
    name = party.mixing.conserved
    assert name is not None, "this method keeps no sum"
    decided = {peer: load(home, party).decided for peer, home in homes.items()}
    total = torch.zeros_like(party.state[name], dtype=torch.float64)
    open, counting = 0, 0
    for home in homes.values():
        for (session, stretch), one in load(home, party).prepared.items():
            open += 1
            counted, _ = decided.get(PeerId(one.decider), {}).get(session, (set(), ()))
            if stretch in counted:
                counting += 1
                party.mixing.apply(party.part(stretch), one.moves)
        total += party.state[name].double()
    sizes = [part.stop - part.start for part in party.stretches]
    return Sum(tuple(total.split(sizes)), open, counting)


def load(home: Path, party: Party) -> Kept:
    """Bring `party` to where that peer was; what is not settled."""
    found = read_whole(home)
    assert found is not None, f"{home} holds no model"
    state, told = found
    party.load_local_state(state)
    kept = Kept()
    for record in read_log(log_path(home, int(told["generation"]))):
        replay(record, party, kept)
    return kept
