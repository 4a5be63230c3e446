"""NAT-PMP (RFC 6886): ask the router to forward a port. Twelve bytes there, sixteen back."""

import ipaddress
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PORT: Final = 5351
_FIRST_WAIT_S: Final = 0.25  # doubles with each try, as the RFC says; it goes on to 64 s
_TRIES: Final = 4
_TCP: Final = 2
_ANSWER: Final = 128
_CODES: Final = {
    1: "does not speak this version",
    2: "does not allow it",
    3: "has no address itself",
    4: "has no room for more ports",
    5: "does not know how",
}


class NoMapping(Exception):
    """The router forwards nothing; the text says why."""


@dataclass(frozen=True, slots=True)
class Mapping:
    external_ip: str
    external_port: int
    lifetime_s: int


def default_gateway(table: Path = Path("/proc/net/route")) -> str | None:
    """The default route's router, as Linux tells it; None elsewhere."""
    try:
        rows = [line.split() for line in table.read_text().splitlines()[1:]]
    except OSError:
        return None
    for row in rows:
        if len(row) > 3 and row[1] == "00000000" and int(row[3], 16) & 2:
            return str(ipaddress.IPv4Address(struct.pack("<I", int(row[2], 16))))
    return None


def map_tcp(gateway: str, port: int, wanted: int, lifetime_s: int) -> Mapping:
    """Forward `wanted`, or another port that the router chooses, to `port`. Raises NoMapping."""
    request = struct.pack("!BBHHHI", 0, _TCP, 0, port, wanted, lifetime_s)
    ip = _ask(gateway, b"\0\0", 12)[8:12]
    answer = _ask(gateway, request, 16)
    ours, external, granted_s = struct.unpack("!HHI", answer[8:16])
    if ours != port or (lifetime_s and not external):
        raise NoMapping(f"{gateway} answered for another port")
    return Mapping(str(ipaddress.IPv4Address(ip)), external, granted_s)


def unmap_tcp(gateway: str, port: int) -> None:
    """Forward it no longer. Raises NoMapping."""
    _ask(gateway, struct.pack("!BBHHHI", 0, _TCP, 0, port, 0, 0), 16)


def _ask(gateway: str, request: bytes, size: int) -> bytes:
    host, _, own_port = gateway.partition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            # Connected: only what comes from the router itself is an answer.
            asking.connect((host, int(own_port or PORT)))
            for attempt in range(_TRIES):
                asking.settimeout(_FIRST_WAIT_S * 2**attempt)
                asking.send(request)
                try:
                    answer = asking.recv(64)
                except TimeoutError:
                    continue
                return _checked(gateway, request, answer, size)
        except OSError as error:
            raise NoMapping(f"{gateway} does not speak NAT-PMP ({error})") from error
    raise NoMapping(f"{gateway} does not answer NAT-PMP")


def _checked(gateway: str, request: bytes, answer: bytes, size: int) -> bytes:
    if len(answer) < 8 or answer[0] != 0 or answer[1] != _ANSWER + request[1]:
        raise NoMapping(f"{gateway} answers something else than NAT-PMP")
    code = int.from_bytes(answer[2:4], "big")
    if code:
        raise NoMapping(f"{gateway} {_CODES.get(code, f'refuses, code {code}')}")
    if len(answer) != size:
        raise NoMapping(f"{gateway} answers something else than NAT-PMP")
    return answer
