"""A contribution's attachment in parts, each a blob of its own: how the whole is named.

Where a run sums attachments part by part, nobody needs all of one. The name that a contribution
bears is the root of a binary hash tree over its parts' names, so whoever is handed one part, and
the hashes beside its way up, can tell that it belongs there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from protocol.entries import Attachment
from protocol.errors import RemoteError
from protocol.ids import Hash, digest


@dataclass(frozen=True, slots=True)
class SumName:
    """What all parts of one number come to, over the lines of an entry."""

    entry: Hash
    number: int


def whole_of(parts: Sequence[Attachment]) -> Attachment:
    """How a contribution names these; at least one."""
    *_, top = _levels(parts)
    return Attachment(top[0], sum(part.size for part in parts))


def path_to(parts: Sequence[Attachment], number: int) -> tuple[Hash, ...]:
    """The hashes beside the way from a part up to the root."""
    found: list[Hash] = []
    for level in _levels(parts):
        beside = number ^ 1
        if beside < len(level):
            found.append(level[beside])
        number >>= 1
    return tuple(found)


def check_part(
    whole: Attachment, count: int, number: int, part: Attachment, path: Sequence[Hash]
) -> None:
    """Raises RemoteError unless `part` is this one of the `count` parts of `whole`."""
    if not 1 <= part.size <= whole.size:  # its number is in its name
        raise RemoteError(f"part {number} of {count}, of {part.size} bytes")
    name, width, rest = _leaf(number, part), count, list(path)
    while width > 1:
        if number ^ 1 < width:
            if not rest:
                raise RemoteError("a part with too short a path")
            beside = rest.pop(0)
            name = _join(beside, name) if number & 1 else _join(name, beside)
        number, width = number >> 1, (width + 1) >> 1
    if rest or name != whole.root:
        raise RemoteError("a part of something else")


def _levels(parts: Sequence[Attachment]) -> Iterator[list[Hash]]:
    """From the leaves to the root. Who has nobody beside it moves up as it is."""
    level = [_leaf(number, part) for number, part in enumerate(parts)]
    yield level
    while len(level) > 1:
        pairs = [level[at : at + 2] for at in range(0, len(level), 2)]
        level = [_join(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
        yield level


def _leaf(number: int, part: Attachment) -> Hash:
    return digest("part", number.to_bytes(4, "big"), part.root, part.size.to_bytes(8, "big"))


def _join(left: Hash, right: Hash) -> Hash:
    return digest("parts", left, right)
