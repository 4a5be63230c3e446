"""What readers of attachments share: bytes taken off the front, and magnitudes as bf16 has them."""

import numpy as np
from numpy.typing import NDArray

from node.methods.parts.sparsify import MAGNITUDE_MAX, MAGNITUDE_MIN

Bytes = NDArray[np.uint8]


class ByteReader:
    """Takes bytes off the front; raises ValueError where there are too few."""

    def __init__(self, data: Bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, count: int, what: str) -> Bytes:
        if count > self.left:
            raise ValueError(f"the bytes end in {what}")
        self._at += count
        return self._data[self._at - count : self._at]


def pattern_of(magnitude: float) -> int:
    """The bf16 pattern of a magnitude; asserts that there is one."""
    pattern = int(np.float32(magnitude).view(np.uint32)) >> 16
    assert magnitude_of(pattern, "what is sent") == magnitude, magnitude
    return pattern


def magnitude_of(pattern: int, what: str) -> float:
    """The number of a bf16 pattern. Raises ValueError unless it is a magnitude that may travel:
    patterns of NaNs, infinities and negative numbers are none.
    """
    value = float(np.array(pattern << 16, np.uint32).view(np.float32))
    if pattern and not MAGNITUDE_MIN <= value <= MAGNITUDE_MAX:
        raise ValueError(
            f"{what}: a magnitude of {value:g} is not within {MAGNITUDE_MIN:g}..{MAGNITUDE_MAX:g}"
        )
    return value
