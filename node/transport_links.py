"""What the transport knows about one peer, and which way a message takes to it.

A peer is reached over a connection that we opened (a dial) or over one that it opened (a route
through our listening socket). One of the two is enough, and one TCP connection per pair keeps
acknowledgements on the back of data. When both exist, both sides must prefer the same one without
talking about it: the one that the smaller PeerId dialled. The other is left open until it has been
silent for a while, so nothing in flight is lost, and then its dialler closes it.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from enum import Enum

import zmq

from node.addresses import Address
from node.transport_types import Bucket, Meter, TransportLimits

ROUTES_MAX = 4  # connections of one peer that we remember; older ones are dead or about to be
GUEST_PREFIX = b"guest:"


class Path(Enum):
    DIAL = "dial"
    ROUTE = "route"
    NONE = "none"


@dataclass(slots=True)
class Dial:
    """A connection that we opened, or are trying to open."""

    address: Address
    socket: "zmq.Socket[bytes] | None"  # None while the host name is being resolved
    monitor: "zmq.Socket[bytes] | None"
    deadline_ms: int  # when to give this attempt up, while it is down
    used_ms: int  # last message either way
    up: bool = False
    was_up: bool = False


@dataclass(slots=True)
class Link:
    """One peer that the protocol told us about."""

    peer: bytes
    curve_key: bytes  # 32 raw bytes
    addresses: tuple[Address, ...]
    as_guest: bool
    bucket: Bucket
    meter: Meter = field(default_factory=Meter)

    backlog: deque[tuple[int, bytes]] = field(default_factory=deque)  # (queued at ms, message)
    backlog_bytes: int = 0

    dial: Dial | None = None
    attempts: int = 0  # dials since one last came up; picks the address and the patience
    not_before_ms: int = 0  # the next dial may start now or later
    # Routing ids in the order in which they were first heard. The newest one wins for good, so what
    # is still being read from a restarted peer's old connection cannot take the route back.
    routes: dict[bytes, None] = field(default_factory=dict)
    unanswered_ms: int | None = None  # since when we have sent over a route and heard nothing

    def queue(self, now_ms: int, data: bytes, limits: TransportLimits) -> bool:
        """False when there is no room."""
        if len(self.backlog) >= limits.backlog_messages_max:
            return False
        if self.backlog_bytes + len(data) > limits.backlog_bytes_max:
            return False
        self.backlog.append((now_ms, data))
        self.backlog_bytes += len(data)
        return True

    def unqueue(self) -> bytes:
        _, data = self.backlog.popleft()
        self.backlog_bytes -= len(data)
        return data

    def expire(self, before_ms: int) -> int:
        """Drop what was queued before then; returns how many."""
        count = 0
        while self.backlog and self.backlog[0][0] < before_ms:
            self.unqueue()
            count += 1
        return count

    def heard_on_route(self, routing_id: bytes) -> None:
        self.unanswered_ms = None
        if routing_id in self.routes:
            return
        self.routes[routing_id] = None
        if len(self.routes) > ROUTES_MAX:
            del self.routes[next(iter(self.routes))]

    def newest_route(self) -> bytes | None:
        return next(reversed(self.routes), None)

    def is_route_silent(self, now_ms: int, limits: TransportLimits) -> bool:
        return self.unanswered_ms is not None and now_ms - self.unanswered_ms > limits.suspect_ms

    def path(self, me: bytes, now_ms: int, limits: TransportLimits) -> Path:
        """The way that the next message takes."""
        dial_up = self.dial is not None and self.dial.up
        if not self.routes:
            return Path.DIAL if dial_up else Path.NONE
        if not dial_up:
            return Path.ROUTE
        ours_wins = me < self.peer or self.as_guest or self.is_route_silent(now_ms, limits)
        return Path.DIAL if ours_wins else Path.ROUTE

    def connected(self) -> str:
        """Over whose connection it is reached, for people; "" if there is none."""
        dial = self.dial
        if dial is not None and dial.up:
            return Path.DIAL.value
        return Path.ROUTE.value if self.routes else ""

    def wants_dial(self, now_ms: int, limits: TransportLimits) -> bool:
        """Something is waiting, and no connection is there or the one there looks dead."""
        if self.dial is not None or not self.addresses or now_ms < self.not_before_ms:
            return False
        if self.routes:
            return self.is_route_silent(now_ms, limits)
        return bool(self.backlog)

    def next_address(self) -> Address:
        return self.addresses[self.attempts % len(self.addresses)]

    def patience_ms(self, limits: TransportLimits) -> int:
        """How long the next attempt may take: doubles each time all addresses have failed."""
        cycles = min(self.attempts // max(1, len(self.addresses)), 8)
        return int(min(limits.dial_ms_max, limits.dial_ms << cycles))


@dataclass(slots=True)
class Guest:
    handle: bytes
    routing_id: bytes
    bucket: Bucket


class GuestBook:
    """Handles for connections that only proved to hold an invite. Bounded: the least recently heard
    is forgotten.
    """

    def __init__(self, limits: TransportLimits) -> None:
        self._limits = limits
        self._by_route: OrderedDict[bytes, Guest] = OrderedDict()
        self._by_handle: dict[bytes, Guest] = {}
        self._count = 0

    def heard(self, routing_id: bytes, now_ms: int) -> Guest:
        guest = self._by_route.get(routing_id)
        if guest is None:
            guest = self._admit(routing_id, now_ms)
        self._by_route.move_to_end(routing_id)
        return guest

    def find(self, handle: bytes) -> Guest | None:
        return self._by_handle.get(handle)

    def forget(self, guest: Guest) -> None:
        del self._by_route[guest.routing_id]
        del self._by_handle[guest.handle]

    def _admit(self, routing_id: bytes, now_ms: int) -> Guest:
        if len(self._by_route) >= self._limits.guests_max:
            self.forget(next(iter(self._by_route.values())))
        # The handle counts connections rather than quoting the routing id, whose length the guest
        # may choose.
        self._count += 1
        handle = GUEST_PREFIX + self._count.to_bytes(8, "big")
        guest = Guest(handle, routing_id, Bucket(self._limits.guest_messages_per_s, now_ms))
        self._by_route[routing_id] = self._by_handle[handle] = guest
        return guest
