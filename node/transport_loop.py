"""The transport's one thread: it owns every socket, and nothing else touches them.

A turn waits for something to happen, reads what has come in, obeys the orders that have been
queued, moves waiting messages onto whichever connection leads to their peer, and hands everything
received over as one batch. Which way leads to a peer is decided in `transport_links`; who may
connect, in `transport_zap`.
"""

from collections.abc import Callable, Sequence
from typing import assert_never

import zmq
from zmq.utils import z85

from node.addresses import Resolver
from node.curve import CurveKeys
from node.transport_dials import Dials
from node.transport_links import Guest, GuestBook, Link, Path
from node.transport_mailbox import Forget, Mailbox, Order, Resolved, Send, SetPeer
from node.transport_sockets import bind, listener
from node.transport_types import (
    Bucket,
    Drop,
    Inbound,
    Meter,
    TransportCounters,
    TransportLimits,
)
from node.transport_zap import GUEST_USER, Gate

_TICK_MS = 250  # how often deadlines are looked at
_FULL_PIPE_RETRY_MS = 1  # a ROUTER cannot say which of its connections has room again
_IDLE_WAIT_MS = 5_000
_READ_MAX = 1_000  # messages taken from one socket before the others get their turn

OnBatch = Callable[[list[Inbound]], None]
Clock = Callable[[], int]


class TransportLoop:
    """Built by `ZmqTransport`; every method but `counters` runs on the transport's thread."""

    def __init__(
        self,
        me: bytes,
        keys: CurveKeys,
        door: CurveKeys,
        *,
        open_door: bool,
        limits: TransportLimits,
        mailbox: Mailbox,
        on_batch: OnBatch,
        clock_ms: Clock,
    ) -> None:
        self._me = me
        self._keys = keys
        self._limits = limits
        self._mailbox = mailbox
        self._on_batch = on_batch
        self._clock_ms = clock_ms

        self._links: dict[bytes, Link] = {}
        self._by_user: dict[str, Link] = {}  # the User-Id that the gate gives a peer's connections
        self._by_curve_key: dict[bytes, Link] = {}
        self._waiting: dict[bytes, Link] = {}  # links with a backlog
        self._ready: dict[bytes, Link] = {}  # links whose backlog may move now
        self._is_pipe_full = False  # some route refused a message for want of room
        self._guests = GuestBook(limits)
        self._batch: list[Inbound] = []
        self._next_tick_ms = clock_ms() + _TICK_MS

        self._total = Meter()
        self._guest_meter = Meter()
        self._dropped = dict.fromkeys(Drop, 0)

        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.max_sockets = 4 * limits.dials_max + 64
        self._poller = zmq.Poller()
        self._gate = Gate(
            self._context,
            z85.decode(door.public) if open_door else None,
            limits,
            clock_ms(),
        )
        self._router = listener(self._context, keys, limits)
        self._dials = Dials(self._context, self._poller, keys, door, limits, Resolver(), mailbox)

    # -- life --------------------------------------------------------------------------------------

    def open(self, listen: Sequence[str]) -> tuple[str, ...]:
        """Binds; returns the bound addresses."""
        addresses = tuple(bind(self._router, address) for address in listen)
        self._wake_fd = self._mailbox.open()
        self._poller.register(self._gate.socket, zmq.POLLIN)
        self._poller.register(self._router, zmq.POLLIN)
        self._poller.register(self._wake_fd, zmq.POLLIN)
        return addresses

    def turn(self, wait_ms_max: int = _IDLE_WAIT_MS) -> None:
        ready = self._poller.poll(min(wait_ms_max, self._wait_ms()))
        now_ms = self._clock_ms()
        # Orders first: once a peer is forgotten, nothing that it sent afterwards is handed over.
        for order in self._mailbox.take():
            self._obey(order, now_ms)
        for source, events in ready:
            self._read(source, events, now_ms)
        if now_ms >= self._next_tick_ms:
            self._tick(now_ms)
        if self._is_pipe_full:
            self._is_pipe_full = False
            self._ready.update(self._waiting)
        ready_links, self._ready = self._ready, {}
        for link in ready_links.values():
            self._pump(link, now_ms)
        if self._batch:
            batch, self._batch = self._batch, []
            self._on_batch(batch)

    def drain(self, until_ms: int) -> None:
        """Last turns before closing: as long as something waits and there is time."""
        self.turn(0)
        while self._waiting and (left_ms := until_ms - self._clock_ms()) > 0:
            self.turn(left_ms)

    def close(self, linger_ms: int) -> None:
        self._mailbox.close()
        self._dials.close(linger_ms)
        self._router.close(linger_ms)
        self._gate.socket.close(0)
        self._context.term()  # waits for what lingers

    def counters(self) -> TransportCounters:
        """From any thread: single reads are atomic, and no table is walked while it may change."""
        dropped = self._mailbox.dropped()
        links = list(self._links.values())
        return TransportCounters(
            total=self._total.read(),
            guests=self._guest_meter.read(),
            peers={link.peer: link.meter.read() for link in links},
            dropped={cause: count + dropped[cause] for cause, count in self._dropped.items()},
            refused_handshakes=self._gate.refused,
            dials=self._dials.count,
            routes=sum(1 for link in links if link.routes),
            paths={link.peer: path for link in links if (path := link.connected())},
        )

    # -- orders ------------------------------------------------------------------------------------

    def _obey(self, order: Order, now_ms: int) -> None:
        match order:
            case Send():
                self._send(order.to, order.data, now_ms)
            case SetPeer():
                self._set_peer(order, now_ms)
            case Forget():
                self._forget(order.peer)
            case Resolved():
                self._dials.resolved(self._links.get(order.peer), order, now_ms)
            case _:
                assert_never(order)

    def _set_peer(self, order: SetPeer, now_ms: int) -> None:
        owner = self._by_curve_key.get(order.curve_key)
        if owner is not None and owner.peer != order.peer:
            # Two Ed25519 points, P and -P, share one X25519 key. Whoever was there first stays.
            self._dropped[Drop.BAD_KEY] += 1
            return
        link = self._links.get(order.peer)
        if link is None:
            self._add_link(order, now_ms)
            return
        dial = link.dial
        if dial is not None and (
            dial.address not in order.addresses or link.as_guest != order.as_guest
        ):
            self._dials.drop(link, linger_ms=self._limits.settle_ms)
        if (link.addresses, link.as_guest) != (order.addresses, order.as_guest):
            link.addresses, link.as_guest = order.addresses, order.as_guest
            link.attempts = link.not_before_ms = 0
        self._ready[link.peer] = link

    def _add_link(self, order: SetPeer, now_ms: int) -> None:
        bucket = Bucket(self._limits.peer_messages_per_s, now_ms)
        link = Link(order.peer, order.curve_key, order.addresses, order.as_guest, bucket)
        self._links[link.peer] = link
        self._by_user[link.peer.hex()] = link
        self._by_curve_key[link.curve_key] = link
        self._gate.allow(link.curve_key, link.peer)

    def _forget(self, peer: bytes) -> None:
        """Its inbound connections cannot be closed one by one; whatever they bring from now on is
        dropped.
        """
        link = self._links.pop(peer, None)
        if link is None:
            return
        self._gate.disallow(link.curve_key)
        self._dials.drop(link, linger_ms=self._limits.settle_ms)
        del self._by_user[peer.hex()]
        del self._by_curve_key[link.curve_key]
        self._waiting.pop(peer, None)
        self._ready.pop(peer, None)

    def _send(self, to: bytes, data: bytes, now_ms: int) -> None:
        link = self._links.get(to)
        if link is not None:
            if link.queue(now_ms, data, self._limits):
                self._waiting[to] = self._ready[to] = link
            else:
                self._dropped[Drop.QUEUE_FULL] += 1
            return
        guest = self._guests.find(to)
        if guest is None:
            self._dropped[Drop.UNKNOWN] += 1
            return
        self._send_to_guest(guest, data)

    # -- out ---------------------------------------------------------------------------------------

    def _pump(self, link: Link, now_ms: int) -> None:
        """Move what waits for one peer as far as it will go."""
        while link.backlog:
            path = link.path(self._me, now_ms, self._limits)
            if path is Path.NONE or not self._send_one(link, path, link.backlog[0][1], now_ms):
                break
            data = link.unqueue()
            link.meter.sent(len(data))
            self._total.sent(len(data))
        if not link.backlog:
            self._waiting.pop(link.peer, None)
        if link.wants_dial(now_ms, self._limits):
            self._dials.start(link, now_ms)

    def _send_one(self, link: Link, path: Path, data: bytes, now_ms: int) -> bool:
        """False when this message must wait."""
        if path is Path.DIAL:
            return self._dials.send(link, data, now_ms)
        while (route := link.newest_route()) is not None:
            try:
                self._router.send_multipart((route, data), zmq.NOBLOCK)
            except zmq.Again:
                self._is_pipe_full = True
                return False
            except zmq.ZMQError as error:
                if error.errno != zmq.EHOSTUNREACH:
                    raise
                del link.routes[route]  # that connection is gone; an older one may live, or a dial
                continue
            if link.unanswered_ms is None:
                link.unanswered_ms = now_ms
            return True
        link.unanswered_ms = None
        self._ready[link.peer] = link
        return False

    def _send_to_guest(self, guest: Guest, data: bytes) -> None:
        try:
            self._router.send_multipart((guest.routing_id, data), zmq.NOBLOCK)
        except zmq.Again:
            self._dropped[Drop.QUEUE_FULL] += 1
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._guests.forget(guest)
            self._dropped[Drop.UNKNOWN] += 1
        else:
            self._guest_meter.sent(len(data))
            self._total.sent(len(data))

    # -- in ----------------------------------------------------------------------------------------

    def _read(self, source: object, events: int, now_ms: int) -> None:
        if source is self._gate.socket:
            self._gate.answer(now_ms)
        elif source is self._router:
            self._read_router(now_ms)
        elif (link := self._dials.watched(source)) is not None:
            self._dials.observe(link, now_ms)
            self._ready[link.peer] = (
                link  # up: what waits may go; failed: the next address may start
            )
        elif (link := self._dials.dialled(source)) is not None:
            if events & zmq.POLLIN:
                self._read_dial(link, now_ms)
            if events & zmq.POLLOUT:
                self._dials.unblock(link)
                self._ready[link.peer] = link

    def _read_router(self, now_ms: int) -> None:
        for _ in range(_READ_MAX):
            try:
                frames = self._router.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            if len(frames) != 2:
                self._dropped[Drop.MALFORMED] += 1
                continue
            routing_id, data = frames[0].bytes, frames[1].bytes
            # The gate's word, attached by libzmq to each message; nothing that the sender wrote.
            user = frames[1].get("User-Id")
            if user == GUEST_USER:
                self._heard_guest(routing_id, data, now_ms)
            elif (link := self._by_user.get(str(user))) is not None:
                link.heard_on_route(routing_id)
                if link.backlog:
                    self._ready[link.peer] = link
                self._heard_peer(link, data, now_ms)
            else:
                self._dropped[Drop.STRANGER] += 1

    def _read_dial(self, link: Link, now_ms: int) -> None:
        # The handshake proved that the other end owns the key that we dialled: this is the peer
        # itself.
        for data in self._dials.receive(link, _READ_MAX, now_ms):
            if data is None:
                self._dropped[Drop.MALFORMED] += 1
            else:
                link.unanswered_ms = None
                self._heard_peer(link, data, now_ms)

    def _heard_peer(self, link: Link, data: bytes, now_ms: int) -> None:
        if not data:
            return  # a fresh connection showing itself; see Dials.observe
        if not link.bucket.take(now_ms):
            self._dropped[Drop.RATE] += 1
            return
        link.meter.received(len(data))
        self._total.received(len(data))
        self._batch.append(Inbound(link.peer, data))

    def _heard_guest(self, routing_id: bytes, data: bytes, now_ms: int) -> None:
        guest = self._guests.heard(routing_id, now_ms)
        if not data:
            return
        if not guest.bucket.take(now_ms):
            self._dropped[Drop.RATE] += 1
        elif len(data) > self._limits.guest_message_bytes_max:
            self._dropped[Drop.GUEST_TOO_LARGE] += 1
        else:
            self._guest_meter.received(len(data))
            self._total.received(len(data))
            self._batch.append(Inbound(guest.handle, data))

    # -- time --------------------------------------------------------------------------------------

    def _wait_ms(self) -> int:
        if self._ready:
            return 0
        if self._is_pipe_full:
            return _FULL_PIPE_RETRY_MS
        if self._waiting or self._dials.count:
            return max(0, self._next_tick_ms - self._clock_ms())
        return _IDLE_WAIT_MS

    def _tick(self, now_ms: int) -> None:
        self._next_tick_ms = now_ms + _TICK_MS
        self._dials.tick(self._me, now_ms)
        oldest_ms = now_ms - self._limits.backlog_ms
        for link in self._waiting.values():
            self._dropped[Drop.EXPIRED] += link.expire(oldest_ms)
        self._ready.update(self._waiting)
