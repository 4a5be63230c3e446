"""Who meets whom: from the members and a seed alone, so that both sides come to the same answer.

Integers and BLAKE3 only. A member's key in a round is a hash of (seed, kind, round, member); keys
are independent and uniform, so whatever follows from their order is a uniform random choice.

**Random matching.** Members lie in a binary trie by the bits of their keys. From the leaves up,
each node pairs what its two sides left over and hands at most one member on. Who is left at the
root sits out. By symmetry every perfect matching is equally likely; and a member more or less
changes pairs along one path of the trie only, some log2(N) at most, so two peers whose views differ
by a member still agree on nearly all pairs. **Groups of n** are the same with up to n - 1 members
handed on; at the root what is left meets as a smaller group, if it is more than one.

**Ring.** Members in the seed's order, the same in all rounds; each meets its two neighbours in
turns. With an odd number one sits out, each in its turn.

**Hypercube.** In the same order, rank i meets rank i xor 2^(t mod q), q = ceil(log2 N): for N = 2^q
the mean is exact after q rounds. Who has no such partner, where N is no power of two, meets another
one who has none. After every q rounds all move up one place, so that it is not always the same.

**Exponential.** In the same order, rank i sends to rank i + 2^(t mod q), q = ceil(log2 N): the
one-peer exponential graph of *Stochastic Gradient Push* (2018), https://arxiv.org/abs/1811.10792.
For N = 2^q the mean is exact after q rounds. **Random targets**: each sends to one that it draws.

Who has another view computes another round. So a view has a digest, which peers compare before they
exchange; `settled` says what two views agree on.

Asynchronous peers do not wait for a round. The k-th partner of a peer is the first of a ranking
that others can compute, too; who is busy says so, and the next in the ranking is asked. A Poisson
clock says when: `exponential_wait` draws exactly, by von Neumann's comparisons ("Various techniques
used in connection with random digits", 1951), with no logarithm in it.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, assert_never

from blake3 import blake3

from node.methods.parts.gossip_config import Kind

_KEY: Final = "peertrain 2026-11 gossip key v1"
_VIEW: Final = "peertrain 2026-11 gossip view v1"
_CLOCK: Final = "peertrain 2026-11 gossip clock v1"
_KEY_BITS: Final = 64
_MATCH, _ORDER, _TARGET, _RANK = range(4)  # purposes of keys
GROUP_MAX: Final = 64
_SKIPPED_MAX: Final = 1 << 20


@dataclass(frozen=True)
class View:
    """Members as one peer sees them; any number, in any order."""

    seed: bytes  # of the run, 32 bytes
    members: tuple[bytes, ...]  # ids of 32 bytes, sorted, each once

    @staticmethod
    def of(seed: bytes, members: Sequence[bytes]) -> "View":
        assert len(seed) == 32, "a seed is 32 bytes"
        assert all(len(member) == 32 for member in members), "identifiers are 32 bytes"
        return View(seed, tuple(sorted(set(members))))

    @cached_property
    def digest(self) -> bytes:
        """16 bytes, equal for equal views."""
        return blake3(self.seed + b"".join(self.members), derive_key_context=_VIEW).digest(16)

    @cached_property
    def order(self) -> tuple[bytes, ...]:
        """Members in the order that the seed gives them, in all rounds."""
        return tuple(member for _, member in _keyed(self, _ORDER, 0))


@dataclass(frozen=True, slots=True)
class Meeting:
    """Two or more that exchange. Directed: the first one sends to the second."""

    peers: tuple[bytes, ...]
    directed: bool = False
    turn: int = 0  # of what goes in turns: the round

    def seat(self, peer: bytes) -> int:
        return self.peers.index(peer)


def meetings(kind: Kind, view: View, round: int, group: int = 2) -> list[Meeting]:
    """Of one round. Undirected ones share no peer; of directed ones each peer is the sender of at
    most one. `group`: peers in a meeting of kind `groups`, at least 2.
    """
    assert round >= 0, round
    if len(view.members) < 2:
        return []
    match kind:
        case "matching":
            return _groups(view, round, 2)
        case "groups":
            assert 2 <= group <= GROUP_MAX, group
            return _groups(view, round, group)
        case "ring":
            return _ring(view.order, round)
        case "hypercube":
            return _hypercube(view.order, round)
        case "exponential":
            return _exponential(view.order, round)
        case "random":
            return _random_targets(view, round)
        case _:
            assert_never(kind)


def settled(kind: Kind, views: Sequence[View], round: int, group: int = 2) -> list[Meeting]:
    """The meetings that all these views give. One takes place only if all its peers expect it."""
    first, *others = (meetings(kind, view, round, group) for view in views)
    return [one for one in first if all(one in other for other in others)]


def partners(view: View, me: bytes, number: int) -> Iterator[bytes]:
    """Whom an asynchronous peer asks for its exchange `number`, one after the other: all others,
    shuffled (Fisher and Yates), as far as they are looked at.
    """
    others = len(view.members) - (me in view.members)
    own = bisect_left(view.members, me) if me in view.members else len(view.members)
    swapped: dict[int, int] = {}
    for at in range(others):
        draw = _key(_RANK, view, number, me, at.to_bytes(32, "little"))
        chosen = at + (draw * (others - at) >> _KEY_BITS)
        place = swapped.get(chosen, chosen)
        swapped[chosen] = swapped.pop(at, at)
        yield view.members[place + (place >= own)]


def next_number(number: int, ahead: int) -> int:
    """Of the exchange after `number`, if others are at `ahead`. Who is far behind skips what nobody
    waits for any more; one that others wait for is not skipped. Nobody is led astray by more than
    `_SKIPPED_MAX` at a time.
    """
    return number + 1 if ahead <= number + 1 else min(ahead, number + _SKIPPED_MAX)


def exponential_wait(
    seed: bytes,  # of the run
    me: bytes,
    number: int,  # which of the waits
    mean: int,  # in the caller's unit of time
) -> int:
    """A wait in the same unit, exponentially distributed to within 2^-32 of the mean; whole units,
    rounded down.
    """
    draws = _draws(seed, me, number)
    whole = 0
    while True:
        first = last = next(draws)
        length = 1
        while (draw := next(draws)) < last:
            last = draw
            length += 1
        if length % 2:  # the first draw is the fraction: of a wait between `whole` and one more
            return (whole * (1 << 32) + first) * mean >> 32
        whole += 1


# Keys


def _key(purpose: int, view: View, number: int, owner: bytes, member: bytes) -> int:
    fields = view.seed + bytes([purpose]) + number.to_bytes(8, "little") + owner + member
    digest = blake3(fields, derive_key_context=_KEY).digest(length=_KEY_BITS // 8)
    return int.from_bytes(digest, "big")


def _keyed(view: View, purpose: int, number: int) -> list[tuple[int, bytes]]:
    """Members by their keys, ascending; equal keys by the member."""
    return sorted((_key(purpose, view, number, bytes(32), one), one) for one in view.members)


def _draws(seed: bytes, me: bytes, number: int) -> Iterator[int]:
    """32-bit numbers without end."""
    block = 0
    while True:
        fields = seed + me + number.to_bytes(8, "little") + block.to_bytes(8, "little")
        words = blake3(fields, derive_key_context=_CLOCK).digest(length=64)
        for at in range(0, 64, 4):
            yield int.from_bytes(words[at : at + 4], "little")
        block += 1


# Kinds


def _groups(view: View, round: int, size: int) -> list[Meeting]:
    keyed = _keyed(view, _MATCH, round)
    keys = [key for key, _ in keyed]
    found: list[Meeting] = []

    def leave(low: int, high: int, bit: int, base: int) -> list[int]:
        """Whom the keys in [low, high) leave over, fewer than `size`; these keys begin as `base`
        does, down to `bit`.
        """
        if high - low < 2 or bit == 0:
            left = list(range(low, high))
        else:
            middle = base + (1 << (bit - 1))
            cut = bisect_left(keys, middle, low, high)
            left = leave(low, cut, bit - 1, base) + leave(cut, high, bit - 1, middle)
        while len(left) >= size:
            found.append(_meeting((keyed[at][1] for at in left[:size]), round))
            del left[:size]
        return left

    rest = leave(0, len(keyed), _KEY_BITS, 0)
    if len(rest) > 1:
        found.append(_meeting((keyed[at][1] for at in rest), round))
    return found


def _meeting(peers: Iterator[bytes], turn: int) -> Meeting:
    return Meeting(tuple(sorted(peers)), turn=turn)


def _ring(order: Sequence[bytes], round: int) -> list[Meeting]:
    count = len(order)
    turns = 1 if count == 2 else 2 if count % 2 == 0 else count
    first = round % turns
    return [
        _meeting(iter((order[(first + at) % count], order[(first + at + 1) % count])), round)
        for at in range(0, count - 1, 2)
    ]


def _hypercube(order: Sequence[bytes], round: int) -> list[Meeting]:
    count = len(order)
    cycle, axis = divmod(round, (count - 1).bit_length())
    first, bit = cycle % count, 1 << axis
    ranks = range(count)
    pairs = [(rank, rank ^ bit) for rank in ranks if rank < rank ^ bit < count]
    rest = [rank for rank in ranks if rank ^ bit >= count]
    pairs += zip(rest[::2], rest[1::2], strict=False)
    return [_meeting((order[(first + rank) % count] for rank in pair), round) for pair in pairs]


def _exponential(order: Sequence[bytes], round: int) -> list[Meeting]:
    count = len(order)
    hops = (count - 1).bit_length()
    step = 1 << round % hops
    return [
        Meeting((sender, order[(rank + step) % count]), directed=True, turn=round)
        for rank, sender in enumerate(order)
    ]


def _random_targets(view: View, round: int) -> list[Meeting]:
    count = len(view.members)
    found = []
    for rank, sender in enumerate(view.members):
        draw = _key(_TARGET, view, round, bytes(32), sender) * (count - 1) >> _KEY_BITS
        target = view.members[draw + (draw >= rank)]
        found.append(Meeting((sender, target), directed=True, turn=round))
    return found
