"""ZeroMQ sockets with the options that we want, each with its reason."""

from enum import Enum

import zmq
from zmq.utils.monitor import parse_monitor_message

from node.addresses import Address, ListenError, PortInUse, parse
from node.curve import CurveKeys
from node.transport_types import TransportLimits
from node.transport_zap import ZAP_DOMAIN

FRAME_OVERHEAD_BYTES = (
    64  # what encryption adds to a frame (33), rounded up: ZeroMQ's own cap counts it
)


class Sight(Enum):
    """What a monitor saw of a dialled connection."""

    UP = "up"  # the handshake is through
    LOST = "lost"  # was up; ZeroMQ tries again by itself unless the other side broke the protocol
    REFUSED = "refused"  # ZeroMQ will not try again
    FAILED = "failed"  # no TCP connection; ZeroMQ tries again by itself


_SIGHTS = {
    zmq.EVENT_HANDSHAKE_SUCCEEDED: Sight.UP,
    zmq.EVENT_DISCONNECTED: Sight.LOST,
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: Sight.REFUSED,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: Sight.REFUSED,
    zmq.EVENT_CONNECT_RETRIED: Sight.FAILED,
}
_SIGHT_MASK = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_CONNECT_RETRIED
)


def listener(
    context: "zmq.Context[zmq.Socket[bytes]]", keys: CurveKeys, limits: TransportLimits
) -> "zmq.Socket[bytes]":
    """The one ROUTER through which others reach us; it binds every listen address."""
    socket = context.socket(zmq.ROUTER)
    _bound(socket, limits)
    socket.curve_server = True
    socket.curve_secretkey = keys.secret
    socket.zap_domain = ZAP_DOMAIN
    # Without this, a message to a connection that is gone vanishes without a word.
    socket.router_mandatory = True
    return socket


def bind(socket: "zmq.Socket[bytes]", text: str) -> str:
    """Bind and return the bound address, with the real port."""
    address = parse(text)
    if address is None:
        raise ListenError(f"{text!r} is no address to listen on", "use the form tcp://0.0.0.0:7700")
    # ZeroMQ reports IPv4 addresses in IPv6 clothes when this is on, so it is on only where it is
    # needed.
    socket.ipv6 = ":" in address.host or address.host == "*"
    try:
        socket.bind(str(address))
    except zmq.ZMQError as error:
        if error.errno == zmq.EADDRINUSE:
            raise PortInUse(address) from None
        raise ListenError(
            f"cannot listen on {address}: {error.strerror}",
            "pass --listen with an address of this machine, or tcp://0.0.0.0:7700 for all of them",
        ) from None
    endpoint = bytes(socket.getsockopt(zmq.LAST_ENDPOINT))
    return endpoint.rstrip(b"\0").decode()


def dialler(
    context: "zmq.Context[zmq.Socket[bytes]]",
    monitor_name: str,
    address: Address,
    keys: CurveKeys,
    server_key: bytes,
    limits: TransportLimits,
) -> tuple["zmq.Socket[bytes]", "zmq.Socket[bytes]"]:
    """A DEALER that is connecting to a peer, and the PAIR that reports what becomes of it."""
    socket = context.socket(zmq.DEALER)
    _bound(socket, limits)
    socket.curve_publickey = keys.public
    socket.curve_secretkey = keys.secret
    socket.curve_serverkey = server_key
    socket.ipv6 = ":" in address.host
    # No queue before the handshake is through: until then messages wait with us, free to take
    # another way.
    socket.immediate = True
    socket.connect_timeout = limits.dial_ms_max
    socket.reconnect_ivl = 100
    socket.reconnect_ivl_max = limits.dial_ms_max
    endpoint = f"inproc://dial-{monitor_name}"
    socket.monitor(endpoint, _SIGHT_MASK)
    monitor = context.socket(zmq.PAIR)
    monitor.linger = 0
    monitor.connect(endpoint)
    socket.connect(str(address))
    return socket, monitor


def close_dialler(
    socket: "zmq.Socket[bytes]", monitor: "zmq.Socket[bytes]", linger_ms: int
) -> None:
    socket.disable_monitor()
    monitor.close(0)
    socket.close(linger_ms)


def sights(monitor: "zmq.Socket[bytes]") -> list[Sight]:
    """Everything that the monitor has to say."""
    seen: list[Sight] = []
    while True:
        try:
            frames = monitor.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return seen
        sight = _SIGHTS.get(zmq.Event(parse_monitor_message(frames)["event"]))
        if sight is not None:
            seen.append(sight)


def _bound(socket: "zmq.Socket[bytes]", limits: TransportLimits) -> None:
    """Bounds that hold for both directions."""
    socket.linger = 0
    socket.maxmsgsize = limits.message_bytes_max + FRAME_OVERHEAD_BYTES
    socket.sndhwm = limits.pipe_messages_max
    socket.rcvhwm = limits.pipe_messages_max
    socket.handshake_ivl = limits.handshake_ms
    # Keepalive finds dead idle connections and keeps home routers' tables warm; the time-out on
    # unacknowledged data finds dead busy ones. ZMTP heartbeats would cost bytes, and the protocol
    # pings already.
    socket.tcp_keepalive = 1
    socket.tcp_keepalive_idle = limits.keepalive_idle_s
    socket.tcp_keepalive_intvl = 15
    socket.tcp_keepalive_cnt = 4
    socket.tcp_maxrt = limits.unacknowledged_ms
