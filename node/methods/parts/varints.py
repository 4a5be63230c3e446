"""Integers in as few bytes as they need: seven bits a byte, the lowest first.

Each number has one encoding, so equal values have equal bytes.
"""

VARINT_BYTES = 3  # unless a field needs more


def varint(value: int) -> bytes:
    """`value` is not negative."""
    assert value >= 0, value
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class Reader:
    """Takes bytes off the front; raises ValueError where there are too few."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise ValueError("payload ends early")
        self._at += count
        return self._data[self._at - count : self._at]

    def varint(self, bytes_max: int = VARINT_BYTES) -> int:
        """Below 2**(7 * `bytes_max`)."""
        value = 0
        for position in range(bytes_max):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << (7 * position)
            if byte < 0x80:
                if position and not byte:
                    raise ValueError("varint is not minimal")
                return value
        raise ValueError("varint is too long")
