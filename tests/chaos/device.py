"""A model on a make-believe accelerator: each probe takes a fixed time and next to no CPU.

Dozens of peers share two cores here. If their work were bound by those cores, what a killed peer
does not use the others would, and no loss could be seen. With this model a peer's work is bound by
time alone, as on a machine with a GPU of its own.

And optimizers whose steps take a fixed time likewise, for models that are trained in earnest. A
small one steps a hundred times a second, and a few peers that do nothing else leave no core to
whatever is waited for: a peer that starts, a command, a meeting.
"""

import os
import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

PROBE_S: Final = 0.25
_WIDTH: Final = 8
_BYTES: Final = 256


class Bigram(nn.Module):
    """The next byte from the one before: 4,096 weights."""

    context = 16
    probe_s = PROBE_S

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(_BYTES, _WIDTH)
        self.head = nn.Linear(_WIDTH, _BYTES, bias=False)
        self._passes = 0

    def forward(self, tokens: Tensor) -> Tensor:
        # A probe is two passes; one wait for both costs half the wake-ups.
        self._passes += 1
        if self._passes % 2 == 0:
            time.sleep(self.probe_s)
        logits: Tensor = self.head(self.embed(tokens))
        return logits


def bigram() -> nn.Module:
    """The same bits on every machine: small integers, no generator."""
    model = Bigram()
    with torch.no_grad():
        for number, weight in enumerate(model.parameters()):
            count = torch.arange(weight.numel()).reshape(weight.shape)
            weight.copy_(((count * 7 + number) % 17 - 8) / 64)
    return model


class Wide(Bigram):
    """The same with a large table beside it, of which each byte touches one short row: a probe
    costs next to nothing here, too, but what is merged, hashed and sent is all of it. It takes
    longer, as it would with so many weights.
    """

    probe_s = 4 * PROBE_S

    def __init__(self, megabytes: int) -> None:
        super().__init__()
        rows = torch.empty(megabytes * 1_000_000 // (4 * _BYTES), _BYTES)
        self.table = nn.Embedding.from_pretrained(rows, freeze=False)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = super().forward(tokens)
        return logits + self.table(tokens)


def _wide(megabytes: int) -> nn.Module:
    model = Wide(megabytes)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_((torch.arange(weight.shape[-1]) % 17 - 8) / 64)
    return model


def wide_20() -> nn.Module:
    return _wide(20)


def wide_100() -> nn.Module:
    return _wide(100)


def wide_200() -> nn.Module:
    return _wide(200)


def wide_500() -> nn.Module:
    return _wide(500)


class Table(nn.Module):
    """All weights are 0, 32 blocks of 4096 of them, and what is made of some of them is a score."""

    context = 16

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(torch.zeros(_BYTES, 2 * _BYTES), freeze=False)

    def forward(self, tokens: Tensor) -> Tensor:
        scores: Tensor = self.table(tokens)[..., :_BYTES]
        return scores


class Unhurried(torch.optim.AdamW):
    """For `[node.optimizer]`."""

    def __init__(self, params: Iterable[Tensor], lr: float, step_s: float = 0.03) -> None:
        super().__init__(params, lr=lr)
        self._step_s = step_s

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        time.sleep(self._step_s)
        super().step(closure)


class Whole(torch.optim.Optimizer):
    """Whatever the gradient is: once the file `go` is there, each step adds one whole number to all
    weights, from -3 to 3, another one on each peer and each time.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, go: str, step_s: float = 0.03) -> None:
        super().__init__(params, {"lr": lr, "count": 0})
        self._go, self._step_s = Path(go), step_s

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        time.sleep(self._step_s)
        if not self._go.exists():
            return
        for group in self.param_groups:
            group["count"] += 1
            for p in group["params"]:
                p.add_(random.Random(f"{os.getpid()} {group['count']}").randint(-3, 3))
