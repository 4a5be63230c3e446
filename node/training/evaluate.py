"""How good is the model on data that no peer trains on?"""

from collections.abc import Sequence

import torch
from torch import nn

from node.training.losses import Batch, batch_loss, label_logits, logits_of


def held_out_loss(model: nn.Module, batches: Sequence[Batch]) -> float:
    """Mean nats a token (or a text, for labels) over all of `batches`, larger batches counting
    more.
    """
    device = next(model.parameters()).device
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in batches:
            size = batch.targets.numel()
            total += float(batch_loss(model, batch.to(device))) * size
            count += size
    return total / count


def accuracy(model: nn.Module, batches: Sequence[Batch]) -> float:
    """Share of labels that come out on top; for classification only."""
    device = next(model.parameters()).device
    right, count = 0, 0
    with torch.no_grad():
        for batch in batches:
            assert batch.lengths is not None, "a language model's windows have no label"
            here = batch.to(device)
            guesses = label_logits(logits_of(model, here), here).argmax(-1)
            right += int((guesses == here.targets).sum())
            count += len(guesses)
    return right / count
