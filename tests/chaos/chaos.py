"""How much work does a swarm lose to faults, and does it lose anything it had committed?

    python tests/chaos/chaos.py --peers 32 --faults 62 --minutes 30 --seed 1

A swarm of real processes trains under faults drawn from the seed (kill -9, SIGSTOP, leaving and
coming back, full disks; where network namespaces can be made also partitions, delay, loss and slow
links). A control swarm of the same size trains beside it on the same machine at the same time and
is left alone. Printed at the end, as one JSON line: committed work per live member-second of both
and their ratio; the faults by kind; rounds; whether all replicas are equal after healing.

*Committed work* is what the final ledger holds: the probes of all contributions listed in rounds
that closed within the interval. *Live member-seconds* are the seconds in which a member's process
runs and is not stopped by us: from the start of the process, loading included, until it ends; a
process under SIGSTOP and the pause between a kill and the next start do not count, being cut off
from the others does. The interval of each swarm goes from one closing of a round to another, so
that no round counts in part.

Work is bound by time, not by the cores that all share: see device.py.

`--mass-kill` instead kills a third of the members in one second, and tells when the next round
closed and whether anything that was committed is gone.
"""

import argparse
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import psutil  # noqa: E402

from tests.chaos.crew import Crew, write_run  # noqa: E402
from tests.chaos.faults import NEED_NETWORK, Fault, Injector, Kind, draw  # noqa: E402
from tests.chaos.net.network import (  # noqa: E402
    PORTS_MAX,
    Network,
    NetworkUnavailable,
    measure_cpu_s,
)
from tests.chaos.record import as_table, read_record, summarise  # noqa: E402
from tests.chaos.telling import conclude, tell  # noqa: E402

BOUND = 0.977
BOUND_MINUTES = 30  # below that, single rounds and faults weigh too much
FAULTS_PER_MEMBER_MINUTE = 62 / (32 * 30)
DELAY_MS = 2.0  # one way, between any two members
_TAIL_S = 45.0  # no fault begins so late that its work cannot be committed within the interval
_POLL_S = 0.1


def main() -> None:
    options = parse(sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # leave nothing behind
    with ExitStack() as stack:
        folder = options.keep or stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-"))
        crews = 1 if options.no_control or options.mass_kill else 2
        network = open_network(options.peers * crews, options, stack)
        if options.mass_kill:
            from tests.chaos.mass_kill import mass_kill

            facts = mass_kill(Path(folder), options.peers, options.window, network, options.seed)
        else:
            facts = chaos(Path(folder), options, network)
    conclude(facts)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", type=int, default=8)
    parser.add_argument("--faults", type=int, help="left out: 62 for 32 peers in 30 minutes")
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quorum", choices=("any", "majority"), default="any")
    parser.add_argument("--window", type=float, default=5.0, help="seconds of work in a round")
    parser.add_argument("--no-control", action="store_true")
    parser.add_argument("--loopback", action="store_true", help="no network namespaces")
    parser.add_argument("--mass-kill", action="store_true")
    parser.add_argument("--keep", type=Path, help="put homes and logs in this folder and keep them")
    options = parser.parse_args(arguments)
    if options.faults is None:
        share = FAULTS_PER_MEMBER_MINUTE * options.peers * options.minutes
        options.faults = max(1, round(share))
    return options


def open_network(nodes: int, options: argparse.Namespace, stack: ExitStack) -> Network | None:
    if options.loopback:
        return None
    try:
        if nodes > PORTS_MAX:
            raise NetworkUnavailable(f"the switch has {PORTS_MAX} ports, {nodes} are wanted")
        return stack.enter_context(Network(nodes, delay_ms=DELAY_MS, seed=options.seed))
    except NetworkUnavailable as error:
        tell(f"{error}; faults of the network are left out")
        return None


def chaos(folder: Path, options: argparse.Namespace, network: Network | None) -> dict[str, object]:
    config = write_run(folder / "run", quorum=options.quorum, window_s=options.window)
    seconds = options.minutes * 60
    tail_s = min(_TAIL_S, seconds / 3)
    with crews(folder, config, options, network) as (crew, control):
        without = set() if network else set(NEED_NETWORK)
        faults = prepared_faults(crew, options, seconds - tail_s, without)
        tell(f"seed {options.seed}: {len(faults)} faults in {seconds:.0f} s")
        for fault in faults:
            tell(f"  {fault}")
        both = [crew] if control is None else [crew, control]
        for each in both:
            each.start(options.peers)
            tell(f"{options.peers} peers are members")
        time.sleep(3 * options.window)  # until the first rounds' long deadlines are over
        injector = Injector(crew, network, faults, tell)
        usage = Usage(both, network)
        first_s = time.monotonic()
        while (now_s := time.monotonic() - first_s) < seconds or not injector.is_over:
            injector.poll(now_s)
            for each in both:
                each.reap()
            time.sleep(_POLL_S)
        last_s = time.monotonic()
        used = usage.take()
        healed = [each.heal(tell) for each in both]
        for each in both:
            each.close()
        facts = compare(both, first_s, last_s)
    equal = all(heal is not None for heal in healed)
    ratio = facts["ratio"]
    applies = control is not None and options.minutes >= BOUND_MINUTES
    within = not applies or (isinstance(ratio, float) and ratio >= BOUND)
    return {
        "bench": "chaos",
        "seed": options.seed,
        "peers": options.peers,
        "minutes": options.minutes,
        "window_s": options.window,
        "quorum": options.quorum,
        "namespaces": network is not None,
        "control": "beside" if control is not None else "none",
        "faults": len(faults),
        "faults_by_kind": dict(Counter(fault.kind.value for fault in faults)),
        **facts,
        "bound": BOUND,
        "bound_applies": applies,
        "digests_equal": equal,
        "healed_after_s": healed,
        **used,
        "met": equal and within,
    }


@contextmanager
def crews(
    folder: Path, config: Path, options: argparse.Namespace, network: Network | None
) -> Iterator[tuple[Crew, Crew | None]]:
    """The swarm that faults happen to, and the one beside it; none of them outlives the block."""
    with ExitStack() as stack:

        def crew(name: str, first_node: int) -> Crew:
            return stack.enter_context(Crew(folder / name, config, network, first_node))

        beside = None if options.no_control else crew("control", options.peers)
        yield crew("chaos", 0), beside


def prepared_faults(
    crew: Crew, options: argparse.Namespace, seconds: float, without: set[Kind]
) -> tuple[Fault, ...]:
    """The schedule. Who is to meet a full disk gets a small one; if none can be mounted, nobody
    meets one.
    """
    what = options.seed, options.faults, seconds, options.peers, options.window
    faults = draw(*what, without)
    victims = {fault.victims[0] for fault in faults if fault.kind is Kind.DISK}
    if all(crew.small_disk(victim) for victim in sorted(victims)):
        return faults
    tell("no small disk can be mounted here; faults of the disk are left out")
    return draw(*what, without | {Kind.DISK})


class Usage:
    """Of the machine by all members, from now on."""

    def __init__(self, crews: Sequence[Crew], network: Network | None) -> None:
        self._crews, self._network = crews, network
        self._start_s, self._before_s = time.monotonic(), self._cpu_s()
        self._switch_s = self._switch_cpu_s()
        psutil.cpu_percent()

    def _cpu_s(self) -> float:
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        running = [peer.process.pid for crew in self._crews for peer in crew.peers if peer.up]
        return ended.ru_utime + ended.ru_stime + sum(map(measure_cpu_s, running))

    def _switch_cpu_s(self) -> float:
        return measure_cpu_s(self._network.switch_pid) if self._network else 0.0

    def take(self) -> dict[str, object]:
        wall_s = time.monotonic() - self._start_s
        cores = psutil.cpu_count() or 1
        switch_s = self._switch_cpu_s() - self._switch_s
        pids = [peer.process.pid for crew in self._crews for peer in crew.peers if peer.up]
        return {
            "cores": cores,
            "cpu_share_of_peers": (self._cpu_s() - self._before_s) / wall_s / cores,
            "cpu_share_of_machine": psutil.cpu_percent() / 100,
            "cpu_share_of_switch": switch_s / wall_s / cores if self._network else None,
            "peer_memory_mb_mean": sum(psutil.Process(pid).memory_full_info().pss for pid in pids)
            / max(1, len(pids))
            / 1e6,
        }


def compare(both: Sequence[Crew], first_s: float, last_s: float) -> dict[str, object]:
    summaries = []
    for crew in both:
        record = read_record(crew.peers[0].home, crew.homes())  # healed: all have the same
        (crew.folder / "rounds.txt").write_text(as_table(record, first_s))
        summaries.append(summarise(crew, record, first_s, last_s))
    rates = [summary["work_per_live_member_s"] for summary in summaries]
    ratio = None
    if len(rates) == 2 and isinstance(rates[0], float) and isinstance(rates[1], float):
        ratio = rates[0] / rates[1]
    names = ("chaos", "control")
    return {"ratio": ratio} | {name: s for name, s in zip(names, summaries, strict=False)}


if __name__ == "__main__":
    main()
