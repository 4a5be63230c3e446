"""When may a round close, and who closes it?

Pure: the caller says what time it is and who has been heard. Peers are ranked anew for each round
by a hash, so the task rotates and everybody computes the same order: the first is the closer, the
others are its deputies. Ballot `b` of a round belongs to the peer at rank `b` modulo the number of
members, and its turn comes at `turn_ms(b)`.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from statistics import median_low
from typing import Final

from protocol.ids import Millis, PeerId, RunId, digest
from protocol.roster import Roster
from protocol.rules import Rules

ARRIVALS_MIN: Final = 8
ARRIVALS_MAX: Final = 64


@lru_cache(maxsize=16)
def ranking(run: RunId, round: int, roster: Roster) -> tuple[PeerId, ...]:
    """The members in the order in which they close `round`."""
    key = digest("rank", run, round.to_bytes(8, "big"))
    return tuple(sorted(roster.members, key=lambda peer: digest("rank", key, peer)))


@dataclass(frozen=True, slots=True)
class Close:
    reason: str


@dataclass(frozen=True, slots=True)
class Wait:
    until_ms: Millis | None  # None: no timer helps, only another contribution
    reason: str


def decide(heard: int, missing: int, deadline_ms: Millis, now_ms: Millis) -> Close | Wait:
    """May the closer close, having `heard` contributions while `missing` live members have sent
    none?
    """
    count = f"{heard}/{heard + missing} heard"
    if heard == 0:
        return Wait(None, f"{count}: nothing to commit")
    if missing == 0:
        return Close(f"{count}: nobody left to wait for")
    if now_ms < deadline_ms:
        return Wait(deadline_ms, f"{count}: giving stragglers time")
    return Close(f"{count}: stragglers are out of time")


def deadline_after_ms(arrivals: Sequence[int], rules: Rules) -> int:
    """How long after a round opens its closer waits: median plus a multiple of the median absolute
    deviation.

    `arrivals` are past contributions' times after their rounds opened, in milliseconds.
    """
    floor = rules.window_ms + rules.deadline_floor_ms
    ceiling = rules.window_ms + rules.deadline_ceiling_ms
    if len(arrivals) < ARRIVALS_MIN:
        return ceiling
    middle = median_low(arrivals)
    spread = median_low([abs(arrival - middle) for arrival in arrivals])
    return max(floor, min(ceiling, middle + rules.deadline_mads * spread + rules.deadline_floor_ms))


def turn_ms(ballot: int, deadline_ms: int, rules: Rules) -> int:
    """When, after the round opened, the owner of `ballot` acts. Gaps grow, so that duels end; they
    follow from the rules alone, so that peers whose deadlines differ still take turns.
    """
    step = max(rules.takeover_ms, (rules.window_ms + rules.deadline_floor_ms) // 8)
    return deadline_ms + step * ballot + step * ballot * ballot // 16


def ballot_due(elapsed_ms: int, deadline_ms: int, rules: Rules) -> int:
    """The newest ballot whose turn has come; -1 before the first. A process that slept for a month
    finds it in a few steps.
    """
    low, high = -1, 1
    while turn_ms(high, deadline_ms, rules) <= elapsed_ms:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if turn_ms(middle, deadline_ms, rules) <= elapsed_ms:
            low = middle
        else:
            high = middle
    return low


def owner(ranked: Sequence[PeerId], ballot: int) -> PeerId:
    return ranked[ballot % len(ranked)]


def children(order: Sequence[PeerId], me: PeerId, fanout: int) -> list[PeerId]:
    """Whom `me` forwards to when `order[0]` spreads something down a tree with `fanout` branches a
    node.
    """
    at = order.index(me)
    return list(order[fanout * at + 1 : fanout * at + 1 + fanout])


def below(order: Sequence[PeerId], me: PeerId, fanout: int, mute: Set[PeerId]) -> list[PeerId]:
    """Our children in the tree, and the children of those that may not pass it on."""
    found: list[PeerId] = []
    waiting = children(order, me, fanout)
    while waiting:
        peer = waiting.pop()
        found.append(peer)
        if peer in mute:
            waiting += children(order, peer, fanout)
    return sorted(found)


def tree(ranked: Sequence[PeerId], root: PeerId) -> list[PeerId]:
    """The order of a tree whose root is `root`."""
    return [root, *(peer for peer in ranked if peer != root)]
