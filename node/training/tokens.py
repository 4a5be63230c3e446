"""Text to numbers and back: bytes for the built-in model, a Hugging Face tokenizer for others."""

from collections.abc import Sequence
from typing import Any, Protocol


class Tokenizer(Protocol):
    size: int  # ids are below this
    separator: int | None  # put between documents

    def encode(self, texts: Sequence[str]) -> Sequence[Sequence[int]]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class ByteTokenizer:
    """UTF-8 bytes. Nothing can fail to be encoded; bytes that are not UTF-8 decode to a replacement
    sign.
    """

    size = 256
    separator: int | None = 0  # a zero byte does not occur in text

    def encode(self, texts: Sequence[str]) -> list[bytes]:
        return [text.encode() for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i).decode(errors="replace")


class HfTokenizer:
    def __init__(self, inner: Any) -> None:  # noqa: ANN401 - transformers has no types
        self.inner = inner
        self.size = len(inner)
        self.separator: int | None = inner.eos_token_id

    def encode(self, texts: Sequence[str]) -> Sequence[Sequence[int]]:
        if not texts:
            return []
        ids: list[list[int]] = self.inner(list(texts), add_special_tokens=False, verbose=False)[
            "input_ids"
        ]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.inner.decode(list(ids), skip_special_tokens=True))
