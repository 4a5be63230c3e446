"""Inner steps on a make-believe accelerator: each takes its time, and next to no CPU.

A model of a few thousand weights steps a hundred times a second, and three peers that do nothing
else leave no core to whatever the test waits for: a peer that starts, a command, a meeting.
"""

import time
from collections.abc import Callable
from typing import Final

import torch

STEP_S: Final = 0.03


class Unhurried(torch.optim.AdamW):
    """For `[node.optimizer]`."""

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        time.sleep(STEP_S)
        super().step(closure)
