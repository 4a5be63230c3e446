"""Check-ups: is this machine fit to be a peer, and what would make it fitter?

Each check measures something and returns a `Finding`: a verdict, the figure, and what to do. What
was not measured is "unknown" (P7). What only other members can say comes from `examine`, which the
running peer does; everything else is done by the command itself.
"""

import errno
import importlib.metadata
import os
import platform
import shutil
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from statistics import median
from typing import Any, Final

from node.addresses import holder_of_port, parse
from node.curve import CurveKeys
from node.dialback import dial
from node.errors import ConfigError
from protocol.codec import VERSION
from protocol.ids import short

UNKNOWN: Final = "unknown"
_DISK_WARNING: Final = 2 << 30
_DISK_PROBLEM: Final = 100 << 20
_WRITE_BYTES: Final = 8 << 20
_WRITE_SLOW: Final = 5e6  # bytes a second
_MATMUL: Final = 1_024
_MATMUL_S: Final = 0.5
_CLOCK_WARNING_MS: Final = 30_000.0
_CLOCK_PROBLEM_MS: Final = 600_000.0
_LINK_SLOW: Final = 32e3  # bytes a second


class Verdict(StrEnum):
    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    verdict: Verdict
    figure: str  # for a person
    advice: str = ""
    measured: Mapping[str, Any] | None = None  # for a program

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def worst(findings: Iterable[Finding]) -> Verdict:
    """A problem counts more than a warning; what is unknown does not count."""
    verdicts = {finding.verdict for finding in findings}
    for verdict in (Verdict.PROBLEM, Verdict.WARNING):
        if verdict in verdicts:
            return verdict
    return Verdict.OK


def amount(count: float | None, unit: str = "B") -> str:
    if count is None:
        return UNKNOWN
    for prefix in ("", "K", "M", "G"):
        if abs(count) < 1000:
            return f"{count:.3g} {prefix}{unit}"
        count /= 1000
    return f"{count:.3g} T{unit}"


# What this machine can say alone


def versions() -> Finding:
    found = {"python": platform.python_version(), "protocol": str(VERSION)}
    for package in ("peertrain", "torch", "pyzmq"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = UNKNOWN
    figure = ", ".join(f"{name} {version}" for name, version in found.items())
    return Finding("versions", Verdict.OK, figure, "", found)


def disk(folder: Path) -> Finding:
    """Room, and how fast a small file becomes durable."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    path = folder / f".doctor-{os.getpid()}"
    try:
        started = time.monotonic()
        with path.open("wb") as file:
            file.write(os.urandom(_WRITE_BYTES))
            file.flush()
            os.fsync(file.fileno())
        rate: float | None = _WRITE_BYTES / (time.monotonic() - started)
        trouble = ""
    except OSError as error:
        rate, trouble = None, str(error.strerror)
    finally:
        path.unlink(missing_ok=True)
    figure = f"{amount(free)} free, {amount(rate)}/s written and synced, in {folder}"
    measured = {"folder": str(folder), "free_bytes": free, "write_bytes_per_s": rate}
    if trouble:
        advice = f"cannot write there ({trouble}); pass another --home, or mend its rights"
        return Finding("disk", Verdict.PROBLEM, figure, advice, measured)
    if free < _DISK_PROBLEM:
        return Finding(
            "disk", Verdict.PROBLEM, figure, "make room, or pass another --home", measured
        )
    if free < _DISK_WARNING:
        advice = "checkpoints of a large model may not fit; make room, or pass another --home"
        return Finding("disk", Verdict.WARNING, figure, advice, measured)
    if rate is not None and rate < _WRITE_SLOW:
        advice = "a peer writes before it speaks; put its home on a faster disk"
        return Finding("disk", Verdict.WARNING, figure, advice, measured)
    return Finding("disk", Verdict.OK, figure, "", measured)


def device(name: str) -> Finding:
    """What PyTorch finds, and how fast it multiplies there."""
    import torch

    from node.build import choose_device

    try:
        found = choose_device(name)
    except ConfigError as error:
        return Finding("device", Verdict.PROBLEM, error.message, error.hint, {"device": name})
    memory = _memory_bytes(found)
    rate = _matmul_rate(found)
    figure = f"{found}, {amount(memory)} of memory free, {amount(rate, 'FLOP')}/s in float32"
    measured = {"device": str(found), "free_bytes": memory, "flop_per_s": rate}
    if name == "auto" and found.type == "cpu" and torch.version.cuda is not None:
        advice = "this PyTorch is built for CUDA and finds no GPU; is the driver there?"
        return Finding("device", Verdict.WARNING, figure, advice, measured)
    return Finding("device", Verdict.OK, figure, "", measured)


def _memory_bytes(device: Any) -> int | None:  # noqa: ANN401 - torch stays out of this file's import
    import psutil
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "cpu":
        return int(psutil.virtual_memory().available)
    return None


def _matmul_rate(device: Any) -> float | None:  # noqa: ANN401
    import torch

    left = torch.ones(_MATMUL, _MATMUL, device=device)
    float((left @ left)[0, 0])  # the first one also loads libraries
    count, started = 0, time.monotonic()
    while (seconds := time.monotonic() - started) < _MATMUL_S:
        float((left @ left)[0, 0])  # reading a number waits for the device
        count += 1
    return 2 * _MATMUL**3 * count / seconds if count else None


def ports(listen: Sequence[str]) -> Finding:
    """Can we listen where the settings say? For a peer that is not running."""
    if not listen:
        return Finding(
            "ports",
            Verdict.WARNING,
            "listens nowhere",
            "members that listen nowhere reach each other through others; pass --listen if you can",
            {"free": [], "held": {}},
        )
    held = {address: holder for address in listen if (holder := _holder(address))}
    measured = {"free": [address for address in listen if address not in held], "held": held}
    if not held:
        return Finding("ports", Verdict.OK, f"free: {', '.join(listen)}", "", measured)
    figure = "; ".join(f"{address} {holder}" for address, holder in held.items())
    advice = "pass --listen with another port, or end the program that holds it"
    return Finding("ports", Verdict.PROBLEM, figure, advice, measured)


def _holder(text: str) -> str:
    """Why this address cannot be listened on; "" if it can."""
    address = parse(text)
    if address is None:
        return "is no address"
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("" if address.host == "*" else address.host, address.port))
            trial.listen(1)
        except PermissionError:
            return "may not be listened on by this user"
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return f"is held by {holder_of_port(address.port)}"
            return f"cannot be listened on: {error.strerror}"
    return ""


def contacts(
    peers: Sequence[tuple[bytes, Sequence[str]]], keys: CurveKeys, *, needed: bool
) -> Finding:
    """Can we dial those whom an invite or our own records name? A handshake proves that it is they.

    `keys`: our own, or the door's for who is no member yet, and so needs one of them.
    """
    if not peers:
        return Finding("contacts", Verdict.UNKNOWN, "knows nobody who can be dialled", "")
    tried = {short(peer): dial(peer, addresses, keys) for peer, addresses in peers}
    measured = {
        name: [{"address": way.address, "took_ms": way.took_ms} for way in ways]
        for name, ways in tried.items()
    }
    up = [name for name, ways in tried.items() if any(way.took_ms is not None for way in ways)]
    figure = f"{len(up)} of {len(tried)} answer"
    fastest = [way.took_ms for ways in tried.values() for way in ways if way.took_ms is not None]
    if fastest:
        figure += f", the nearest in {min(fastest)} ms"
        return Finding("contacts", Verdict.OK, figure, "", measured)
    advice = "are they running, and may this machine dial out? ask a member for a newer invite"
    verdict = Verdict.PROBLEM if needed else Verdict.WARNING
    return Finding("contacts", verdict, figure, advice, measured)


# What other members say


def reachability(addresses: Sequence[str], diallers: Sequence[Mapping[str, Any]]) -> Finding:
    """Could they dial us, each with a fresh connection?"""
    measured = {"addresses": list(addresses), "diallers": [dict(row) for row in diallers]}
    remedy = "forward a port on the router, or pass --map-port or --advertise"
    if not addresses:
        advice = f"others reach it over its own connections and through relays; {remedy}"
        return Finding("reachability", Verdict.WARNING, "nobody can dial it", advice, measured)
    answers = [row for row in diallers if row["answered"]]
    if not answers:
        advice = "no other member is up that could try" if not diallers else "ask again in a minute"
        return Finding("reachability", Verdict.UNKNOWN, UNKNOWN, advice, measured)
    works = [row for row in answers if any(took_ms is not None for _, took_ms in row["ways"])]
    figure = f"{len(works)} of {len(answers)} members could dial it"
    working = {address for row in works for address, took_ms in row["ways"] if took_ms is not None}
    if working:
        figure += f", at {', '.join(sorted(working))}"
    if len(works) == len(answers):
        return Finding("reachability", Verdict.OK, figure, "", measured)
    verdict = Verdict.WARNING if works else Verdict.PROBLEM
    return Finding("reachability", verdict, figure, remedy, measured)


def clock(clocks: Sequence[Mapping[str, Any]]) -> Finding:
    """How far we are off the members' middle. Invites expire by the time of day."""
    if not clocks:
        return Finding("clock", Verdict.UNKNOWN, UNKNOWN, "no other member answered")
    ahead_ms = -median(row["offset_ms"] for row in clocks)
    doubt_ms = min(row["round_trip_ms"] for row in clocks) / 2
    way = "ahead of" if ahead_ms >= 0 else "behind"
    figure = f"{abs(ahead_ms) / 1000:.3f} s {way} {len(clocks)} members (±{doubt_ms / 1000:.3f} s)"
    measured = {"ahead_ms": ahead_ms, "doubt_ms": doubt_ms, "members": len(clocks)}
    advice = "set the clock (NTP): invites' dates are judged by it"
    verdict = Verdict.OK
    if abs(ahead_ms) > _CLOCK_WARNING_MS:
        verdict = Verdict.PROBLEM if abs(ahead_ms) > _CLOCK_PROBLEM_MS else Verdict.WARNING
    return Finding("clock", verdict, figure, "" if verdict is Verdict.OK else advice, measured)


def bandwidth(down: Mapping[str, Any] | None, up: Mapping[str, Any] | None) -> Finding:
    measured = {"down": down, "up": up}
    ways = {"down": down, "up": up}
    rates = {way: row["bytes_per_s"] for way, row in ways.items() if row and row["bytes_per_s"]}
    if not rates:
        advice = "members measure once a minute: ask again" if down else "nobody to measure with"
        return Finding("bandwidth", Verdict.UNKNOWN, UNKNOWN, advice, measured)
    nearest = (down or up or {})["member"][:8]
    figure = ", ".join(f"{amount(rates.get(way))}/s {way}" for way in ways) + f", with {nearest}"
    if min(rates.values()) < _LINK_SLOW:
        advice = "longer windows, or a method with smaller payloads, suit such a link"
        return Finding("bandwidth", Verdict.WARNING, figure, advice, measured)
    return Finding("bandwidth", Verdict.OK, figure, "", measured)


def network(examined: Mapping[str, Any]) -> list[Finding]:
    """From what the running peer's `examine` found."""
    listening = ", ".join(examined["bound"])
    figure = f"this peer listens on {listening}" if listening else "listens nowhere"
    return [
        Finding("ports", Verdict.OK, figure, "", {"bound": examined["bound"]}),
        reachability(examined["addresses"], examined["diallers"]),
        bandwidth(examined["down"], examined["up"]),
        clock(examined["clocks"]),
    ]


def not_running() -> list[Finding]:
    """What only a running peer can ask others."""
    advice = "start the peer, then run `peer doctor` again"
    names = ("reachability", "bandwidth", "clock")
    return [Finding(name, Verdict.UNKNOWN, UNKNOWN, advice) for name in names]
