"""What a peer that gossips tells the ledger of itself, now and then: a few hundred bytes.

    version    1 byte   1
    batches    varint   micro-batches consumed since the last: the first so many slots of the seat
    steps      varint   since the last
    tokens     varint   since the last, that moved the weights
    number     varint   of the exchange that it is at
    done       varint   exchanges that counted, since it joined
    given up   varint   exchanges that did not, or not whole
    held-out   4 bytes  float32 little-endian, its own model's loss; a NaN if it was not measured
    sketch     float32 little-endian, its model's values at the round's places (`consensus`); may be
               empty

Nobody's weights depend on it. A lie about `batches` moves samples between peers, one about the rest
misleads who reads it.
"""

import math
import struct
from dataclasses import dataclass
from typing import Final

from node.methods.parts.varints import Reader, varint

VERSION: Final = 1
SKETCH_BYTES_MAX: Final = 256
BATCHES_MAX: Final = (1 << 28) - 1
COUNT_BYTES: Final = 4
TOKENS_BYTES: Final = 6
NUMBER_BYTES: Final = 7


@dataclass(frozen=True, slots=True)
class Checkpoint:
    batches: int
    steps: int
    tokens: int
    number: int
    done: int
    given_up: int
    heldout: float | None
    sketch: bytes

    def encode(self) -> bytes:
        counts = [
            (self.batches, COUNT_BYTES),
            (self.steps, COUNT_BYTES),
            (self.tokens, TOKENS_BYTES),
            (self.number, NUMBER_BYTES),
            (self.done, NUMBER_BYTES),
            (self.given_up, NUMBER_BYTES),
        ]
        head = b"".join(varint(min(count, (1 << 7 * most) - 1)) for count, most in counts)
        heldout = math.nan if self.heldout is None else self.heldout
        return bytes([VERSION]) + head + struct.pack("<f", heldout) + self.sketch


def decode_checkpoint(payload: bytes) -> Checkpoint:
    """Raises ValueError for what no honest peer writes."""
    reader = Reader(payload)
    version = reader.take(1)[0]
    if version != VERSION:
        raise ValueError(f"a checkpoint of version {version} is unknown here")
    batches, steps = reader.varint(COUNT_BYTES), reader.varint(COUNT_BYTES)
    tokens = reader.varint(TOKENS_BYTES)
    number, done, given_up = (reader.varint(NUMBER_BYTES) for _ in range(3))
    (heldout,) = struct.unpack("<f", reader.take(4))
    if reader.left > SKETCH_BYTES_MAX or reader.left % 4:
        raise ValueError(f"a sketch of {reader.left} bytes")
    known = heldout if math.isfinite(heldout) else None
    sketch = reader.take(reader.left)
    return Checkpoint(batches, steps, tokens, number, done, given_up, known, sketch)


def weigh_checkpoint(payload: bytes) -> int:
    """Micro-batches, at least 1: who waited for others takes part as well. Raises ValueError."""
    return max(1, decode_checkpoint(payload).batches)
