"""A batch, and what a model loses on it. Losses are float32 means, whatever the weights' type."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Batch:
    """What one forward pass looks at, and the answers.

    Windows for language models: `targets` (B, T), the next token at every place. Texts with a
    label: `targets` (B,), and `lengths` says where each padded row ends.
    """

    inputs: Tensor  # (B, T) int64
    targets: Tensor  # (B, T) or (B,) int64
    lengths: Tensor | None = None  # (B,) int64
    label_words: Tensor | None = None  # (labels,) int64: the token that stands for each label

    def to(self, device: torch.device) -> "Batch":
        def move(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.to(device)

        return Batch(
            self.inputs.to(device), self.targets.to(device), move(self.lengths),
            move(self.label_words),
        )  # fmt: skip


def batch_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean nats a token (language model) or a text (label)."""
    logits = logits_of(model, batch)
    if batch.lengths is None:
        return F.cross_entropy(logits.flatten(0, 1).float(), batch.targets.flatten())
    return F.cross_entropy(label_logits(logits, batch), batch.targets)


def label_logits(logits: Tensor, batch: Batch) -> Tensor:  # (B, labels) float32
    """A classifier's own head gives them; a language model is asked which label word comes next."""
    if batch.label_words is None:
        return logits.float()
    assert batch.lengths is not None
    last = logits[torch.arange(len(logits), device=logits.device), batch.lengths - 1]
    return last[:, batch.label_words].float()


def logits_of(model: nn.Module, batch: Batch) -> Tensor:
    """Call a model the way its kind wants it: ours takes ids and returns logits, transformers'
    return an object.
    """
    options: dict[str, Any] = {}
    if hasattr(model, "config"):  # transformers
        if getattr(model.config, "use_cache", False):
            options["use_cache"] = False
        if batch.lengths is not None:
            places = torch.arange(batch.inputs.shape[1], device=batch.inputs.device)
            options["attention_mask"] = (places < batch.lengths[:, None]).long()
    out = model(batch.inputs, **options)
    logits: Tensor = out if isinstance(out, Tensor) else out.logits
    return logits
