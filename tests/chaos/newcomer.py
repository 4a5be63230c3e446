"""A newcomer to a run with a large state, over slow lines: how soon does it contribute?

    python tests/chaos/newcomer.py [--mb 500] [--rate 100] [--delay 50] [--donors 4] [--kill]

Members and newcomer each sit behind a line of so many Mbit/s and milliseconds (one way). A ledger
with snapshots is made beforehand, with more work in each round than a machine here could do. The
members go on from it, a newcomer is started, and the clock runs from then until it does work that
an entry lists. With `--kill` one donor dies when half of the snapshot is there. Prints JSON. The
bound is the time that the newcomer's own line needs for the bytes which it received, times 1.3. The
entry itself (`listed_s`) comes when everybody's round ends, up to a round later: how long that is
depends on the window, and on where in a round the newcomer was started. A newcomer brings its own
processor: the members share half of the cores, and it has the other half together with the network
between them, which is no member's work, and this process. How much of a core each took is printed.
Members bring their own disks, too: five of them writing snapshots to one would be measuring that
one, so homes lie in memory where there is room for them.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from node.config import load_run_file
from node.errors import UserError
from node.offline import ReadOnlyStore
from node.swarm import PeerProcess
from protocol.identity import Identity
from protocol.ids import digest
from protocol.restore import entry_at, roster_at
from protocol.roster import Roster
from tests.bench.history import History
from tests.chaos.crew import PORT, RUN, Crew
from tests.chaos.logs import identity_of, read_events
from tests.chaos.net.network import Network
from tests.chaos.record import read_record
from tests.chaos.telling import conclude, tell

MOST: Final = 1.3
SLOWER_MOST: Final = 1.1
EVERY: Final = 10
WINDOW_S: Final = 5.0
TOOK_MS: Final = 7_500  # a round here, with what is merged, hashed and waited for
# The snapshot of round 90 is named in round 95, and 10 rounds old, the average, when one comes.
OLD_ROUNDS: Final = 84
PROBES: Final = 32
# Another period goes by before the newcomer comes: the same rounds of it, of which one has a
# snapshot to write, too, are what the members' rounds are compared with.
CALM_ROUNDS: Final = 6 + EVERY
_WAIT_S: Final = 600.0
_MEMORY: Final = Path("/dev/shm")
_FILES: Final = 4  # snapshots of each home, one of them being written


@dataclass(slots=True)
class Seen:
    """What was looked at while the newcomer came."""

    started_s: float = 0.0
    listed_s: float | None = None
    cores: dict[str, float] = field(default_factory=dict)  # that were busy, on average
    killed_at_bytes: int | None = None
    first_round: int = 0
    downlink_bytes: int = 0


class Trial:
    def __init__(self, options: argparse.Namespace, folder: Path, network: Network) -> None:
        self.options, self.network = options, network
        self.own_cores: set[int] = set()  # the newcomer's
        self.config = config = write_run(folder, options.mb)
        self.crew = Crew(folder / "swarm", config, network)

    def run(self) -> dict[str, object]:
        donors, crew, network = self.options.donors, self.crew, self.network
        self._write_homes()
        for _ in range(donors):
            crew.go_on()
        crew.wait_for_members(donors)
        theirs, self.own_cores = _shared_out(os.sched_getaffinity(0))
        for pid in (os.getpid(), network.switch_pid):
            _keep_to(pid, self.own_cores)
        for peer in crew.peers:
            _keep_to(peer.process.pid, theirs)
        calm = crew.rounds()["p1"] + CALM_ROUNDS
        crew.wait(lambda: crew.rounds()["p1"] >= calm, _WAIT_S)
        seen = self._watch()
        equal = self._agree()
        return self._report(seen, equal)

    def _write_homes(self) -> None:
        """One ledger and its snapshots, as if each member had lived through it."""
        options, folder = self.options, self.crew.folder
        seeds = [digest("donor", bytes([number])) for number in range(options.donors)]
        first = folder / "p1"
        first.mkdir(parents=True, mode=0o700)
        _write_identity(first, seeds[0])
        addresses = [
            (f"tcp://{self.network.address(number)}:{PORT}",) for number in range(options.donors)
        ]
        history = History(
            first,
            load_run_file(self.config),
            self.config.parent,
            [Identity(s) for s in seeds],
            TOOK_MS,
        )
        try:
            history.admit_all(addresses)
            for round in range(1, OLD_ROUNDS):
                # The last ones as light as a machine here can do them: members replay them first.
                heavy = round < OLD_ROUNDS - EVERY // 2 - 1
                history.close(PROBES if heavy else 4)
                tell(f"made round {round} of {OLD_ROUNDS}")
        finally:
            history.end()
        for number, seed in enumerate(seeds[1:], 2):
            home = folder / f"p{number}"
            shutil.copytree(first, home)
            (home / "identity").unlink()
            _write_identity(home, seed)

    def _watch(self) -> Seen:
        crew, seen, donors = self.crew, Seen(), self.options.donors
        before = self.network.counters()[donors].got_bytes
        seen.first_round = crew.rounds()["p1"]
        seen.started_s = start_s = time.monotonic()
        newcomer = crew.join(threads=len(self.own_cores))
        os.sched_setaffinity(newcomer.process.pid, self.own_cores)
        spent = self._cpu_s()
        half = self.options.mb * 500_000
        watch = Watch(crew.peers[0], newcomer, seen.first_round)
        while not watch.is_listed():
            time.sleep(0.1)
            if not newcomer.up or time.monotonic() - start_s > _WAIT_S:
                raise SystemExit(f"the newcomer did not come:\n{crew.last_words(newcomer)}")
            came = self.network.counters()[donors].got_bytes - before
            if self.options.kill and seen.killed_at_bytes is None and came >= half:
                crew.kill(crew.peers[1])
                seen.killed_at_bytes = came
        seen.listed_s = time.monotonic() - start_s
        seen.downlink_bytes = self.network.counters()[donors].got_bytes - before
        for name, cpu_s in self._cpu_s().items():
            seen.cores[name] = (cpu_s - spent[name]) / seen.listed_s
        return seen

    def _cpu_s(self) -> dict[str, float]:
        """Processor time so far. A donor that was killed takes none."""
        pids = {peer.name: peer.process.pid for peer in self.crew.peers if peer.up}
        pids |= {"switch": self.network.switch_pid, "bench": os.getpid()}
        times = {name: psutil.Process(pid).cpu_times() for name, pid in pids.items()}
        machine = psutil.cpu_times()
        busy = sum(machine) - machine.idle - machine.iowait - machine.guest - machine.guest_nice
        return {name: t.user + t.system for name, t in times.items()} | {"machine": busy}

    def _agree(self) -> bool:
        crew = self.crew
        for peer in crew.peers:
            peer.digests.clear()
        crew.wait(lambda: crew.common_digests() is not None, 120.0)
        common = crew.common_digests()
        return common is not None and len(set(common[1].values())) == 1

    def _report(self, seen: Seen, equal: bool) -> dict[str, object]:
        options, crew = self.options, self.crew
        assert seen.listed_s is not None
        newcomer = crew.peers[-1]
        line_s = seen.downlink_bytes * 8 / (options.rate * 1e6)
        events = read_events(newcomer.home)
        fetched = [event for event in events if event["event"] == "snapshot-fetched"]
        choice = [str(event["why"]) for event in events if event["event"] == "catching-up"]
        me = identity_of(newcomer.home)
        rounds = read_record(crew.peers[0].home, ()).rounds
        first_own = next(round.number for round in rounds if me in round.contributors)
        busy_rounds = range(seen.first_round, first_own)
        busy = [rounds[number].took_ms for number in busy_rounds]
        calm = [rounds[number - EVERY].took_ms for number in busy_rounds]
        contributing_s = _at_work_s(events, first_own) - seen.started_s
        slower = statistics.mean(busy) / statistics.mean(calm)
        numbers = {
            "state_mb": options.mb,
            "donors": options.donors,
            "rate_mbit": options.rate,
            "delay_ms": options.delay,
            "contributing_s": contributing_s,
            "listed_s": seen.listed_s,
            "downlink_bytes": seen.downlink_bytes,
            "downlink_s": line_s,
            "ratio": contributing_s / line_s,
            "ratio_max": MOST,
            "ratio_listed": seen.listed_s / line_s,
            "rounds_slower": slower if not options.kill else None,
            "rounds_slower_max": SLOWER_MOST,
            "first_round": seen.first_round,
            "rounds_s_calm": statistics.mean(calm) / 1000,
            "steps_s": _steps(events, seen.started_s),
            "cores": os.cpu_count(),
            "cores_of_newcomer": len(self.own_cores),
            "cores_busy": seen.cores,
            "fetch_s": float(str(fetched[-1]["took_ms"])) / 1000 if fetched else None,
            "chunks_fetched_twice": fetched[-1]["repeated"] if fetched else None,
            "donor_killed_at_bytes": seen.killed_at_bytes,
            "choice": choice,
            "digests_equal": equal,
        }
        met = bool(fetched) and equal and fetched[-1]["repeated"] == 0
        if not options.kill:
            met = met and contributing_s / line_s <= MOST and slower <= SLOWER_MOST
        return {"bench": "newcomer over slow lines", **numbers, "met": met}


@dataclass(slots=True)
class Watch:
    """Looks for an entry with a line of the newcomer, from round `at` on."""

    founder: PeerProcess
    newcomer: PeerProcess
    at: int

    def is_listed(self) -> bool:
        try:
            me = identity_of(self.newcomer.home)
        except (OSError, UserError):
            return False  # it has not made its home yet
        founders = Roster((identity_of(self.founder.home),))
        disk = ReadOnlyStore(self.founder.home)
        try:
            while (entry := entry_at(disk, self.at)) is not None:
                roster = roster_at(disk, founders, self.at)
                assert roster is not None
                if any(roster.members[line.seat] == me for line in entry.body.lines):
                    return True
                self.at += 1
            return False
        finally:
            disk.close()


def _keep_to(pid: int, cores: set[int]) -> None:
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), cores)


def _shared_out(cores: set[int]) -> tuple[set[int], set[int]]:
    """The members' and the newcomer's. With one core, both have that."""
    ordered = sorted(cores)
    half = len(ordered) // 2
    return set(ordered[: len(ordered) - half]), set(ordered[-half:] if half else ordered)


def _at_work_s(events: list[dict[str, object]], round: int) -> float:
    """When the newcomer's work for its first round began: its state was there, the round open."""
    times = [
        float(str(event["t_ms"])) / 1000
        for event in events
        if event["event"] == "caught-up"
        or (event["event"] == "round" and event["round"] == round - 1)
    ]
    return max(times)


def _steps(events: list[dict[str, object]], started_s: float) -> dict[str, float]:
    """When the newcomer came to what, counted from its start."""
    times: dict[str, float] = {}
    for event in events:
        times.setdefault(str(event["event"]), float(str(event["t_ms"])) / 1000 - started_s)
    names = ("round", "fetching-snapshot", "catching-up", "snapshot-fetched", "caught-up")
    return {name: times[name] for name in names if name in times}


def _memory_for(need: int) -> Path | None:
    """A folder in memory, if half of what is free is enough; None: a disk will have to do."""
    free = min(psutil.virtual_memory().available, shutil.disk_usage(_MEMORY).free)
    return _MEMORY if need <= free // 2 else None


def _write_identity(home: Path, seed: bytes) -> None:
    path = home / "identity"
    path.touch(mode=0o600)
    path.write_text(seed.hex() + "\n")


def write_run(folder: Path, megabytes: int) -> Path:
    text = folder / "text.txt"
    text.write_text("\n".join(f"{n} times {n} is {n * n}, as everybody knows." for n in range(900)))
    path = folder / "run.toml"
    made = RUN.format(text=text, quorum="any", window_s=WINDOW_S, network="wan")
    made = made.replace("[node]", f"snapshot_every = {EVERY}\n\n[node]")
    made = made.replace('label = "bigram"', 'label = "wide"')
    made = made.replace(
        'bigram = "tests.chaos.device:bigram"', f'wide = "tests.chaos.device:wide_{megabytes}"'
    )
    path.write_text(made)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mb", type=int, default=500, choices=[20, 100, 200, 500])
    parser.add_argument("--rate", type=float, default=100.0, help="Mbit/s")
    parser.add_argument("--delay", type=float, default=50.0, help="ms, one way")
    parser.add_argument("--donors", type=int, default=4)
    parser.add_argument("--kill", action="store_true", help="a donor dies half way")
    parser.add_argument("--keep", type=Path, help="leave the homes in this folder")
    options = parser.parse_args()
    with ExitStack() as stack:
        memory = _memory_for(options.mb * (options.donors + 1) * _FILES * 1_000_000)
        folder = options.keep or Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="newcomer-", dir=memory))
        )
        folder.mkdir(parents=True, exist_ok=True)
        network = stack.enter_context(
            Network(options.donors + 1, rate_mbit=options.rate, delay_ms=options.delay)
        )
        trial = Trial(options, folder, network)
        stack.enter_context(trial.crew)
        in_memory = folder.resolve().is_relative_to(_MEMORY)
        facts = {**trial.run(), "homes": "memory" if in_memory else "disk"}
    conclude(facts)


if __name__ == "__main__":
    main()
