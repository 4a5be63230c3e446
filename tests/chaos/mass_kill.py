"""A third of the members are killed (-9) in one second: does the next round close in time, and is
all that was committed before still there?
"""

import random
import time
from pathlib import Path

from node.config import load_run_file
from node.swarm import PeerProcess
from protocol.ids import Hash
from protocol.rounds import deadline_after_ms
from tests.chaos.crew import Crew, write_run
from tests.chaos.net.network import Network
from tests.chaos.record import read_chain
from tests.chaos.telling import tell

_ROUNDS_BEFORE = 4


def mass_kill(
    folder: Path,
    peers: int,
    window_s: float,
    network: Network | None,
    seed: int,
) -> dict[str, object]:
    config = write_run(folder / "run", window_s=window_s)
    chance = random.Random(f"mass kill {seed}")
    with Crew(folder / "swarm", config, network) as crew:
        crew.start(peers)
        start = max(crew.rounds().values())
        assert crew.wait(lambda: min(crew.rounds().values()) >= start + _ROUNDS_BEFORE, 120)
        time.sleep(chance.uniform(0, window_s))  # at any moment of a round
        victims = chance.sample(crew.peers, peers // 3)
        survivors = [peer for peer in crew.peers if peer not in victims]
        before = [entry.hash for entry in read_chain(survivors[0].home)]
        killed_s = time.monotonic()
        for victim in victims:
            crew.kill(victim)
        killing_s = time.monotonic() - killed_s
        closed_s = _next_round(crew, survivors, len(before), killed_s)
        chains = {peer.name: _hashes(peer) for peer in survivors}
        for victim in victims:
            crew.restart(victim)
        healed_s = crew.heal(tell)
        crew.close()
        final = [_hashes(peer) for peer in crew.peers]
        rules = load_run_file(config).rules.rules()
        took = [e.body.took_ms for e in read_chain(survivors[0].home)[: len(before)]][-64:]
        deadline_s = deadline_after_ms(took, rules) / 1000
        kept = all(chain[: len(before)] == before for chain in [*chains.values(), *final])
    in_time = closed_s is not None and closed_s <= 2 * deadline_s
    return {
        "bench": "mass-kill",
        "seed": seed,
        "peers": peers,
        "killed": len(victims),
        "killing_took_s": killing_s,
        "rounds_before": len(before),
        "next_round_closed_after_s": closed_s,
        "deadline_s": deadline_s,
        "within_two_deadlines": in_time,
        "nothing_lost": kept,
        "digests_equal": healed_s is not None,
        "healed_after_s": healed_s,
        "met": in_time and kept and healed_s is not None,
    }


def _next_round(
    crew: Crew, survivors: list[PeerProcess], rounds: int, killed_s: float
) -> float | None:
    """Seconds from the kill until every survivor has a round more than there were."""

    def closed() -> bool:
        return all(peer.seen and peer.seen["round"] > rounds for peer in survivors)

    return time.monotonic() - killed_s if crew.wait(closed, 120, every_s=0.05) else None


def _hashes(peer: PeerProcess) -> list[Hash]:
    return [entry.hash for entry in read_chain(peer.home)]
