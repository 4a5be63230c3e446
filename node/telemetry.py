"""What happened, one JSON object a line, in a file that cannot outgrow its bound.

An event has a level, a name and fields. The same events go to a person in short lines when asked.
A log that cannot be written (a full disk) never stops a peer: lines are lost, counted, and the
count is told once there is room again.
"""

import json
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import Enum, IntEnum
from pathlib import Path
from typing import TextIO

_RESERVED = frozenset({"ts", "t_ms", "level", "event"})
_TEXT_MAX = 400  # characters of one value
_ITEMS_MAX = 32  # of one list or mapping
_SHORT_BYTES = 4  # of an id or a hash: enough to tell one from another by eye


class Level(IntEnum):
    DEBUG = 10
    INFO = 20
    WARN = 30
    ERROR = 40


def _wall() -> datetime:
    return datetime.now(UTC)


def _monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000


class EventLog:
    """Safe to call from any thread."""

    def __init__(
        self,
        path: Path,
        *,
        bytes_max: int = 16 << 20,  # of one file
        kept: int = 3,  # files in all, the current one included
        level: Level = Level.INFO,
        echo: TextIO | None = None,
        echo_level: Level = Level.INFO,
        wall: Callable[[], datetime] = _wall,
        clock_ms: Callable[[], int] = _monotonic_ms,
    ) -> None:
        assert kept >= 1, "the current file is one of them"
        self.path = path
        self._bytes_max = bytes_max
        self._kept = kept
        self._level = level
        self._echo = echo
        self._echo_level = echo_level
        self._wall = wall
        self._clock_ms = clock_ms
        self._turn = threading.Lock()
        self._fd = -1
        self._size = 0
        self._lost = 0
        self._is_closed = False

    def debug(self, event: str, **fields: object) -> None:
        self.emit(Level.DEBUG, event, fields)

    def info(self, event: str, **fields: object) -> None:
        self.emit(Level.INFO, event, fields)

    def warn(self, event: str, **fields: object) -> None:
        self.emit(Level.WARN, event, fields)

    def error(self, event: str, **fields: object) -> None:
        self.emit(Level.ERROR, event, fields)

    def emit(self, level: Level, event: str, fields: Mapping[str, object]) -> None:
        assert not _RESERVED & fields.keys(), "a field must not pose as the event's own"
        to_file, to_person = level >= self._level, level >= self._echo_level
        if not (to_file or (to_person and self._echo)):
            return
        now = self._wall()
        plain = {key: _plain(value) for key, value in fields.items()}
        with self._turn:
            if to_file:
                self._write(self._line(now, level, event, plain))
            if to_person and self._echo is not None:
                _tell(self._echo, _sentence(now, level, event, plain))

    @property
    def lost(self) -> int:
        """Lines that could not be written and have not been told of yet."""
        return self._lost

    def close(self) -> None:
        with self._turn:
            self._is_closed = True
            self._close_file()

    def __enter__(self) -> "EventLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- the file ----------------------------------------------------------------------------------

    def _line(self, now: datetime, level: Level, event: str, plain: Mapping[str, object]) -> bytes:
        record: dict[str, object] = {
            "ts": now.isoformat(timespec="milliseconds"),
            "t_ms": self._clock_ms(),
            "level": level.name.lower(),
            "event": event,
            **plain,
        }
        return json.dumps(record, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")

    def _write(self, line: bytes) -> None:
        if self._is_closed:
            return
        try:
            if self._lost:
                told = self._line(self._wall(), Level.WARN, "log_lines_lost", {"lines": self._lost})
                self._append(told)
                self._lost = 0
            self._append(line)
        except OSError:
            self._lost += 1

    def _append(self, line: bytes) -> None:
        if self._fd >= 0 and self._size + len(line) + 1 > self._bytes_max:
            self._close_file()
            self._rotate()
        if self._fd < 0:
            self._open_file()
        # One write a line: a kill leaves at most the last line torn, never two mixed.
        written = os.write(self._fd, line + b"\n")
        self._size += written
        if written <= len(line):
            os.ftruncate(self._fd, self._size - written)
            self._size -= written
            raise OSError("the disk took half a line")

    def _open_file(self) -> None:
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._size = os.fstat(self._fd).st_size
        if self._size and not self._ends_with_newline():
            self._size += os.write(self._fd, b"\n")

    def _ends_with_newline(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"

    def _rotate(self) -> None:
        """events.jsonl -> events.jsonl.1 -> events.jsonl.2; the oldest goes."""
        names = [self.path, *(Path(f"{self.path}.{n}") for n in range(1, self._kept))]
        names[-1].unlink(missing_ok=True)
        for older, newer in zip(reversed(names), reversed(names[:-1]), strict=False):
            if newer.exists():
                newer.replace(older)

    def _close_file(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _plain(value: object, depth: int = 0) -> object:
    """As JSON can hold it, bounded: fields may carry what a stranger sent."""
    match value:
        case Enum():
            return _plain(value.value, depth)
        case None | bool() | int():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case bytes() | bytearray() | memoryview():
            return bytes(value[:_SHORT_BYTES]).hex()
        case str():
            return value if len(value) <= _TEXT_MAX else value[:_TEXT_MAX] + "…"
        case Mapping() if depth < 3:
            items = list(value.items())[:_ITEMS_MAX]
            return {str(_plain(key, 3)): _plain(item, depth + 1) for key, item in items}
        case list() | tuple() | set() | frozenset() | deque() if depth < 3:
            some = list(value)[:_ITEMS_MAX]
            return [_plain(item, depth + 1) for item in some]
        case _:
            return _plain(str(value), depth)


def _sentence(now: datetime, level: Level, event: str, plain: Mapping[str, object]) -> str:
    told = "  ".join(f"{key}={_brief(value)}" for key, value in plain.items())
    clock = now.astimezone().strftime("%H:%M:%S")
    line = f"{clock} {level.name.lower():5} {event.replace('_', ' ')}  {told}".rstrip()
    # What a stranger wrote must not move the cursor or colour the screen.
    return "".join(c if c.isprintable() else "?" for c in line)


def _brief(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _tell(echo: TextIO, line: str) -> None:
    try:
        echo.write(line + "\n")
        echo.flush()
    except (OSError, ValueError):
        pass  # a closed terminal is no reason to stop training


class Rates:
    """Events per second over a sliding window. Holds a fixed number of slots however much comes."""

    def __init__(self, started_ms: int, window_ms: int = 10_000, slots: int = 20) -> None:
        assert window_ms % slots == 0, "slots of whole milliseconds"
        self._started_ms = started_ms
        self._slot_ms = window_ms // slots
        self._slots = slots
        self._amounts: deque[tuple[int, float]] = deque()  # (slot number, amount), oldest first

    def add(self, now_ms: int, amount: float = 1.0) -> None:
        number = now_ms // self._slot_ms
        if self._amounts and self._amounts[-1][0] >= number:
            last, held = self._amounts[-1]
            self._amounts[-1] = (last, held + amount)
        else:
            self._amounts.append((number, amount))
        self._forget(number)

    def per_s(self, now_ms: int) -> float | None:
        """None while there is less than one slot to judge by: unknown, not zero."""
        oldest = self._forget(now_ms // self._slot_ms)
        span_ms = now_ms - max(self._started_ms, oldest * self._slot_ms)
        if now_ms - self._started_ms < self._slot_ms or span_ms <= 0:
            return None
        return sum(amount for _, amount in self._amounts) * 1000.0 / span_ms

    def _forget(self, number: int) -> int:
        """Drop what has left the window; returns the oldest slot inside it."""
        oldest = number - self._slots
        while self._amounts and self._amounts[0][0] < oldest:
            self._amounts.popleft()
        return oldest
