"""The other processes of a peer, started and watched by the first.

Why not by torchrun: the process that a person started stays the peer, so Ctrl-C, exit codes,
`peer leave` and whoever supervises it find what they would find with one process. They meet over a
file that only this user can read, and not over a port of torchrun's store, which listens on every
interface and asks nobody who they are.

A rank ends when its standard input does, and the kernel sees to that however the first process
ends, kill -9 included.
"""

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from node.box.errors import BoxError

_END_S: Final = 10.0


class Launcher:
    def __init__(self, processes: int, lost: Callable[[BaseException], None]) -> None:
        """`lost` is called, on a thread, when one of them ends before `close`."""
        self._lost = lost
        self._first_loss: BoxError | None = None
        self._has_loss = threading.Event()
        self._lock = threading.Lock()
        self._is_closing = False
        self._folder = tempfile.TemporaryDirectory(prefix="peer-box-")
        self.file = Path(self._folder.name) / "meeting"
        self._children = [self._start(rank, processes) for rank in range(1, processes)]
        for rank, child in enumerate(self._children, 1):
            arguments = (rank, child)
            threading.Thread(target=self._watch, args=arguments, name="box", daemon=True).start()

    def _start(self, rank: int, processes: int) -> subprocess.Popen[bytes]:
        arguments = (str(self.file), str(rank), str(processes))
        return subprocess.Popen(
            # -P, and our own path: they import what this process would.
            [sys.executable, "-P", "-m", "node.box.rank", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the first alone, which tells the others
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    def _watch(self, rank: int, child: "subprocess.Popen[bytes]") -> None:
        code = child.wait()
        with self._lock:
            if self._is_closing or self._first_loss is not None:
                return
            self._first_loss = BoxError.ended(rank, child.pid, code)
        self._lost(self._first_loss)
        self._has_loss.set()

    def loss(self, wait_s: float) -> BoxError | None:
        """Who ended first, if anybody did or does within `wait_s`."""
        return self._first_loss if self._has_loss.wait(wait_s) else None

    def close(self) -> None:
        with self._lock:
            self._is_closing = True
        for child in self._children:
            assert child.stdin is not None
            child.stdin.close()
        for child in self._children:
            try:
                child.wait(_END_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self._folder.cleanup()
