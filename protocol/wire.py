"""Fields on the wire: how a value becomes msgpack, and the bounds that it must keep to come back.

A `Field` is a pair of functions. Reading never trusts: type, sign, size and count are checked
before a value is used, and whatever is wrong is a `RemoteError`.
"""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

from protocol.errors import RemoteError

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True, slots=True)
class Field(Generic[T]):
    write: Callable[[T], Any]
    read: Callable[[Any], T]


def _same(value: Any) -> Any:  # noqa: ANN401 - msgpack's own values
    return value


def uint(most: int) -> Field[int]:
    """A whole number from 0 to `most`."""

    def read(raw: Any) -> int:  # noqa: ANN401
        if type(raw) is not int or not 0 <= raw <= most:
            raise RemoteError(f"expected a whole number up to {most}")
        return raw

    return Field(_same, read)


def blob(least: int, most: int) -> Field[Any]:
    """A byte string of `least` to `most` bytes."""

    def read(raw: Any) -> bytes:  # noqa: ANN401
        if type(raw) is not bytes or not least <= len(raw) <= most:
            raise RemoteError(f"expected {least} to {most} bytes")
        return raw

    return Field(_same, read)


def text(most: int) -> Field[str]:
    """A string of at most `most` UTF-8 bytes, printable."""

    def read(raw: Any) -> str:  # noqa: ANN401
        if (
            type(raw) is not str
            or len(raw.encode("utf-8", "replace")) > most
            or not raw.isprintable()
        ):
            raise RemoteError(f"expected printable text of at most {most} bytes")
        return raw

    return Field(_same, read)


def scalar(value: float | None) -> float | None:
    """`value` as it will be read again: a 32-bit float, or None for what no peer could read."""
    try:
        return None if value is None else _read_scalar(_write_scalar(value))
    except (OverflowError, RemoteError):
        return None


def _write_scalar(value: float | None) -> bytes | None:
    return None if value is None else struct.pack(">f", value)


def _read_scalar(raw: Any) -> float | None:  # noqa: ANN401
    if raw is None:
        return None
    if type(raw) is not bytes or len(raw) != 4:
        raise RemoteError("expected a scalar of 4 bytes")
    value: float = struct.unpack(">f", raw)[0]
    if not math.isfinite(value):
        raise RemoteError("expected a finite number")
    return value


SCALAR: Field[float | None] = Field(_write_scalar, _read_scalar)
"""A finite 32-bit float, or nothing for "unknown"."""


def _read_flag(raw: Any) -> bool:  # noqa: ANN401
    if type(raw) is not bool:
        raise RemoteError("expected true or false")
    return raw


FLAG: Field[bool] = Field(_same, _read_flag)


def optional(field: Field[T]) -> Field[T | None]:
    return Field(
        lambda value: None if value is None else field.write(value),
        lambda raw: None if raw is None else field.read(raw),
    )


def many(field: Field[T], most: int) -> Field[tuple[T, ...]]:
    """At most `most` values."""

    def read(raw: Any) -> tuple[T, ...]:  # noqa: ANN401
        if type(raw) is not tuple or len(raw) > most:
            raise RemoteError(f"expected a list of at most {most}")
        return tuple(map(field.read, raw))

    return Field(lambda values: [field.write(value) for value in values], read)


def pair(one: Field[T], other: Field[U]) -> Field[tuple[T, U]]:
    """Two values that belong together."""

    def read(raw: Any) -> tuple[T, U]:  # noqa: ANN401
        if type(raw) is not tuple or len(raw) != 2:
            raise RemoteError("expected a pair")
        return one.read(raw[0]), other.read(raw[1])

    return Field(lambda value: [one.write(value[0]), other.write(value[1])], read)


def record(cls: type[T], *parts: Field[Any]) -> Field[T]:
    """A dataclass as a list of its fields, in the order of its definition."""
    names = tuple(field.name for field in fields(cls) if field.init)  # type: ignore[arg-type]
    assert len(names) == len(parts), f"{cls.__name__} has {len(names)} fields, {len(parts)} given"

    def write(value: T) -> list[Any]:
        return [part.write(getattr(value, name)) for name, part in zip(names, parts, strict=True)]

    def read(raw: Any) -> T:  # noqa: ANN401
        if type(raw) is not tuple or len(raw) != len(parts):
            raise RemoteError(f"expected the {len(parts)} fields of {cls.__name__}")
        return cls(*[part.read(item) for part, item in zip(parts, raw, strict=True)])

    return Field(write, read)


def converted(field: Field[Any], make: Callable[[Any], T], back: Callable[[T], Any]) -> Field[T]:
    """`field`, read into another type; `make` raises ValueError for what does not fit."""

    def read(raw: Any) -> T:  # noqa: ANN401
        try:
            return make(field.read(raw))
        except ValueError as error:
            raise RemoteError(str(error)) from error

    return Field(lambda value: field.write(back(value)), read)
