"""The connections that we open: starting them, watching them, giving up, closing what is no longer
needed.

ZeroMQ reconnects by itself after a lost TCP connection, but stops for good when the other side
refuses us or breaks the protocol, and it knows one address per socket. So each attempt here has a
deadline; after it the next address gets a fresh socket, with growing patience.
"""

import itertools
from collections.abc import Iterator

import zmq

from node.addresses import Address, Resolver
from node.curve import CurveKeys
from node.transport_links import Dial, Link, Path
from node.transport_mailbox import Mailbox, Resolved
from node.transport_sockets import Sight, close_dialler, dialler, sights
from node.transport_types import TransportLimits


class Dials:
    """All dials of one transport; lives on its thread."""

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        poller: zmq.Poller,
        keys: CurveKeys,
        door: CurveKeys,
        limits: TransportLimits,
        resolver: Resolver,
        mailbox: Mailbox,
    ) -> None:
        self._context = context
        self._poller = poller
        self._keys = keys
        self._door = door
        self._limits = limits
        self._resolver = resolver
        self._mailbox = mailbox
        self._links: dict[bytes, Link] = {}  # links with a dial
        self._by_socket: dict[object, Link] = {}
        self._by_monitor: dict[object, Link] = {}
        self._names = itertools.count()

    @property
    def count(self) -> int:
        return len(self._links)

    def dialled(self, socket: object) -> Link | None:
        return self._by_socket.get(socket)

    def watched(self, monitor: object) -> Link | None:
        return self._by_monitor.get(monitor)

    # -- opening and closing -----------------------------------------------------------------------

    def start(self, link: Link, now_ms: int) -> None:
        assert link.dial is None, "one dial per peer"
        if len(self._links) >= self._limits.dials_max:
            self._evict()
        address = link.next_address()
        link.dial = Dial(address, None, None, now_ms + link.patience_ms(self._limits), now_ms)
        self._links[link.peer] = link
        if address.is_literal:
            self._connect(link, link.dial, address)
            return
        peer, mailbox = link.peer, self._mailbox
        self._resolver.resolve(address, lambda found: mailbox.put(Resolved(peer, address, found)))

    def resolved(self, link: Link | None, answer: Resolved, now_ms: int) -> None:
        """The name server spoke. The dial that asked may be gone, or be another one by now."""
        if (
            link is None
            or link.dial is None
            or link.dial.socket is not None
            or link.dial.address != answer.asked
        ):
            return
        if answer.found is None:
            self._fail(link, link.dial, now_ms)
        else:
            self._connect(link, link.dial, answer.found)

    def drop(self, link: Link, linger_ms: int) -> None:
        """Close the link's dial, if it has one."""
        dial, link.dial = link.dial, None
        if dial is None:
            return
        del self._links[link.peer]
        if dial.socket is not None and dial.monitor is not None:
            for socket in (dial.socket, dial.monitor):
                self._poller.unregister(socket)
            del self._by_socket[dial.socket]
            del self._by_monitor[dial.monitor]
            close_dialler(dial.socket, dial.monitor, linger_ms if dial.up else 0)

    def close(self, linger_ms: int) -> None:
        for link in list(self._links.values()):
            self.drop(link, linger_ms)
        self._resolver.close()

    def _connect(self, link: Link, dial: Dial, address: Address) -> None:
        keys = self._door if link.as_guest else self._keys
        dial.socket, dial.monitor = dialler(
            self._context, str(next(self._names)), address, keys, link.curve_key, self._limits
        )
        self._by_socket[dial.socket] = self._by_monitor[dial.monitor] = link
        self._poller.register(dial.socket, zmq.POLLIN)
        self._poller.register(dial.monitor, zmq.POLLIN)

    def _evict(self) -> None:
        """Make room: an idle connection rather than one with messages waiting, then the least
        recently used.
        """
        victim = min(
            self._links.values(),
            key=lambda link: (bool(link.backlog), link.dial.used_ms if link.dial else 0),
        )
        self.drop(victim, linger_ms=self._limits.settle_ms)

    # -- watching ----------------------------------------------------------------------------------

    def observe(self, link: Link, now_ms: int) -> None:
        """What became of the connection since we last looked."""
        dial = link.dial
        assert dial is not None, "only live dials are watched"
        assert dial.monitor is not None, "a dial without sockets is not watched"
        for sight in sights(dial.monitor):
            if sight is Sight.UP:
                self._came_up(link, dial, now_ms)
            elif sight is Sight.LOST:
                if dial.up:
                    dial.up = False
                    dial.deadline_ms = now_ms + link.patience_ms(self._limits)
            elif sight is Sight.REFUSED or len(link.addresses) > 1:
                self._fail(link, dial, now_ms)
                return

    def _came_up(self, link: Link, dial: Dial, now_ms: int) -> None:
        dial.up = True
        dial.used_ms = now_ms
        # Stay with the address that works, with fresh patience.
        link.attempts = link.addresses.index(dial.address) if dial.address in link.addresses else 0
        if not link.backlog and dial.socket is not None:
            # An empty message: the other side learns the new way to us though we have nothing to
            # say.
            self.send(link, b"", now_ms)

    def _fail(self, link: Link, dial: Dial, now_ms: int) -> None:
        """Give this attempt up. Once all addresses had their turn, wait for what is left of the
        patience.
        """
        self.drop(link, linger_ms=0)
        link.attempts += 1
        is_round_over = link.attempts % max(1, len(link.addresses)) == 0
        link.not_before_ms = max(now_ms, dial.deadline_ms) if is_round_over else now_ms

    def tick(self, me: bytes, now_ms: int) -> None:
        for link in list(self._links.values()):
            dial = link.dial
            assert dial is not None, "the table holds links with a dial"
            if not dial.up:
                if now_ms >= dial.deadline_ms:
                    self._fail(link, dial, now_ms)
                continue
            is_spare = link.path(me, now_ms, self._limits) is Path.ROUTE
            patience_ms = self._limits.settle_ms if is_spare else self._limits.idle_ms
            if now_ms - dial.used_ms > patience_ms and not link.backlog:
                self.drop(link, linger_ms=self._limits.settle_ms)

    # -- moving messages ---------------------------------------------------------------------------

    def send(self, link: Link, data: bytes, now_ms: int) -> bool:
        """False when the connection has no room; `dialled` will be polled for it."""
        dial = link.dial
        assert dial is not None, "the path led here"
        assert dial.socket is not None, "a dial that is up has its socket"
        try:
            dial.socket.send(data, zmq.NOBLOCK)
        except zmq.Again:
            self._poller.modify(dial.socket, zmq.POLLIN | zmq.POLLOUT)
            return False
        dial.used_ms = now_ms
        return True

    def unblock(self, link: Link) -> None:
        if link.dial is not None and link.dial.socket is not None:
            self._poller.modify(link.dial.socket, zmq.POLLIN)

    def receive(self, link: Link, count_max: int, now_ms: int) -> Iterator[bytes | None]:
        """Messages that have come in; None for one that is not a single frame."""
        dial = link.dial
        assert dial is not None, "only live dials are polled"
        assert dial.socket is not None, "a dial without sockets is not polled"
        for _ in range(count_max):
            try:
                frames = dial.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            dial.used_ms = now_ms
            yield frames[0] if len(frames) == 1 else None
