"""The transport: single-frame byte strings between peers, encrypted and authenticated, over ZeroMQ.

It knows nothing of messages and promises nothing: a send may be lost, and retries belong to the
protocol. What it does promise is that `Inbound.source` is true, that no call blocks, that
everything a stranger can grow is bounded, and that each pair of peers settles on one TCP connection
whoever opened it, so a peer that no one can dial is reached over the connection that it opened
itself.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from node.addresses import Address, parse_remote
from node.curve import curve_public, door_keys, identity_keys, peer_id
from node.transport_loop import Clock, OnBatch, TransportLoop
from node.transport_mailbox import Forget, Mailbox, SetPeer
from node.transport_types import Drop, Inbound, TransportCounters, TransportLimits

__all__ = ["Drop", "Inbound", "TransportCounters", "TransportLimits", "ZmqTransport"]


def _monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000


class ZmqTransport:
    """One peer's sockets. All methods but `start` and `close` may be called from any thread, and
    none blocks.
    """

    def __init__(
        self,
        seed: bytes,
        *,
        listen: Sequence[str],
        door: bytes,
        on_batch: OnBatch,  # called on the transport's thread; must be quick
        limits: TransportLimits | None = None,
        open_door: bool = True,
        clock_ms: Clock = _monotonic_ms,
        on_failure: Callable[[BaseException], None]
        | None = None,  # a bug ended the thread; default: its traceback
    ) -> None:
        self._limits = limits or TransportLimits()
        self._seed = seed
        self._door = door
        self._listen = tuple(listen)
        self._on_batch = on_batch
        self._open_door = open_door
        self._clock_ms = clock_ms
        self._on_failure = on_failure

        self.me = peer_id(seed)
        self._mailbox = Mailbox(self._limits)
        self._loop: TransportLoop | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._flush_ms = 0

    def start(self) -> tuple[str, ...]:
        """Bind and begin. Returns the bound addresses; raises PortInUse or ListenError, and then
        holds nothing.
        """
        assert self._thread is None, "a transport starts once"
        bound: Future[tuple[str, ...]] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(bound,), name="peer-transport", daemon=True
        )
        self._thread.start()
        try:
            return bound.result()
        except BaseException:
            self._thread.join()
            raise

    def set_peer(self, peer: bytes, addresses: Sequence[str], *, as_guest: bool = False) -> None:
        """Let this peer in, and remember where to dial it; `as_guest` dials with the door's key,
        before admission.

        A connection in use survives a new list that still holds its address. Bytes that are no
        PeerId and addresses that are no tcp://host:port are dropped and counted: both may come from
        a stranger.
        """
        assert peer != self.me, "a peer does not connect to itself"
        curve_key = curve_public(peer)
        if curve_key is None:
            self._mailbox.drop(Drop.BAD_KEY)
            return
        parsed = [parse_remote(address) for address in addresses]
        usable: dict[Address, None] = {}
        for address in parsed:
            if address is None:
                self._mailbox.drop(Drop.BAD_ADDRESS)
            else:
                usable[address] = None
        self._mailbox.put(SetPeer(peer, curve_key, tuple(usable), as_guest))

    def forget(self, peer: bytes) -> None:
        """Close what leads to this peer and let it in no more."""
        self._mailbox.put(Forget(peer))

    def send(self, to: bytes, data: bytes) -> None:
        """`to` is a PeerId or a guest handle. Dropped and counted when there is no room or no such
        peer.
        """
        assert data, "an empty message says nothing"
        self._mailbox.send(to, data)

    def counters(self) -> TransportCounters:
        assert self._loop is not None, "counters exist once the transport has started"
        return self._loop.counters()

    def close(self, flush_ms: int = 500) -> None:
        """Send what is queued, for at most `flush_ms` and then as long again on the wire; then let
        everything go.
        """
        if self._thread is None:
            return
        self._flush_ms = flush_ms
        self._stop.set()
        self._mailbox.wake()
        self._thread.join()

    def _run(self, bound: "Future[tuple[str, ...]]") -> None:
        try:
            loop = TransportLoop(
                self.me,
                identity_keys(self._seed),
                door_keys(self._door),
                open_door=self._open_door,
                limits=self._limits,
                mailbox=self._mailbox,
                on_batch=self._on_batch,
                clock_ms=self._clock_ms,
            )
        except BaseException as error:
            bound.set_exception(error)
            return
        self._loop = loop
        try:
            addresses = loop.open(self._listen)
        except BaseException as error:
            loop.close(0)
            bound.set_exception(error)
            return
        bound.set_result(addresses)
        self._serve(loop)

    def _serve(self, loop: TransportLoop) -> None:
        try:
            while not self._stop.is_set():
                loop.turn()
            loop.drain(self._clock_ms() + self._flush_ms)
        except BaseException as error:
            loop.close(0)
            if self._on_failure is None:
                raise
            self._on_failure(error)
        else:
            loop.close(self._flush_ms)
