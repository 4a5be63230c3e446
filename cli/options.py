"""This machine's settings: from the run file, with what the command line says on top."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from node.config import NodeConfig


def node_config(
    base: "NodeConfig",
    *,
    listen: list[str] | None,
    advertise: list[str] | None,
    device: str | None,
    threads: int | None,
    model: str | None,
    data: list[str] | None,
    map_port: bool = False,
    processes: int | None = None,
) -> "NodeConfig":
    """Raises ConfigError."""
    from node.config import NodeConfig
    from node.errors import ConfigError

    changes: dict[str, Any] = {}
    if listen:
        changes["listen"] = () if listen == ["none"] else tuple(listen)
    if advertise:
        changes["advertise"] = tuple(advertise)
    if model is not None:
        changes["model"] = str(Path(model).resolve()) if Path(model).exists() else model
    if data:
        changes["data"] = tuple(str(Path(path).resolve()) for path in data)
    if device is not None:
        changes["device"] = device
    if map_port:
        changes["map_port"] = True
    if threads is not None:
        changes["threads"] = threads
    if processes is not None:
        changes["processes"] = processes
    for address in (*changes.get("listen", ()), *changes.get("advertise", ())):
        if not address.startswith("tcp://") or not address.rpartition(":")[2].isdigit():
            raise ConfigError(f"{address!r} is no address", "write tcp://HOST:PORT")
    return NodeConfig.model_validate({**base.model_dump(), **changes})
