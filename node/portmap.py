"""A port of the router's, forwarded to ours: NAT-PMP, else UPnP; renewed while we run, given back
when we leave.

Nothing here stops a peer from running: without a mapping it is reached over its own connections.
"""

import ipaddress
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from node import natpmp
from node.errors import MissingExtra, UserError, optional
from node.natpmp import Mapping, NoMapping

LIFETIME_S: Final = 3_600
_RETRY_S: Final = 120.0  # after a renewal that failed
_DISCOVER_MS: Final = 2_000

Tell = Callable[[str], None]


class Router(Protocol):
    """One way to ask."""

    name: str

    def map(self, port: int, wanted: int, lifetime_s: int) -> Mapping:
        """Raises NoMapping."""
        ...

    def unmap(self, port: int, external: int) -> None:
        """Raises NoMapping."""
        ...


@dataclass(slots=True)
class NatPmp:
    gateway: str
    name: str = "NAT-PMP"

    def map(self, port: int, wanted: int, lifetime_s: int) -> Mapping:
        return natpmp.map_tcp(self.gateway, port, wanted, lifetime_s)

    def unmap(self, port: int, external: int) -> None:
        natpmp.unmap_tcp(self.gateway, port)


@dataclass(slots=True)
class Upnp:
    """Found by multicast, or at `url`: the address of the router's own description."""

    url: str | None
    name: str = "UPnP"

    def map(self, port: int, wanted: int, lifetime_s: int) -> Mapping:
        device = self._device()
        try:
            self._add(device, port, wanted, lifetime_s)
            external = device.externalipaddress()
        except Exception as error:  # miniupnpc raises bare exceptions
            raise NoMapping(f"the router refuses: {error}") from error
        if not external:
            raise NoMapping("the router has no address to share")
        return Mapping(external, wanted, lifetime_s)

    def unmap(self, port: int, external: int) -> None:
        try:
            self._device().deleteportmapping(external, "TCP")
        except NoMapping:
            raise
        except Exception as error:
            raise NoMapping(f"the router refuses: {error}") from error

    @staticmethod
    def _add(device: Any, port: int, wanted: int, lifetime_s: int) -> None:  # noqa: ANN401
        """Some routers know no leases, and say so only by refusing one."""
        place = wanted, "TCP", device.lanaddr, port, "peer", ""
        try:
            device.addportmapping(*place, lifetime_s)
        except Exception:  # which error it was only the text would tell
            device.addportmapping(*place, 0)

    def _device(self) -> Any:  # noqa: ANN401 - a C extension without types
        device = optional("miniupnpc", "upnp").UPnP()
        device.discoverdelay = _DISCOVER_MS
        try:
            if self.url is not None:
                device.selectigd(self.url)
            elif device.discover():
                device.selectigd()
            else:
                raise NoMapping("no router answers UPnP")
        except NoMapping:
            raise
        except Exception as error:
            raise NoMapping(f"no router answers UPnP ({error})") from error
        return device


def routers(gateway: str | None) -> list[Router]:
    """`gateway`: the router's address, or the URL of its UPnP description; None: look for it."""
    if gateway is not None:
        return [Upnp(gateway)] if gateway.startswith("http://") else [NatPmp(gateway)]
    found = natpmp.default_gateway()
    return [*([NatPmp(found)] if found else []), Upnp(None)]


class PortMap:
    """Renews on a thread of its own; `address` is what the router forwards now."""

    def __init__(self, ways: Sequence[Router], port: int, tell: Tell) -> None:
        self._ways, self._port, self._tell = list(ways), port, tell
        self._way: Router | None = None
        self._mapping: Mapping | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> str | None:
        """Read by other threads too."""
        mapping = self._mapping
        return None if mapping is None else f"tcp://{mapping.external_ip}:{mapping.external_port}"

    def open(self) -> str | None:
        """Ask each way in turn; blocks for seconds where nobody answers."""
        reasons = []
        for way in self._ways:
            try:
                self._mapping = way.map(self._port, self._port, LIFETIME_S)
            except MissingExtra as error:
                reasons.append(f"{way.name}: {error.message} ({error.hint})")
            except (NoMapping, UserError) as error:
                reasons.append(f"{way.name}: {error}")
            else:
                self._way = way
                self._tell(f"the router forwards {self.address} to port {self._port} ({way.name})")
                if not ipaddress.ip_address(self._mapping.external_ip).is_global:
                    self._tell("that is no public address: another router may stand in the way")
                return self.address
        self._tell("no port was mapped: " + "; ".join(reasons))
        return None

    def keep(self) -> None:
        """Renew from now on."""
        if self._way is None:
            return
        self._thread = threading.Thread(target=self._renew, name="peer-portmap", daemon=True)
        self._thread.start()

    def _renew(self) -> None:
        wait_s = self._half_life_s()
        while not self._stop.wait(wait_s):
            wait_s = self.renew()

    def renew(self) -> float:
        """Once; returns after how many seconds to do so again."""
        assert self._way is not None
        assert self._mapping is not None
        try:
            self._mapping = self._way.map(self._port, self._mapping.external_port, LIFETIME_S)
        except (NoMapping, UserError) as error:
            self._tell(f"the port mapping could not be renewed: {error}")
            return min(_RETRY_S, self._half_life_s())
        return self._half_life_s()

    def _half_life_s(self) -> float:
        """The RFC's advice."""
        return max(1.0, self._mapping.lifetime_s / 2) if self._mapping is not None else _RETRY_S

    def close(self) -> None:
        """Give the port back."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=1.0)
        if self._way is None or self._mapping is None:
            return
        try:
            self._way.unmap(self._port, self._mapping.external_port)
        except (NoMapping, UserError) as error:
            self._tell(f"the router keeps the port until its lease ends: {error}")
