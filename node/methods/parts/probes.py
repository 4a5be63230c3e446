"""The payload of scalar methods: one signed byte a probe, and next to nothing else.

A payload is a list of segments, each a run of consecutive probes of one round:

    head    varint   age * 2 + (1 if `first` is not 0)
    first   varint   index of the first probe; absent when 0
    count   varint   probes in the segment, at least 1
    bytes   count    two's complement, -127..127; 0 means no gradient or an abstention
    choice  2*count  late segments of a pooled run only: the pool index of each probe, little endian

Age 0 is the round that the payload is offered to; age a > 0 means measured a rounds earlier, missed
there, and coded again in the unit of the present round. The directions' keys come from (run, origin
round, peer, index), so neither they nor the samples are sent. There is exactly one encoding of each
list of probes: segments are sorted by (age, first), do not touch, and varints are minimal, so equal
work has equal bytes.

The fresh work of one round is one segment of age 0 that starts at 0: two or three bytes on top of
one byte a probe.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from node.methods.parts.varints import Reader, varint

PROBES_MAX = 4096  # in one payload; bounds its length and the work of merging it
AGE_MAX = 64  # rounds; a probe that is older is dropped by its owner
INDEX_MAX = 1 << 14  # probe indices of one (peer, round) lie below this
BYTE_MAX = 127


@dataclass(frozen=True, slots=True, order=True)
class Probe:
    """One gradient estimate, as it travels."""

    age: int  # rounds between measuring and offering
    index: int  # within its (peer, origin round)
    value: int  # -127..127, in the unit of the round that merges it
    choice: int | None = None  # pool index; only late probes of a pooled run name theirs


def encode(probes: Iterable[Probe], pooled: bool = False) -> bytes:
    """The one encoding of `probes`, in any order given. Asserts the caps: the caller owns these
    values.
    """
    out = bytearray()
    for segment in _segments(sorted(probes)):
        head = segment[0]
        out += varint(head.age * 2 + (head.index > 0))
        if head.index:
            out += varint(head.index)
        out += varint(len(segment))
        for probe in segment:
            assert abs(probe.value) <= BYTE_MAX, probe
            out.append(probe.value & 0xFF)
        if pooled and head.age:
            for probe in segment:
                assert probe.choice is not None, "a late probe of a pooled run names its pool index"
                out += probe.choice.to_bytes(2, "little")
    decode(bytes(out), (1 << 16) if pooled else None)
    return bytes(out)


def decode(payload: bytes, pool: int | None = None) -> list[Probe]:
    """The probes of a payload, sorted by (age, index).

    `pool` is the pool's size in a pooled run, else None. Raises ValueError for every payload that
    `encode` would not have written.
    """
    reader = Reader(payload)
    probes: list[Probe] = []
    end = (-1, 0)  # (age, one past the last index) of the segment before
    while reader.left:
        head = reader.varint()
        age, has_first = head >> 1, head & 1
        first = reader.varint() if has_first else 0
        count = reader.varint()
        if age > AGE_MAX:
            raise ValueError(f"age {age} exceeds {AGE_MAX}")
        if has_first and not first:
            raise ValueError("a first index of 0 is left out")
        if not 1 <= count <= PROBES_MAX - len(probes):
            raise ValueError("segment is empty, or the payload holds too many probes")
        if first + count > INDEX_MAX:
            raise ValueError(f"probe index exceeds {INDEX_MAX}")
        if (age, first) <= end:
            raise ValueError("segments overlap, touch or are out of order")
        values = reader.take(count)
        choices = reader.take(2 * count) if pool is not None and age else None
        probes += _probes(age, first, values, choices, pool)
        end = (age, first + count)
    if not probes:
        raise ValueError("no probes")
    return probes


def _probes(
    age: int, first: int, values: bytes, choices: bytes | None, pool: int | None
) -> Iterator[Probe]:
    for i, byte in enumerate(values):
        if byte == 0x80:
            raise ValueError("-128 is not a value")
        value = byte - 256 if byte > BYTE_MAX else byte
        choice = None
        if choices is not None and pool is not None:
            choice = int.from_bytes(choices[2 * i : 2 * i + 2], "little")
            if choice >= pool:
                raise ValueError("pool index out of range")
        yield Probe(age, first + i, value, choice)


def _segments(probes: Sequence[Probe]) -> Iterator[Sequence[Probe]]:
    """Maximal runs of equal age and consecutive indices."""
    start = 0
    for i in range(1, len(probes) + 1):
        if i < len(probes):
            before, here = probes[i - 1], probes[i]
            if here.age == before.age and here.index == before.index + 1:
                continue
        yield probes[start:i]
        start = i
