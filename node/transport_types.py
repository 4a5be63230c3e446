"""What the transport hands over, how much it may hold, and what it counts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Inbound:
    """One received message."""

    source: (
        bytes  # a PeerId (32 bytes) that the handshake proved, or a guest handle (never 32 bytes)
    )
    data: bytes


class Drop(StrEnum):
    """Why a message went no further. The transport promises nothing; it only says what it did."""

    # on the way out
    CLOSED = "closed"  # sent before start or after close
    QUEUE_FULL = "queue_full"  # a bound on messages or bytes in waiting
    TOO_LARGE = "too_large"  # the receiver would drop the connection
    UNKNOWN = "unknown"  # neither a peer that was set nor a guest that is still held
    EXPIRED = "expired"  # no connection within backlog_ms
    # on the way in
    STRANGER = "stranger"  # a peer forgotten after its handshake
    MALFORMED = "malformed"  # not a single frame
    RATE = "rate"  # the source sends faster than its allowance
    GUEST_TOO_LARGE = "guest_too_large"
    # neither
    BAD_KEY = (
        "bad_key"  # set_peer with bytes that are no PeerId, or that share a key with another peer
    )
    BAD_ADDRESS = "bad_address"  # set_peer with an address that is no tcp://host:port


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportLimits:
    """Every bound of the transport. Times are in milliseconds."""

    message_bytes_max: int = 4 << 20
    """Larger messages end the connection they arrive on; our own are refused."""
    guest_message_bytes_max: int = 64 << 10
    guests_max: int = 256
    """Guest handles kept; the least recently heard goes first."""
    guest_handshakes_per_s: float = 20.0
    """A leaked invite must not let one machine open connections without end. The burst is three
    seconds' worth.
    """
    guest_messages_per_s: float = 20.0
    peer_messages_per_s: float = 5_000.0
    """Allowance of one source; the burst is three seconds' worth."""

    queue_messages_max: int = 100_000
    """What callers may queue before the transport's thread takes it over."""
    queue_bytes_max: int = 256 << 20
    backlog_messages_max: int = 10_000
    """What waits for one peer's connection."""
    backlog_bytes_max: int = 64 << 20
    backlog_ms: int = 10_000
    """A message that found no connection for so long is stale: whoever sent it has asked again."""
    pipe_messages_max: int = 64
    """ZeroMQ's own queue per connection. It counts messages, so times message_bytes_max this bounds
    memory.
    """

    dials_max: int = 200
    """Connections that we open. Each takes four file descriptors; the least recently used goes
    first.
    """
    dial_ms: int = 1_500
    """How long one address may take before the next is tried; doubles up to dial_ms_max."""
    dial_ms_max: int = 15_000
    idle_ms: int = 300_000
    """A dialled connection that nobody used for so long is closed."""
    settle_ms: int = 2_000
    """A second connection to one peer is closed after so long without traffic: nothing is in flight
    on it then.
    """
    suspect_ms: int = 5_000
    """Unanswered for so long, an inbound connection no longer keeps us from dialling."""
    handshake_ms: int = 10_000
    keepalive_idle_s: int = 75
    unacknowledged_ms: int = 20_000
    """TCP gives a connection up when the other side acknowledges nothing for so long."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Payload bytes and messages: what was handed to ZeroMQ and what came out of it."""

    bytes_in: int = 0
    bytes_out: int = 0
    messages_in: int = 0
    messages_out: int = 0


@dataclass(frozen=True, slots=True)
class TransportCounters:
    """A snapshot. Framing, encryption and TCP come on top of these bytes."""

    total: Traffic
    guests: Traffic
    peers: Mapping[bytes, Traffic]
    dropped: Mapping[Drop, int]
    refused_handshakes: int
    dials: int  # connections that we are holding or trying to open
    routes: int  # peers reached over connections that they opened
    paths: Mapping[bytes, str]  # peer -> "dial" or "route"; those without a connection are left out


@dataclass(slots=True)
class Meter:
    """The mutable twin of Traffic; only the transport's thread writes it."""

    bytes_in: int = 0
    bytes_out: int = 0
    messages_in: int = 0
    messages_out: int = 0

    def received(self, size: int) -> None:
        self.bytes_in += size
        self.messages_in += 1

    def sent(self, size: int) -> None:
        self.bytes_out += size
        self.messages_out += 1

    def read(self) -> Traffic:
        return Traffic(self.bytes_in, self.bytes_out, self.messages_in, self.messages_out)


@dataclass(slots=True)
class Bucket:
    """A token bucket: `per_s` on average, three seconds' worth at once."""

    per_s: float
    updated_ms: int
    tokens: float = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = self._cap()

    def _cap(self) -> float:
        return max(1.0, 3.0 * self.per_s)

    def take(self, now_ms: int) -> bool:
        earned = (now_ms - self.updated_ms) * self.per_s / 1000.0
        self.tokens = min(self._cap(), self.tokens + earned)
        self.updated_ms = now_ms
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True
