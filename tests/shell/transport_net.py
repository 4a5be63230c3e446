"""A few transports in one process, and a way to wait for what they do without sleeping."""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

from node.curve import peer_id
from node.transport_zmq import Drop, Inbound, TransportLimits, ZmqTransport

DOOR = b"d" * 32
WAIT_S = 15.0


def until(condition: Callable[[], bool], what: str, wait_s: float = WAIT_S) -> None:
    """Poll: the transport's thread has no event for every fact a test may want to wait for."""
    end = time.monotonic() + wait_s
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < end, f"waited {wait_s} s for: {what}"
        pause.wait(0.002)


def seed(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


class Node:
    """One transport and everything that it handed over."""

    def __init__(
        self,
        name: str,
        *,
        listen: Sequence[str] = ("tcp://127.0.0.1:0",),
        limits: TransportLimits | None = None,
        door: bytes = DOOR,
        open_door: bool = True,
    ) -> None:
        self.name = name
        self.seed = seed(name)
        self.id = peer_id(self.seed)
        self._got: list[Inbound] = []
        self.batches = 0
        self.transport = ZmqTransport(
            self.seed,
            listen=listen,
            door=door,
            on_batch=self._on_batch,
            limits=limits,
            open_door=open_door,
        )
        self.addresses = self.transport.start()

    def _on_batch(self, batch: list[Inbound]) -> None:
        assert batch, "an empty batch wakes the receiver for nothing"
        self._got.extend(batch)
        self.batches += 1

    @property
    def got(self) -> list[Inbound]:
        return list(self._got)

    def knows(self, *others: "Node", dials: bool = True, as_guest: bool = False) -> None:
        for other in others:
            addresses = other.addresses if dials else ()
            self.transport.set_peer(other.id, addresses, as_guest=as_guest)

    def says(self, to: "Node | bytes", text: str) -> None:
        self.transport.send(to if isinstance(to, bytes) else to.id, text.encode())

    def heard(self, text: str) -> bool:
        return any(inbound.data == text.encode() for inbound in self.got)

    def source_of(self, text: str) -> bytes:
        until(lambda: self.heard(text), f"{self.name} hears {text!r}")
        return next(inbound.source for inbound in self.got if inbound.data == text.encode())

    def hears(self, text: str, source: "Node") -> None:
        assert self.source_of(text) == source.id

    def dropped(self, cause: Drop) -> int:
        return self.transport.counters().dropped[cause]

    def dials(self) -> int:
        return self.transport.counters().dials

    def close(self, flush_ms: int = 200) -> None:
        self.transport.close(flush_ms)

    def __enter__(self) -> "Node":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@contextmanager
def pair(limits: TransportLimits | None = None) -> Iterator[tuple[Node, Node]]:
    """Two peers that know each other; the first has the smaller PeerId."""
    low, high = sorted(("ada", "bob"), key=lambda name: peer_id(seed(name)))
    with Node(low, limits=limits) as first, Node(high, limits=limits) as second:
        first.knows(second)
        second.knows(first)
        yield first, second
