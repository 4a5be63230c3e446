"""How a round's contributions reach everybody, without a network: whole, or summed part by part."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from node.compare.timing import Clock
from node.methods.base import Contribution, Method, RoundContext, Summing, WorkResult


@dataclass(frozen=True, slots=True)
class Seat:
    """One peer in one round."""

    method: Method
    context: RoundContext
    work: WorkResult


@dataclass(frozen=True, slots=True)
class Traffic:
    """In bytes, of one peer on average."""

    sent: float
    received: float


def whole(seats: Sequence[Seat], clock: Clock) -> Traffic:
    """Everybody gets what everybody else attached; who has it passes it on."""
    entry = [
        Contribution(seat.context.peer, seat.work.payload, seat.work.attachment) for seat in seats
    ]
    for seat in seats:
        with clock.timed():
            for one in entry:
                seat.method.weigh(one.payload)
                seat.method.check(seat.context.round, one.payload, one.attachment)
            seat.method.merge(seat.context, entry)
    sent = sum(len(one.payload) + len(one.attachment) for one in entry) / len(entry)
    return Traffic(sent, sent * (len(entry) - 1))


def by_parts(seats: Sequence[Seat], clock: Clock) -> Traffic:
    """Peer n adds up part n for all."""
    count = seats[0].context.parts
    sums: list[bytes] = []
    for number, seat in enumerate(seats[:count]):
        assert isinstance(seat.method, Summing), "only these have attachments in parts"
        lines = [
            Contribution(one.context.peer, one.work.payload, one.work.parts[number])
            for one in seats
        ]
        with clock.timed():
            mine = replace(seat.context, answers_for=number)
            sums.append(seat.method.add_up(mine, number, lines))
    for at, seat in enumerate(seats):
        assert isinstance(seat.method, Summing), "only these have attachments in parts"
        with clock.timed():
            for number, data in enumerate(sums):
                seat.method.check_sum(seat.context, number, data)
            seat.method.merge_sums(seat.context, _own_alone(seats, at), sums)
    payloads = sum(len(seat.work.payload) for seat in seats)
    parts = sum(
        len(part)
        for at, seat in enumerate(seats)
        for number, part in enumerate(seat.work.parts)
        if number != at  # its own it has
    )
    others = len(seats) - 1
    passed = parts + others * (payloads + sum(map(len, sums)))
    return Traffic(passed / len(seats), passed / len(seats))


def _own_alone(seats: Sequence[Seat], mine: int) -> list[Contribution]:
    return [
        Contribution(
            seat.context.peer,
            seat.work.payload,
            b"".join(seat.work.parts) if at == mine else b"",
        )
        for at, seat in enumerate(seats)
    ]
