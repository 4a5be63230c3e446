"""Can this address be dialled, and is that peer behind it? A fresh connection says so.

The handshake is CURVE's: it succeeds only with whoever owns the key that is expected there. So this
shows nothing about ports that belong to anybody else.
"""

import time
from collections.abc import Sequence

import zmq

from node.addresses import look_up, parse_remote
from node.curve import CurveKeys, curve_public
from node.transport_sockets import Sight, close_dialler, dialler, sights
from node.transport_types import TransportLimits
from protocol.messages import Way

DIAL_MS = 3_000


def dial(
    peer: bytes, addresses: Sequence[str], keys: CurveKeys, each_ms: int = DIAL_MS
) -> list[Way]:
    """One after the other; blocks for at most `each_ms` an address, and for its name's look-up."""
    return [Way(address, _dial_one(peer, address, keys, each_ms)) for address in addresses]


def _dial_one(peer: bytes, text: str, keys: CurveKeys, most_ms: int) -> int | None:
    """How long the connection took; None if none came about."""
    address, curve_key = parse_remote(text), curve_public(peer)
    if address is None or curve_key is None:
        return None
    found = address if address.is_literal else look_up(address)
    if found is None:
        return None
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    started = time.monotonic()
    socket, monitor = dialler(context, "doctor", found, keys, curve_key, TransportLimits())
    try:
        while (left_ms := most_ms - int((time.monotonic() - started) * 1000)) > 0:
            if not monitor.poll(left_ms):
                break
            seen = sights(monitor)
            if Sight.UP in seen:
                return max(1, round((time.monotonic() - started) * 1000))
            # Whatever else was seen, the answer comes as late as from where nobody is: how soon a
            # handshake fails would show what listens there.
        return None
    finally:
        close_dialler(socket, monitor, 0)
        context.term()
