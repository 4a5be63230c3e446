"""An entry, put together by its closer from what it holds."""

from collections.abc import Iterable, Sequence
from typing import Final

from protocol.codec import encode_body
from protocol.core import Core
from protocol.entries import (
    ENTRY_BYTES_MAX,
    Admission,
    Body,
    Cause,
    Departure,
    Entry,
    entry_hash,
    seal_bytes,
)
from protocol.open_round import Held, OpenRound

_LINE_OVERHEAD: Final = 256  # bytes of a line beside its payload, signature included


def build_entry(
    core: Core,
    round: OpenRound,
    listed: Sequence[Held],
    admissions: tuple[Admission, ...],
    departures: tuple[Departure, ...],
) -> Entry:
    """Lists contributions that were computed on the state most of them share; at least one."""
    counts: dict[int, int] = {}
    for held in listed:
        counts[held.state] = counts.get(held.state, 0) + 1
    state = max(counts, key=lambda state: (counts[state], -state))
    chosen = _fitting(held for held in listed if held.state == state)
    present = {held.line.seat for held in chosen}
    seat = core.head.roster.seat(core.me)
    assert seat is not None
    body = Body(
        core.head.round,
        core.head.hash,
        seat,
        min(core.now - round.opened_ms, (1 << 32) - 1),
        state,
        tuple(held.line for held in chosen),
        admissions,
        tuple(one for one in departures if one.cause is not Cause.DEAD or one.seat not in present),
    )
    raw = encode_body(body)
    seal = core.keys.sign(seal_bytes(core.run, body.round, body.parent, entry_hash(raw)))
    return Entry(body, raw, seal, tuple(held.signature for held in chosen))


def _fitting(held: Iterable[Held]) -> list[Held]:
    """By seat, as many as an entry can carry; the rest is late."""
    room = ENTRY_BYTES_MAX * 3 // 4
    chosen = []
    for item in sorted(held, key=lambda item: item.line.seat):
        room -= len(item.line.payload) + _LINE_OVERHEAD
        if room < 0:
            break
        chosen.append(item)
    return chosen
