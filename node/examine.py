"""What other members say about this peer's place in the network: measured, never guessed.

Runs beside the driver, on its loop. Each part is bounded: so many members, so many bytes, so many
seconds.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from node.prober import NodeProber, wall_ms
from protocol.codec import FILLER_BYTES_MAX
from protocol.ids import PeerId

DIALLERS: Final = 3
CLOCKS: Final = 5
_PINGS: Final = 4
_ECHO_S: Final = 3.0
RATE_BYTES: Final = 4 << 20
RATE_S: Final = 2.0
_IN_FLIGHT_MAX: Final = 8


@dataclass(frozen=True, slots=True)
class Dialler:
    """What a member found when it dialled us."""

    member: str
    answered: bool
    ways: tuple[tuple[str, int | None], ...]  # address, and in how many ms a connection was up


@dataclass(frozen=True, slots=True)
class Clock:
    member: str
    round_trip_ms: float
    offset_ms: float  # how far its clock is ahead of ours


@dataclass(frozen=True, slots=True)
class Rate:
    member: str
    bytes: int
    seconds: float
    bytes_per_s: float | None  # None: too little came through to say


@dataclass(frozen=True, slots=True)
class Examined:
    """Without other members that are up, all is empty."""

    members_asked: int
    diallers: tuple[Dialler, ...]
    clocks: tuple[Clock, ...]
    down: Rate | None
    up: Rate | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


async def examine(prober: NodeProber, members: Sequence[PeerId], *, dialled: bool) -> Examined:
    """`members` are up, those that we reach without a relay first; `dialled`: our card has
    addresses for them to try.
    """
    backs = [_dial_back(prober, member) for member in members[:DIALLERS]] if dialled else []
    diallers = asyncio.gather(*backs)
    clocks = await asyncio.gather(*(_clock(prober, member) for member in members[:CLOCKS]))
    found = [clock for clock in clocks if clock is not None]
    down = up = None
    if found:
        # The nearest one: what is slow then is most likely our own link.
        nearest = min(found, key=lambda clock: clock.round_trip_ms)
        member = next(peer for peer in members if peer.hex() == nearest.member)
        down = await _rate(prober, member, want=FILLER_BYTES_MAX, filler=b"")
        up = await _rate(prober, member, want=0, filler=bytes(FILLER_BYTES_MAX))
    return Examined(len(members), tuple(await diallers), tuple(found), down, up)


async def _dial_back(prober: NodeProber, member: PeerId) -> Dialler:
    answer = await prober.dial_back(member)
    ways = () if answer is None else tuple((way.address, way.took_ms) for way in answer.ways)
    return Dialler(member.hex(), answer is not None, ways)


async def _clock(prober: NodeProber, member: PeerId) -> Clock | None:
    """From the shortest of a few round trips: it leaves the least room for doubt."""
    best: Clock | None = None
    for _ in range(_PINGS):
        sent_ms, started = wall_ms(), time.monotonic()
        answer = await prober.echo_from(member, 0, b"", _ECHO_S)
        if answer is None:
            continue
        trip_ms = (time.monotonic() - started) * 1000
        if best is None or trip_ms < best.round_trip_ms:
            offset_ms = answer.wall_ms - (sent_ms + trip_ms / 2)
            best = Clock(member.hex(), round(trip_ms, 1), round(offset_ms, 1))
    return best


async def _rate(prober: NodeProber, member: PeerId, want: int, filler: bytes) -> Rate:
    """Chunks under way double from one on, up to eight, until time or bytes are used up."""
    size = want + len(filler)
    started = last = time.monotonic()
    left, moved, allowed = RATE_BYTES // size, 0, 1
    under_way: set[asyncio.Task[Any]] = set()
    while True:
        in_time = time.monotonic() - started < RATE_S
        while in_time and left and len(under_way) < allowed:
            left -= 1
            echo = prober.echo_from(member, want, filler, _ECHO_S)
            under_way.add(asyncio.create_task(echo))
        if not under_way:
            break
        done, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if task.result() is None:
                left = 0  # not granted, or lost: what came until then counts
                continue
            moved, last = moved + size, time.monotonic()
            allowed = min(2 * allowed, _IN_FLIGHT_MAX)
    seconds = last - started
    rate = moved / seconds if moved and seconds > 0 else None
    return Rate(member.hex(), moved, round(seconds, 3), rate)
