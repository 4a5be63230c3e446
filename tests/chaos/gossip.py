"""A swarm that gossips while peers are killed and others join: what is its merged model worth?

    python tests/chaos/gossip.py --peers 6 --minutes 5 --seed 1

Six real processes train a small GPT, each a model of its own, by D-PSGD. At moments drawn from the
seed two of them are killed (-9) for good and two new ones join. At the end `peer export --merge`
makes one mean of all models while they train on: it has to be better, held out, than each of them.
Nobody may blame anybody, and none of the living may be missing.

Beside it, a swarm whose weights are whole numbers is killed again and again: do all disks together
hold what they held (mass.py)? `--mass-minutes 0` leaves that out.

Prints one JSON line; exit code 1 says that something was missed.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from node.control import ask  # noqa: E402
from node.swarm import PeerProcess  # noqa: E402
from tests.chaos.crew import HEAL_S, Crew  # noqa: E402
from tests.chaos.logs import identity_of, read_events, told_faults  # noqa: E402
from tests.chaos.mass import mass  # noqa: E402
from tests.chaos.telling import conclude, tell  # noqa: E402

KILLED: Final = 2
JOINED: Final = 2
_MASS_PEERS: Final = 4
_POLL_S: Final = 1.0
_EXPORT_S: Final = 600.0

RUN: Final = """
name = "gossip"

[model]
kind = "gpt"
layers = 2
width = 32
heads = 2
context = 32

[data]
source = "python-stdlib"
context = 32
batch = 8
held_out_batches = 16

[method]
name = "d-psgd"

[method.inner]
steps = 10
clip_norm = 1.0

[rules]
network = "local"
window_s = 2.0
heldout_every = 10

[node]
threads = 1

[node.optimizer]
path = "tests.chaos.device:Unhurried"
options = {{ lr = 0.02, step_s = {step_s} }}  # a high rate: noise, that a mean takes away
"""


def main() -> None:
    options = parse(sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # leave nothing behind
    with ExitStack() as stack:
        folder = options.keep or stack.enter_context(tempfile.TemporaryDirectory(prefix="gossip-"))
        facts = gossip(Path(folder) / "learning", options)
        if options.mass_minutes:
            seconds = 60 * options.mass_minutes
            summed = mass(Path(folder) / "mass", _MASS_PEERS, seconds, options.seed)
            facts |= {"mass": summed, "met": facts["met"] and summed["met"]}
    conclude(facts)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", type=int, default=6, help="at least 3")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--mass-minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--step", type=float, default=0.15, help="seconds of an inner step")
    parser.add_argument("--keep", type=Path, help="put homes and logs in this folder and keep them")
    options = parser.parse_args(arguments)
    if options.peers <= KILLED:
        parser.error(f"--peers {options.peers}: {KILLED} of them are killed; take more")
    return options


# What happens


@dataclass(frozen=True, slots=True)
class Turn:
    at_s: float  # after all are members
    victim: int | None  # number of a peer that is killed; None: one joins


def draw(seed: int, peers: int, seconds: float) -> tuple[Turn, ...]:
    """The last turn leaves a third of the time, to learn in."""
    chance = random.Random(f"gossip {seed}")
    kills = [
        Turn(chance.uniform(0.1, 0.65) * seconds, v) for v in chance.sample(range(peers), KILLED)
    ]
    joins = [Turn(chance.uniform(0.1, 0.65) * seconds, None) for _ in range(JOINED)]
    return tuple(sorted([*kills, *joins], key=lambda turn: turn.at_s))


@dataclass(slots=True)
class Watch:
    """What peers said on the way."""

    crew: Crew
    killed: list[str] = field(default_factory=list)
    came_s: dict[str, float] = field(default_factory=dict)  # a newcomer's start
    met_s: dict[str, float] = field(default_factory=dict)  # from there to its first exchange
    distances: dict[int, float] = field(default_factory=dict)  # consensus, by round

    def take(self, turn: Turn) -> None:
        if turn.victim is None:
            self._write_invite()
            peer = self.crew.join()
            self.came_s[peer.name] = time.monotonic()
            tell(f"{turn.at_s:6.1f} s  {peer.name} joins")
        else:
            victim = self.crew.peers[turn.victim]
            self.crew.kill(victim)
            self.killed.append(victim.name)
            tell(f"{turn.at_s:6.1f} s  {victim.name} is killed")

    def _write_invite(self) -> None:
        """Of those that are up now: who wrote the first one may be dead."""
        living = next(peer for peer in self.crew.peers if not peer.gone and peer.seen)
        invite = ask(living.home, {"do": "invite", "days": 1})["invite"]
        self.crew.invite_file.write_text(invite + "\n")

    def look(self) -> None:
        for peer in self.crew.look():
            seen = {} if peer.gone or peer.seen is None else peer.seen
            if seen.get("consensus_distance") is not None:
                self.distances[seen["consensus_round"]] = seen["consensus_distance"]
            came_s = self.came_s.get(peer.name)
            if came_s is not None and peer.name not in self.met_s and seen.get("exchanges_done"):
                self.met_s[peer.name] = time.monotonic() - came_s


def gossip(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    folder.mkdir(parents=True)
    config = folder / "run.toml"
    config.write_text(RUN.format(step_s=options.step))
    seconds = 60 * options.minutes
    with Crew(folder / "swarm", config) as crew:
        crew.start(options.peers)
        tell(f"{options.peers} peers are members")
        watch = Watch(crew)
        turns = list(draw(options.seed, options.peers, seconds))
        first_s = time.monotonic()
        while (now_s := time.monotonic() - first_s) < seconds or turns:
            while turns and turns[0].at_s <= now_s:
                watch.take(turns.pop(0))
            watch.look()
            crew.reap()
            time.sleep(_POLL_S)
        left = options.peers - KILLED + JOINED
        are_all_in = crew.wait(lambda: crew.members_seen() == left, HEAL_S, watch.look)
        living = [peer for peer in crew.peers if not peer.gone]
        merged = export(living[0], folder / "model")
        watch.look()
        crew.close()
        return judge(options, watch, living, merged, are_all_in=are_all_in)


def export(peer: PeerProcess, target: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "cli.app", "export", str(target)]
    command += ["--merge", "--home", str(peer.home), "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, timeout=_EXPORT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


# What it came to


def judge(
    options: argparse.Namespace,
    watch: Watch,
    living: Sequence[PeerProcess],
    merged: dict[str, Any],
    *,
    are_all_in: bool,
) -> dict[str, Any]:
    names = {identity_of(peer.home).hex(): peer.name for peer in watch.crew.peers}
    inside = {names[one["peer"]] for one in merged["members"]}
    is_better = merged["heldout_loss"] < merged["best_heldout_loss"]
    is_complete = inside == {peer.name for peer in living} and not merged["missing"]
    faults = told_faults(watch.crew.peers)
    distances = [distance for _, distance in sorted(watch.distances.items())]
    return {
        "bench": "gossip",
        "seed": options.seed,
        "peers": options.peers,
        "minutes": options.minutes,
        "step_s": options.step,
        "killed": watch.killed,
        "joined_met_after_s": watch.met_s,
        "all_members_at_the_end": are_all_in,
        **count_exchanges(watch.crew),
        "in_doubt": sum(peer.seen["exchanges_in_doubt"] for peer in living if peer.seen),
        "consensus_distance_most": max(distances, default=None),
        "consensus_distance_last": distances[-1] if distances else None,
        "members": {
            names[one["peer"]]: {key: one[key] for key in ("tokens", "share", "heldout_loss")}
            for one in merged["members"]
        },
        "missing": merged["missing"],
        "merged_heldout_loss": merged["heldout_loss"],
        "best_heldout_loss": merged["best_heldout_loss"],
        "mean_heldout_loss": merged["mean_heldout_loss"],
        "better_than_each": is_better,
        "faults": faults,
        "met": is_better and is_complete and are_all_in and not faults,
    }


def count_exchanges(crew: Crew) -> dict[str, object]:
    """From all peers' logs, as far as they are kept: each meeting of two is in two of them."""
    over = [e for peer in crew.peers for e in read_events(peer.home) if e["event"] == "exchange"]
    whole = sum(bool(event["whole"]) for event in over)
    why = Counter(str(event["why"]) for event in over if not event["whole"])
    return {"exchanges": whole // 2, "given_up": len(over) - whole, "given_up_why": dict(why)}


if __name__ == "__main__":
    main()
