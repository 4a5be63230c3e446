"""What commands share: exit codes, errors, tables, options. Data goes to stdout, everything else to
stderr.
"""

import json
import sys
import time
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer


class ExitCode(Enum):
    """Stable: scripts depend on them."""

    OK = 0, "done"
    FAILED = 1, "something outside must change first: a port, a disk, a file"
    USAGE = 2, "wrong options, or a run file that is not right"
    DIFFERENT = 3, "the model, the data or a digest is not the one of the run"
    NOT_ADMITTED = 4, "nobody let us in"
    NOT_RUNNING = 5, "no peer is running here"
    UNHEALTHY = 6, "`peer doctor` found a problem"
    INTERRUPTED = 130, "stopped at once by Ctrl-C, twice"

    def __new__(cls, code: int, meaning: str) -> "ExitCode":
        member = object.__new__(cls)
        member._value_ = code
        member.meaning = meaning
        return member

    meaning: str


HomeOption = Annotated[
    Path | None,
    typer.Option(
        "--home", envvar="PEER_HOME", help="The peer's folder: identity, ledger, weights."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
ListenOption = Annotated[
    list[str] | None,
    typer.Option("--listen", help="tcp://HOST:PORT to listen on; `none`: dial others only."),
]
AdvertiseOption = Annotated[
    list[str] | None, typer.Option("--advertise", help="tcp://HOST:PORT that others should dial.")
]
MapPortOption = Annotated[
    bool, typer.Option("--map-port", help="Ask the router to forward a port (NAT-PMP, UPnP).")
]
DeviceOption = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")]
ThreadsOption = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads to use.")]
ProcessesOption = Annotated[
    int | None,
    typer.Option("--processes", min=1, max=64, help="Of this peer: one for each GPU to use."),
]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="Where the model is on this machine.")
]
DataOption = Annotated[
    list[str] | None, typer.Option("--data", help="Where the data is on this machine.")
]


def complain(error: BaseException) -> int | None:
    """Print what a person can mend, and say with which code to end. None: it is a bug of ours."""
    from node.errors import UserError

    if not isinstance(error, UserError):
        return None
    print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)
    return error.exit_code


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Teller:
    """Progress on stderr: each new line once, and the same one again only after a while."""

    def __init__(self, every_s: float = 2.0) -> None:
        self._every_s = every_s
        self._last = ""
        self._at = 0.0

    def __call__(self, text: str) -> None:
        now = time.monotonic()
        kind = text.split(" ", 1)[0]
        if kind == self._last and now - self._at < self._every_s:
            return
        self._last, self._at = kind, now
        say(text)


def print_json(value: Any) -> None:  # noqa: ANN401 - whatever there is to say
    print(json.dumps(value, indent=2, sort_keys=True))


def known(value: float | int | None, form: str = "{}") -> str:
    """Only what was measured is shown."""
    return "unknown" if value is None else form.format(value)


def size(count: float | None) -> str:
    if count is None:
        return "unknown"
    for unit in ("B", "KB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def drives(facts: Mapping[str, Any]) -> str:
    """A peer's device, and how many of them."""
    count = facts["processes"]
    return f"{facts['device']}, {known(count)} {'process' if count == 1 else 'processes'}"


def find_home(home: Path | None) -> Path:
    """The folder given, or the only one there is. Raises UserError."""
    from node.errors import ConfigError
    from node.homes import default_home

    if home is not None:
        return home
    base = default_home("x").parent
    homes = sorted(path for path in base.glob("*") if (path / "identity").exists())
    if len(homes) == 1:
        return homes[0]
    listed = ", ".join(str(path) for path in homes) or f"none in {base}"
    raise ConfigError(f"which peer? there are: {listed}", "pass --home DIR")
