"""The replicated state as one string of bytes, the same on every peer: a safetensors file.

The file's layout leaves freedom (which tensor first, how the header is written), and peers must not
differ by a byte, so the header is written here; it is read by the safetensors library like any
other. Tensors are in the order of their element size, largest first, then of their names.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from protocol.blobs import chunk_count, chunk_length
from protocol.codec import CHUNK_BYTES

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_HEADER_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class _Part:
    name: str
    start: int  # in the stream
    words: Tensor  # the tensor's bytes, uint8, live

    @property
    def end(self) -> int:
        return self.start + self.words.numel()


class StateStream:
    """Live: reading shows the tensors as they are at that moment, writing changes them."""

    def __init__(self, tensors: Mapping[str, Tensor], meta: Mapping[str, str]) -> None:
        """Raises ValueError for an element type that safetensors does not know."""
        ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
        self._header = _header(ordered, meta)
        self.tensors = dict(tensors)
        self._parts: list[_Part] = []
        at = len(self._header)
        for name, tensor in ordered:
            words = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
            self._parts.append(_Part(name, at, words))
            at += words.numel()
        self.size = at

    @property
    def chunks(self) -> int:
        return chunk_count(self.size)

    def chunk(self, number: int) -> bytes:
        start = number * CHUNK_BYTES
        return self.read(start, start + self.length(number))

    def length(self, number: int) -> int:
        return chunk_length(self.size, number)

    def read(self, start: int, end: int) -> bytes:
        found = [self._header[start:end]]
        for part, first, last in self._within(start, end):
            found.append(part.words[first:last].cpu().numpy().tobytes())
        return b"".join(found)

    def check(self, number: int, data: bytes) -> None:
        """Raises ValueError for a chunk that this state does not have."""
        if number >= self.chunks or len(data) != self.length(number):
            raise ValueError(f"the state has no chunk {number} of {len(data)} bytes")

    def write(self, number: int, data: bytes) -> tuple[list[str], int]:
        """Put a chunk in its place. Returns the tensors that it changed, and how many bytes of
        them. Raises ValueError for a chunk that this state does not have.
        """
        self.check(number, data)
        start = number * CHUNK_BYTES
        names: list[str] = []
        changed = 0
        for part, first, last in self._within(start, start + len(data)):
            new = torch.frombuffer(
                bytearray(data[part.start + first - start : part.start + last - start]),
                dtype=torch.uint8,
            ).to(part.words.device)
            differing = int((part.words[first:last] != new).sum())
            if differing:
                names.append(part.name)
                changed += differing
                part.words[first:last] = new
        return names, changed

    def _within(self, start: int, end: int) -> Iterator[tuple[_Part, int, int]]:
        for part in self._parts:
            first, last = max(start, part.start), min(end, part.end)
            if first < last:
                yield part, first - part.start, last - part.start


def _header(ordered: list[tuple[str, Tensor]], meta: Mapping[str, str]) -> bytes:
    table: dict[str, object] = {"__metadata__": dict(sorted(meta.items()))}
    at = 0
    for name, tensor in ordered:
        if tensor.dtype not in _DTYPES:
            raise ValueError(f"{name} holds {tensor.dtype}, which cannot be kept")
        end = at + tensor.numel() * tensor.element_size()
        table[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _HEADER_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
