"""Small models with every kind of parameter, and micro-batches for them."""

from collections.abc import Iterator, Mapping
from itertools import count

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from node.training.inner import InnerTrainer
from node.training.inner_config import InnerConfig
from node.training.losses import Batch, batch_loss
from node.training.model_config import GptConfig
from node.training.models import build_model

WIDTH = 8


def gpt() -> nn.Module:
    return build_model(GptConfig(kind="gpt", layers=2, width=16, heads=2, context=8)).module


class Odd(nn.Module):
    """Tied, frozen, empty, unused, 0-D, 1-D and 3-D parameters, a sparse embedding, dropout, and
    buffers that a forward pass moves.
    """

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.embed = nn.Embedding(256, WIDTH, sparse=True)
        self.mix = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)
        self.norm = nn.BatchNorm1d(WIDTH)
        self.dropout = nn.Dropout(dropout)
        self.frozen = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.head = nn.Linear(WIDTH, 256, bias=False)
        self.gain = nn.Parameter(torch.tensor(1.0))
        self.empty = nn.Parameter(torch.zeros(0, 4))
        self.unused = nn.Parameter(torch.ones(3))
        self.again = self.blocks[1]  # tied
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("last", None)

    def forward(self, ids: Tensor) -> Tensor:  # (B, T) -> (B, T, 256)
        self.get_buffer("calls").add_(1)
        x = self.norm(self.mix(self.embed(ids).transpose(1, 2))).transpose(1, 2)
        self.last = x.detach()
        x = self.frozen(self.dropout(x)) * self.gain + self.empty.sum()
        for block in [*self.blocks, self.again]:
            x = x + torch.tanh(block(x))
        logits: Tensor = self.head(x)
        return logits


def odd(dropout: float = 0.0) -> nn.Module:
    return Odd(dropout).eval()


def batch(slot: int, rows: int = 2) -> Batch:
    """Every slot has other tokens."""
    tokens = torch.randint(256, (rows, 9), generator=torch.Generator().manual_seed(slot))
    return Batch(tokens[:, :-1], tokens[:, 1:])


def joined(slots: range) -> Batch:
    """Several micro-batches as one."""
    parts = [batch(slot) for slot in slots]
    return Batch(torch.cat([p.inputs for p in parts]), torch.cat([p.targets for p in parts]))


def config(**fields: object) -> InnerConfig:
    return InnerConfig.model_validate(fields)


def trainer(model: nn.Module, **fields: object) -> InnerTrainer:
    return InnerTrainer(config(**fields), model, batch_loss, batch)


def slots(first: int = 0) -> Iterator[int]:
    return count(first)


def never() -> bool:
    return False


class After:
    """Expires when it is asked for the (n+1)-th time."""

    def __init__(self, asked: int) -> None:
        self.left = asked

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def plain_steps(
    model: nn.Module, optimizers: list[torch.optim.Optimizer], steps: range, clip: float = 1e30
) -> None:
    """Ordinary training with torch alone."""
    for slot in steps:
        model.zero_grad()
        here = batch(slot)
        logits = model(here.inputs)
        F.cross_entropy(logits.flatten(0, 1), here.targets.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        for optimizer in optimizers:
            optimizer.step()
