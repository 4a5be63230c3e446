"""Who may connect: ZeroMQ asks this handler about every CURVE handshake (ZAP, RFC 27).

The handshake has already proved that the other side owns the secret of the key we are shown. Known
keys pass and their PeerId becomes the connection's User-Id; the door's key passes as a guest;
everything else is refused.
"""

import zmq

from node.transport_types import Bucket, TransportLimits

ZAP_ENDPOINT = "inproc://zeromq.zap.01"  # fixed by the RFC; private to one zmq.Context
ZAP_DOMAIN = b"peer"
GUEST_USER = "guest"  # a peer's User-Id is 64 hexadecimal digits

_ALLOWED, _TRY_LATER, _REFUSED = b"200", b"300", b"400"


class Gate:
    """The ZAP socket and the list of keys. Must be bound before any listening socket is: without it
    all may enter.
    """

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        door_key: bytes | None,
        limits: TransportLimits,
        now_ms: int,
    ) -> None:
        self.refused = 0
        self._users: dict[bytes, str] = {}
        self._door_key = door_key  # None: no guests
        self._guest_bucket = Bucket(limits.guest_handshakes_per_s, now_ms)
        self.socket = context.socket(zmq.ROUTER)
        self.socket.linger = 0
        self.socket.bind(ZAP_ENDPOINT)

    def allow(self, curve_key: bytes, peer: bytes) -> None:
        self._users[curve_key] = peer.hex()

    def disallow(self, curve_key: bytes) -> None:
        self._users.pop(curve_key, None)

    def answer(self, now_ms: int) -> None:
        """Answer every question that is waiting."""
        while True:
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._answer_one(frames, now_ms)

    def _answer_one(self, frames: list[bytes], now_ms: int) -> None:
        # route, empty, version, request id, domain, address, routing id, mechanism, key
        assert len(frames) == 9, "libzmq asks about CURVE with exactly one credential"
        status, user = self._judge(frames[7], frames[8], now_ms)
        if status != _ALLOWED:
            self.refused += 1
        self.socket.send_multipart([*frames[:4], status, b"", user.encode(), b""])

    def _judge(self, mechanism: bytes, curve_key: bytes, now_ms: int) -> tuple[bytes, str]:
        if mechanism != b"CURVE":
            return _REFUSED, ""
        if (user := self._users.get(curve_key)) is not None:
            return _ALLOWED, user
        if curve_key == self._door_key:
            return (_ALLOWED, GUEST_USER) if self._guest_bucket.take(now_ms) else (_TRY_LATER, "")
        return _REFUSED, ""
