"""Orders for the transport's thread: a bounded queue that any thread may fill, with one wake-up per
batch.

The wake-up is a byte in a pipe that the thread polls beside its sockets. It is written only when
the thread may be asleep, so a burst of sends costs one system call.
"""

import os
import threading
from collections import Counter, deque
from dataclasses import dataclass

from node.addresses import Address
from node.transport_types import Drop, TransportLimits


@dataclass(frozen=True, slots=True)
class Send:
    to: bytes
    data: bytes


@dataclass(frozen=True, slots=True)
class SetPeer:
    peer: bytes
    curve_key: bytes
    addresses: tuple[Address, ...]
    as_guest: bool


@dataclass(frozen=True, slots=True)
class Forget:
    peer: bytes


@dataclass(frozen=True, slots=True)
class Resolved:
    peer: bytes
    asked: Address
    found: Address | None


Order = Send | SetPeer | Forget | Resolved


class Mailbox:
    """Sends are bounded. Other orders are not: their number is the protocol's business, and losing
    one is a bug.
    """

    def __init__(self, limits: TransportLimits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._orders: deque[Order] = deque()
        self._bytes = 0
        self._awake = True  # nobody sleeps on the pipe before it is open
        self._open = False
        self._dropped: Counter[Drop] = Counter()
        self._read_fd = self._write_fd = -1

    def open(self) -> int:
        """Returns the file descriptor to poll."""
        self._read_fd, self._write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        os.set_blocking(self._write_fd, False)
        with self._lock:
            self._open = True
            self._awake = False
            if self._orders:
                self._wake()
        return self._read_fd

    def close(self) -> None:
        with self._lock:
            if not self._open:
                return
            self._open = False
            os.close(self._read_fd)
            os.close(self._write_fd)

    def send(self, to: bytes, data: bytes) -> None:
        with self._lock:
            if not self._open:
                self._dropped[Drop.CLOSED] += 1
            elif len(data) > self._limits.message_bytes_max:
                self._dropped[Drop.TOO_LARGE] += 1
            elif (
                len(self._orders) >= self._limits.queue_messages_max
                or self._bytes + len(data) > self._limits.queue_bytes_max
            ):
                self._dropped[Drop.QUEUE_FULL] += 1
            else:
                self._bytes += len(data)
                self._orders.append(Send(to, data))
                self._wake()

    def put(self, order: SetPeer | Forget | Resolved) -> None:
        """May be called before `open`: peers can be set before the transport starts."""
        with self._lock:
            self._orders.append(order)
            if self._open:
                self._wake()

    def drop(self, cause: Drop) -> None:
        with self._lock:
            self._dropped[cause] += 1

    def dropped(self) -> Counter[Drop]:
        with self._lock:
            return self._dropped.copy()

    def wake(self) -> None:
        with self._lock:
            if self._open:
                self._wake()

    def take(self) -> deque[Order]:
        """Everything that was queued; whoever queues next wakes the thread again."""
        with self._lock:
            if self._awake:
                self._awake = False
                os.read(self._read_fd, 1)  # exactly one byte is in there: _wake wrote it
            orders, self._orders, self._bytes = self._orders, deque(), 0
            return orders

    def _wake(self) -> None:
        if not self._awake:
            self._awake = True
            os.write(self._write_fd, b"\0")
