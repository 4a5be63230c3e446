"""What takes how long, of one peer among several that share a process."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Collects seconds, the device's work included. One thread on a CPU is timed by the core that
    it keeps busy: the clock on the wall would count what else this machine does.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        alone = device.type == "cpu" and torch.get_num_threads() == 1
        self._now = time.process_time if alone else time.perf_counter
        self.seconds: list[float] = []

    @contextmanager
    def timed(self) -> Iterator[None]:
        started = self._now()
        yield
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.seconds.append(self._now() - started)
