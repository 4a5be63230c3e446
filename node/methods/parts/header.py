"""How much inner work a payload stands for: the first few bytes of every first-order method's.

    version   1 byte   1
    steps     varint   that moved the weights; 0 when the loss or gradient was never finite
    batches   varint   micro-batches consumed: the first so many slots of the peer's seat
    tokens    varint   that moved the weights

All of it is what a peer says of itself. `steps` and `batches` lie within what the run allows, and
a lie about `batches` only moves samples between peers. Nothing bounds `tokens` but its size: a
method that weighs contributions by them bounds the weight.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from node.methods.parts.varints import Reader, varint
from node.training.inner_config import InnerConfig

if TYPE_CHECKING:
    from node.training.inner import InnerReport

VERSION = 1
_TOKENS_BYTES = 6  # less than 2**42 of them
TOKENS_MAX = (1 << 7 * _TOKENS_BYTES) - 1


@dataclass(frozen=True, slots=True)
class Header:
    steps: int
    batches: int
    tokens: int

    @classmethod
    def of(cls, report: "InnerReport") -> "Header":
        return cls(report.steps, report.batches, min(report.tokens, TOKENS_MAX))

    def encode(self) -> bytes:
        """Between 4 and 13 bytes."""
        return bytes([VERSION]) + varint(self.steps) + varint(self.batches) + varint(self.tokens)


def decode_header(payload: bytes, inner: InnerConfig) -> tuple[Header, bytes]:
    """The header, and the bytes behind it, which are the method's own.

    Raises ValueError for a header that no honest peer of this run would have written.
    """
    reader = Reader(payload)
    version = reader.take(1)[0]
    if version != VERSION:
        raise ValueError(f"a payload of version {version} is unknown here")
    header = Header(reader.varint(), reader.varint(), reader.varint(_TOKENS_BYTES))
    if not 1 <= header.batches <= inner.batches_max:
        raise ValueError(f"a peer consumes between 1 and {inner.batches_max} micro-batches")
    least = header.steps * inner.accumulation  # micro-batches, each of one token or more
    if header.batches < least:
        raise ValueError("there are more steps than micro-batches for them")
    if header.tokens < least or (header.tokens and not header.steps):
        raise ValueError("steps and tokens do not fit each other")
    return header, reader.take(reader.left)


def weigh_header(payload: bytes, inner: InnerConfig) -> int:
    """Micro-batches in a payload that is nothing but a header. Raises ValueError."""
    header, rest = decode_header(payload, inner)
    if rest:
        raise ValueError("bytes behind the header")
    return header.batches
