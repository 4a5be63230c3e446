"""Reading the replicated state while training goes on, and writing it: who goes when.

Between two merges nobody writes, so a background thread may read as it likes, a chunk at a time.
A merge that comes before the reader is through makes it take the rest first: copy on write.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class StateGuard:
    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._version = 0
        self._before_write: Callable[[], None] | None = None

    @contextmanager
    def writing(self) -> Iterator[None]:
        """The state is changed within; readers wait, and know afterwards."""
        with self._lock:
            if self._before_write is not None:
                self._before_write()
                self._before_write = None
            self._version += 1
            yield

    @contextmanager
    def reading(self) -> Iterator[int]:
        """The state does not change within. Yields its version."""
        with self._lock:
            yield self._version

    def watch(self, before_write: Callable[[], None] | None) -> None:
        """`before_write` is called once, by whoever is about to write."""
        with self._lock:
            self._before_write = before_write
