"""tcp:// addresses: what may be dialled, what may be listened on, and who holds a port that we
want.

Addresses come from invites and gossip, so they are hostile: only tcp:// with a host and a port
passes. ZeroMQ would resolve a host name inside its own I/O thread and stall every connection while
a name server is silent; names are therefore resolved here, in a thread of their own, and ZeroMQ
sees only numbers.
"""

import ipaddress
import queue
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass

from node.errors import UserError

_ADDRESS = re.compile(
    r"tcp://(?:\[([0-9A-Fa-f:.]{2,45}(?:%[\w.-]{1,15})?)\]|([\w*.-]{1,253})):(\d{1,5})", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Address:
    host: str  # an IP without brackets, a name, or "*" (all interfaces; only to listen)
    port: int

    def __str__(self) -> str:
        return (
            f"tcp://[{self.host}]:{self.port}"
            if ":" in self.host
            else f"tcp://{self.host}:{self.port}"
        )

    @property
    def is_literal(self) -> bool:
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return True


def parse(text: str) -> Address | None:
    """None for anything but tcp://host:port."""
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match[3]) > 65535:
        return None
    return Address(match[1] or match[2], int(match[3]))


def parse_remote(text: str) -> Address | None:
    """An address that may be dialled: a port other than 0, a host other than all interfaces."""
    address = parse(text)
    if address is None or address.port == 0 or "*" in address.host:
        return None
    if address.is_literal and ipaddress.ip_address(address.host).is_unspecified:
        return None
    return address


class ListenError(UserError):
    """A listen address cannot be used."""


class PortInUse(ListenError):
    """Another process holds the port."""

    def __init__(self, address: Address) -> None:
        other = Address(address.host, address.port % 65535 + 1)
        super().__init__(
            f"port {address.port} is in use by {holder_of_port(address.port)}",
            f"pass --listen {other}",
        )
        self.address = str(address)


def holder_of_port(port: int) -> str:
    """Best effort: the table of connections may not be ours to read."""
    import psutil

    try:
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.status == "LISTEN":
                if connection.pid is None:
                    break
                name = psutil.Process(connection.pid).name()
                return f"another process ({name}, pid {connection.pid})"
    except (psutil.Error, OSError):
        pass
    return "another process"


class Resolver:
    """Resolves host names on one daemon thread, started at first use."""

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[tuple[Address, Callable[[Address | None], None]] | None] = (
            queue.SimpleQueue()
        )
        self._thread: threading.Thread | None = None

    def resolve(self, address: Address, done: Callable[[Address | None], None]) -> None:
        """Calls `done` on the resolver's thread, with None when the name has no address."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="peer-resolver", daemon=True)
            self._thread.start()
        self._asked.put((address, done))

    def close(self) -> None:
        """A look-up that hangs cannot be interrupted; it is left to the daemon thread."""
        if self._thread is not None:
            self._asked.put(None)
            self._thread.join(timeout=1.0)
            self._thread = None

    def _run(self) -> None:
        while (asked := self._asked.get()) is not None:
            address, done = asked
            done(look_up(address))


def look_up(address: Address) -> Address | None:
    """The address with an IP for its host's name; None if it has none. Blocks."""
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return None
    # IPv4 first: a name with both is more often reachable over it.
    found.sort(key=lambda row: row[0] != socket.AF_INET)
    return Address(str(found[0][4][0]), address.port) if found else None
