"""Where others can dial us: our own addresses, and what the router forwards."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import psutil

from node.config import NodeConfig
from node.errors import ConfigError
from node.portmap import PortMap, Tell, routers

_LISTED_MAX: Final = 8  # as many as a card holds


@dataclass(frozen=True, slots=True)
class Front:
    bound: tuple[str, ...]  # where we listen
    own: tuple[str, ...]
    mapped: PortMap | None

    def open(self) -> None:
        if self.mapped is not None:
            self.mapped.open()

    def keep(self) -> None:
        if self.mapped is not None:
            self.mapped.keep()

    def close(self) -> None:
        if self.mapped is not None:
            self.mapped.close()

    def addresses(self) -> tuple[str, ...]:
        """For our card, the best for strangers first."""
        outside = self.mapped.address if self.mapped is not None else None
        listed = (outside, *self.own) if outside is not None else self.own
        return tuple(dict.fromkeys(listed))[:_LISTED_MAX]


def check(node: NodeConfig) -> None:
    """Raises ConfigError for settings that contradict each other."""
    if node.map_port and not node.listen:
        raise ConfigError(
            "there is no port to map: this peer listens nowhere",
            "pass --listen tcp://0.0.0.0:7700 with --map-port",
        )


def port_map(node: NodeConfig, bound: Sequence[str], tell: Tell) -> PortMap | None:
    """What the settings ask for."""
    if not node.map_port:
        return None
    port = int(bound[0].rpartition(":")[2])
    return PortMap(routers(node.gateway), port, tell)


def advertised(bound: Sequence[str]) -> tuple[str, ...]:
    """What others may dial: a wildcard address stands for every address of this machine."""
    found: list[str] = []
    for address in bound:
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        if host in ("0.0.0.0", "[::]", "*"):
            found += [f"tcp://{ip}:{port}" for ip in _own_addresses()]
        else:
            found.append(address)
    return tuple(dict.fromkeys(found))[:8]


def _own_addresses() -> list[str]:
    """IPv4 addresses, those that only this machine can reach last."""
    addresses = [
        entry.address
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family.name == "AF_INET"
    ]
    return sorted(addresses, key=lambda ip: (ip.startswith("127."), ip))
