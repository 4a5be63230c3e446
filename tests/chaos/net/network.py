"""Network namespaces on this machine, joined by a switch whose lines can be slow, lossy or cut.

    with Network(8, delay_ms=5) as network:
        process = subprocess.Popen([*network.inside(0), "python", ...])
        network.partition([0, 1, 2])
        ...
        network.heal()

Nothing but the switch (`switch.c`, built at first use) joins the namespaces, so every byte between
two programs passes it and is counted. Leaving the block, by whatever way, removes everything; what
a killed process left behind goes when the next network is made.
"""

import atexit
import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Final, Self

PORTS_MAX: Final = 128
QUEUE_MS: Final = 200.0
_PREFIX: Final = "chaos"
_SOURCE: Final = Path(__file__).with_name("switch.c")
_NAMESPACES: Final = Path("/var/run/netns")
_STOP_S: Final = 5.0


class NetworkUnavailable(Exception):
    """No namespaces can be made here; the text says why in one sentence."""


@dataclass(frozen=True, slots=True)
class Counters:
    """Of one port, in whole IP packets."""

    sent_bytes: int
    sent_packets: int
    got_bytes: int
    got_packets: int
    full: int  # packets dropped because a queue was full
    lost: int  # by chance
    cut: int


class Network:
    def __init__(
        self,
        nodes: int,
        *,
        rate_mbit: float = 0,  # of each node, up and down; 0: no limit
        delay_ms: float = 0,  # one way
        jitter_ms: float = 0,
        loss: float = 0,
        mtu: int = 9000,  # large packets cost the switch a sixth of the work
        seed: int = 1,
    ) -> None:
        assert 1 <= nodes <= PORTS_MAX
        self.nodes = nodes
        self._rate_mbit, self._mtu, self._seed = rate_mbit, mtu, seed
        self._line = delay_ms, jitter_ms, loss
        self._names = [f"{_PREFIX}-{os.getpid()}-{id(self) & 0xFFFF:x}-{i}" for i in range(nodes)]
        self._switch: subprocess.Popen[str] | None = None
        self._old_handler: signal.Handlers | int | object = None
        self._cuts: set[tuple[int, int]] = set()

    # Making and removing

    def __enter__(self) -> Self:
        """Raises NetworkUnavailable."""
        reason = why_not()
        if reason is not None:
            raise NetworkUnavailable(reason)
        _sweep()
        # A plain SIGTERM would end us without cleaning up.
        self._old_handler = signal.signal(signal.SIGTERM, _leave)
        atexit.register(self.close)
        try:
            self._open()
        except BaseException as error:
            self.close()
            if isinstance(error, subprocess.CalledProcessError | RuntimeError):
                said = getattr(error, "stderr", "") or str(error)
                why = f"no network namespace can be made: {said.strip()}"
                raise NetworkUnavailable(why) from error
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self) -> None:
        for name in self._names:
            _ip("netns", "add", name)
        self._switch = subprocess.Popen(
            [str(_build()), *self._names],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for us; the switch ends when its stdin does
        )
        self._answer("start")
        for number, name in enumerate(self._names):
            self._bring_up(number, name)
        self._tell(f"seed {self._seed}")
        for node in range(self.nodes):
            self.set_rate(node, self._rate_mbit, self._rate_mbit)
        self.set_lines(range(self.nodes), *self._line)

    def _bring_up(self, number: int, name: str) -> None:
        no_v6 = "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6 2>/dev/null || true"
        _run("ip", "netns", "exec", name, "sh", "-c", no_v6)
        _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", name, "link", "set", "net0", "mtu", str(self._mtu), "up")
        _ip("-n", name, "addr", "add", f"{self.address(number)}/16", "dev", "net0")

    def close(self) -> None:
        """A second call does nothing."""
        switch, self._switch = self._switch, None
        if switch is not None:
            _end(switch)
        for name in self._names:
            if (_NAMESPACES / name).exists():
                _remove(name)
        atexit.unregister(self.close)
        if self._old_handler is not None:
            signal.signal(signal.SIGTERM, self._old_handler)  # type: ignore[arg-type]
            self._old_handler = None

    # Running programs

    def inside(self, node: int) -> tuple[str, ...]:
        """Put this before a command. The program replaces `ip`, so signals to it arrive."""
        return ("ip", "netns", "exec", self._names[node])

    def address(self, node: int) -> str:
        return f"10.77.{node >> 7}.{(node & 0x7F) + 1}"

    @property
    def switch_pid(self) -> int:
        assert self._switch is not None
        return self._switch.pid

    # Changing it while it runs

    def set_rate(
        self, node: int, up_mbit: float, down_mbit: float, queue_ms: float = QUEUE_MS
    ) -> None:
        """0: no limit."""
        self._tell(f"rate {node} {up_mbit} {down_mbit} {queue_ms}")

    def set_lines(
        self, nodes: Iterable[int], delay_ms: float, jitter_ms: float = 0, loss: float = 0
    ) -> None:
        """All lines of these nodes, both ways."""
        chosen = set(nodes)
        for a in chosen:
            for b in range(self.nodes):
                if a != b:
                    self._tell(f"line {a} {b} {delay_ms} {jitter_ms} {loss}")
                    self._tell(f"line {b} {a} {delay_ms} {jitter_ms} {loss}")

    def restore(self, nodes: Iterable[int]) -> None:
        """Lines and rates as they were at the start."""
        chosen = list(nodes)
        self.set_lines(chosen, *self._line)
        for node in chosen:
            self.set_rate(node, self._rate_mbit, self._rate_mbit)

    def partition(self, group: Iterable[int], others: Iterable[int] | None = None) -> None:
        """Nothing passes between `group` and the others (left out: all others), either way."""
        inner = set(group)
        outer = set(range(self.nodes)) - inner if others is None else set(others)
        for a in inner:
            for b in outer:
                self._cut(a, b, 1)
                self._cut(b, a, 1)

    def heal(self, group: Iterable[int] | None = None) -> None:
        """The cuts around these nodes are mended; left out: all."""
        chosen = set(range(self.nodes) if group is None else group)
        for a, b in sorted(self._cuts):
            if a in chosen or b in chosen:
                self._cut(a, b, 0)

    @property
    def delay_ms(self) -> float:
        """One way, when nothing is wrong."""
        return self._line[0]

    def _cut(self, a: int, b: int, flag: int) -> None:
        self._tell(f"cut {a} {b} {flag}")
        (self._cuts.add if flag else self._cuts.discard)((a, b))

    # Reading

    def counters(self) -> list[Counters]:
        lines = self._tell("count")
        return [Counters(*map(int, line.split())) for line in lines]

    # The switch

    def _tell(self, command: str) -> list[str]:
        assert self._switch is not None, "the network is not open"
        assert self._switch.stdin is not None
        try:
            self._switch.stdin.write(command + "\n")
            self._switch.stdin.flush()
        except BrokenPipeError as error:
            raise RuntimeError("the switch has ended") from error
        return self._answer(command)

    def _answer(self, command: str) -> list[str]:
        assert self._switch is not None
        assert self._switch.stdout is not None
        lines: list[str] = []
        for line in self._switch.stdout:
            if line == "ok\n":
                return lines
            if line.startswith("error"):
                raise ValueError(f"{command}: {line.strip()}")
            lines.append(line)
        raise RuntimeError(f"the switch ended at {command!r}; does /dev/net/tun work?")


def why_not() -> str | None:
    """Why no network can be made here, in one sentence; None if nothing is known against it."""
    if os.geteuid():
        return "network namespaces need root"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "network namespaces need /dev/net/tun, which is not there"
    missing = [tool for tool in ("ip", "gcc") if shutil.which(tool) is None]
    if missing:
        return f"the switch between network namespaces needs {' and '.join(missing)}"
    return None


def _build() -> Path:
    """The switch, compiled once for each version of its source."""
    source = _SOURCE.read_bytes()
    name = f"peer-chaos-switch-{os.getuid()}-{hashlib.blake2b(source, digest_size=8).hexdigest()}"
    program = Path(tempfile.gettempdir()) / name
    if not program.exists():
        fresh = program.with_suffix(f".{os.getpid()}")
        _run("gcc", "-O2", "-Wall", "-o", str(fresh), str(_SOURCE), "-lm")
        fresh.replace(program)
    return program


def _sweep() -> None:
    """Remove the namespaces of processes that did not get to it themselves."""
    if not _NAMESPACES.is_dir():
        return
    for path in _NAMESPACES.glob(f"{_PREFIX}-*-*-*"):
        owner = path.name.split("-")[1]
        if owner.isdigit() and not Path("/proc", owner).exists():
            _remove(path.name)


def _remove(name: str) -> None:
    """A namespace, and whatever still runs in it."""
    found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
    for pid in found.stdout.split():
        try:
            os.kill(int(pid), signal.SIGKILL)
        except ProcessLookupError:
            continue
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def _end(switch: subprocess.Popen[str]) -> None:
    assert switch.stdin is not None
    assert switch.stdout is not None
    with contextlib.suppress(BrokenPipeError):  # it may have ended already
        switch.stdin.close()
    try:
        switch.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        switch.kill()
        switch.wait()
    switch.stdout.close()


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*command: str) -> None:
    """Raises CalledProcessError with what it said."""
    subprocess.run(command, check=True, capture_output=True, text=True)


def measure_cpu_s(pid: int) -> float:
    """CPU seconds that a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
