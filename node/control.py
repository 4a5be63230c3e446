"""How the command line talks to a running peer: one JSON line each way, over a Unix socket in its
home.
"""

import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

from node.errors import UserError

_LINE_BYTES_MAX: Final = 1 << 20
_PATH_BYTES_MAX: Final = 100  # the kernel's limit on a socket's path is 107
_WAIT_S: Final = 10.0

Answer = Callable[[dict[str, Any]], dict[str, Any] | Awaitable[dict[str, Any]]]


class NotRunning(UserError):
    """No peer answers in this home."""

    exit_code = 5


def socket_path(home: Path) -> Path:
    """In the home; for a path that is too long, beside other temporary files."""
    path = home.resolve() / "control.sock"
    if len(os.fsencode(path)) <= _PATH_BYTES_MAX:
        return path
    name = blake2b(os.fsencode(path), digest_size=12).hexdigest()
    return Path("/tmp") / f"peer-{os.getuid()}-{name}.sock"


class ControlServer:
    """Answers requests on the driver's own loop, so answers are consistent."""

    def __init__(self, home: Path, answer: Answer) -> None:
        self._path, self._answer = socket_path(home), answer
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._path.unlink(missing_ok=True)  # the store's lock says that no one else is alive here
        self._server = await asyncio.start_unix_server(
            self._serve, str(self._path), limit=_LINE_BYTES_MAX
        )
        self._path.chmod(0o600)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await asyncio.wait_for(reader.readline(), _WAIT_S)
            try:
                answer = self._answer(json.loads(line))
                reply = answer if isinstance(answer, dict) else await answer
            except UserError as error:
                reply = {"error": error.message, "hint": error.hint}
            except (ValueError, KeyError, TypeError) as error:
                reply = {"error": f"not a request: {error}"}
            writer.write(json.dumps(reply).encode() + b"\n")
            await writer.drain()
        except (TimeoutError, ConnectionError, ValueError):
            pass  # the other side went away, or never was one of ours
        finally:
            writer.close()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)


def ask(home: Path, request: dict[str, Any], wait_s: float = _WAIT_S) -> dict[str, Any]:
    """A running peer's answer. Raises NotRunning."""
    path = socket_path(home)
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(wait_s)
            connection.connect(str(path))
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as lines:
                line = lines.readline()
            if not line:
                raise ConnectionError("no answer")
    except (OSError, ConnectionError) as error:
        raise NotRunning(
            f"no peer is running in {home}",
            "start one with `peer start` or `peer join`, or pass --home",
        ) from error
    answer = json.loads(line)
    assert isinstance(answer, dict)
    return answer
