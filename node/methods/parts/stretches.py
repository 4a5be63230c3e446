"""A model cut for an exchange: stretches of its flat vector, each of which goes by itself.

Trainable parameters in the model's own order form one flat vector. A stretch is a run of elements
that may begin and end within a tensor, but knows where tensors border in it: numbers that share a
scale on the wire are of one tensor. Each stretch is exchanged, and counts, on its own: both sides
apply it or neither does, whatever becomes of the others. So an exchange takes the memory of the few
stretches that are on their way, and one that breaks off leaves nothing half done.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from node.methods.parts.dense_layout import BLOCK

ELEMENTS: Final = 1 << 18


@dataclass(frozen=True, slots=True)
class Stretch:
    start: int  # of the flat vector
    stop: int
    tensors: tuple[int, ...]  # whose parts it holds, by number
    sizes: tuple[int, ...]  # elements of each part

    @property
    def elements(self) -> slice:
        return slice(self.start, self.stop)


def cut(
    sizes: Sequence[int],  # elements of each trainable parameter, at least 1
    elements: int = ELEMENTS,  # of each stretch, the last one excepted; a multiple of BLOCK
) -> tuple[Stretch, ...]:
    assert elements > 0, elements
    assert elements % BLOCK == 0, elements
    stretches: list[Stretch] = []
    tensors: list[int] = []
    parts: list[int] = []
    start = 0

    def close() -> None:
        nonlocal start
        stretches.append(Stretch(start, start + sum(parts), tuple(tensors), tuple(parts)))
        start += sum(parts)
        tensors.clear()
        parts.clear()

    for tensor, size in enumerate(sizes):
        left = size
        while left:
            part = min(left, elements - sum(parts))
            tensors.append(tensor)
            parts.append(part)
            left -= part
            if sum(parts) == elements:
                close()
    if parts:
        close()
    return tuple(stretches)
