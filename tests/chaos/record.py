"""What a swarm did, read afterwards from its members' disks: the ledger says what was committed,
their logs say when.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Final

from node.config import Manifest
from node.methods.parts.probes import decode
from node.offline import ReadOnlyStore
from protocol.entries import Cause, Entry
from protocol.ids import PeerId
from protocol.restore import entry_at
from protocol.roster import Roster
from tests.chaos.crew import Crew
from tests.chaos.logs import identity_of, read_events

_SHORT: Final = 4  # bytes of a hash in a log


@dataclass(frozen=True, slots=True)
class Round:
    number: int
    closed_s: float  # on the machine's monotonic clock, when the first peer had the entry
    work: int  # probes
    late_work: int  # of those: measured in an earlier round
    contributors: frozenset[PeerId]
    members: int
    took_ms: int
    dead: int  # members that it dropped as dead


@dataclass(frozen=True, slots=True)
class Record:
    rounds: tuple[Round, ...]

    def between(self, first_s: float, last_s: float) -> tuple[float, float, tuple[Round, ...]]:
        """From the first closing after `first_s` to the last one before `last_s`, with the rounds
        in between: whole rounds only, so that none counts in part.
        """
        inside = [round for round in self.rounds if first_s <= round.closed_s <= last_s]
        if len(inside) < 2:
            return first_s, first_s, ()
        return inside[0].closed_s, inside[-1].closed_s, tuple(inside[1:])


def as_table(record: Record, first_s: float) -> str:
    """A line for each round, for whoever wants to see where work was lost."""
    lines = ["     at_s  round  took_ms  contributions  members  work  late  dead"]
    lines += [
        f"{round.closed_s - first_s:9.2f} {round.number:6} {round.took_ms:8}"
        f" {len(round.contributors):14} {round.members:8} {round.work:5} {round.late_work:5}"
        f" {round.dead:5}"
        for round in record.rounds
    ]
    return "\n".join(lines) + "\n"


def read_chain(home: Path) -> list[Entry]:
    disk = ReadOnlyStore(home)
    try:
        found: list[Entry] = []
        while (entry := entry_at(disk, len(found))) is not None:
            found.append(entry)
        return found
    finally:
        disk.close()


def read_record(home: Path, logs: Iterable[Path]) -> Record:
    """The chain in `home`; when its rounds closed is looked up in all of `logs` (homes)."""
    times = _closings(logs)
    roster = Roster((_founder(home),))
    rounds, before_s = [], 0.0
    for entry in read_chain(home):
        body = entry.body
        # A round that no living log tells of closed at some time after the one before.
        before_s = times.get((body.round, entry.hash[:_SHORT].hex()), before_s)
        probes = [probe for line in body.lines for probe in decode(line.payload)]
        rounds.append(
            Round(
                body.round,
                before_s,
                len(probes),
                sum(probe.age > 0 for probe in probes),
                frozenset(roster.members[line.seat] for line in body.lines),
                len(roster),
                body.took_ms,
                sum(departure.cause is Cause.DEAD for departure in body.departures),
            )
        )
        roster = roster.after(body)
    return Record(tuple(rounds))


def _founder(home: Path) -> PeerId:
    disk = ReadOnlyStore(home)
    try:
        raw = disk.get("meta", b"manifest")
        assert raw is not None, "a home that has run belongs to a run"
        return PeerId(bytes.fromhex(Manifest.decode(raw).founder))
    finally:
        disk.close()


def _closings(homes: Iterable[Path]) -> dict[tuple[int, str], float]:
    """(round, start of the entry's hash) -> when the first peer had it."""
    times: dict[tuple[int, str], float] = {}
    for home in homes:
        for event in read_events(home):
            if event["event"] != "round":
                continue
            place = int(str(event["round"])), str(event["entry"])
            at_s = float(str(event["t_ms"])) / 1000
            times[place] = min(at_s, times.get(place, at_s))
    return times


def summarise(crew: Crew, record: Record, first_s: float, last_s: float) -> dict[str, object]:
    """What a crew did within an interval. Times are in seconds, work in probes."""
    start_s, end_s, rounds = record.between(first_s, last_s)
    live_s = sum(presence.seconds(start_s, end_s) for presence in crew.presence.values())
    work = sum(round.work for round in rounds)
    lengths = [b.closed_s - a.closed_s for a, b in pairwise(rounds)]
    waits = _until_listed(crew, rounds, start_s)
    return {
        "rounds": len(rounds),
        "work": work,
        "late_work": sum(round.late_work for round in rounds),
        "live_member_s": live_s,
        "work_per_live_member_s": work / live_s if live_s else None,
        "round_s_median": median(lengths) if lengths else None,
        "round_s_mean": mean(lengths) if lengths else None,
        "round_s_most": max(lengths, default=None),
        "contributions_mean": mean(len(r.contributors) for r in rounds) if rounds else None,
        "dropped_as_dead": sum(round.dead for round in rounds),
        "start_to_listed_s_median": median(waits) if waits else None,
        "start_to_listed_s_most": max(waits, default=None),
    }


def _until_listed(crew: Crew, rounds: Sequence[Round], start_s: float) -> list[float]:
    """For each start or wake-up of a member: how long until a round that lists it closed."""
    found = []
    for peer in crew.peers:
        me = identity_of(peer.home)
        for begin, _ in crew.presence[peer.name].spans:
            closed = [r.closed_s for r in rounds if r.closed_s > begin and me in r.contributors]
            if begin > start_s and closed:
                found.append(closed[0] - begin)
    return found
