"""Optimizers that an owner might bring, good and bad."""

from collections.abc import Callable

import torch
from torch import nn
from torch.optim import Optimizer

NOT_CALLABLE = 3


class Counting(Optimizer):
    """Counts in plain numbers: for each parameter and for the group."""

    def __init__(self, params: list[nn.Parameter], lr: float) -> None:
        super().__init__(params, {"lr": lr, "k": 0, "weight_sum": 0.0, "names": ("a", "b")})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["k"] += 1
            group["weight_sum"] += 1 / group["k"]
            for p in group["params"]:
                state = self.state[p]
                state["count"] = state.get("count", 0) + 1
                state["even"] = state["count"] % 2 == 0
                state["nothing"] = None
                if p.grad is not None:
                    p.sub_(p.grad, alpha=group["lr"] / (state["count"] + group["weight_sum"]))


class Hiding(Counting):
    """Counts where no state_dict sees it."""

    hidden = 0

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        self.hidden += 1
        for group in self.param_groups:
            group["lr"] = 0.1 / self.hidden
        super().step()


class Listing(Counting):
    """Keeps a list, as LBFGS does."""

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        super().step()
        for p in self.param_groups[0]["params"]:
            self.state[p]["history"] = [1, 2]


class Growing(Counting):
    """Keeps a tensor whose shape changes."""

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        super().step()
        for p in self.param_groups[0]["params"]:
            self.state[p]["seen"] = torch.zeros(self.state[p]["count"])


class Aside(Counting):
    """Keeps state for no parameter."""

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        super().step()
        self.state["all"]["count"] = 1  # type: ignore[index]


def not_one(params: list[nn.Parameter]) -> object:
    return params


def only_the_first(params: list[nn.Parameter]) -> Optimizer:
    return torch.optim.SGD(params[:1], lr=0.1)


def grouped(params: list[nn.Parameter], lr: float) -> Optimizer:
    """What a factory is for: vectors without decay."""
    wide = [p for p in params if p.dim() > 1]
    narrow = [p for p in params if p.dim() <= 1]
    groups = [{"params": wide}, {"params": narrow, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, weight_decay=0.1)
