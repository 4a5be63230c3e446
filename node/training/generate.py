"""Text from a trained model, piece by piece."""

from collections.abc import Iterator

import torch
from torch import Tensor

from node.training.losses import Batch, logits_of
from node.training.models import Model

_UNFINISHED = "�"  # what a decoder shows for bytes that are not a character yet


def generate(
    model: Model,
    prompt: str,
    *,
    tokens: int = 200,
    temperature: float = 0.8,  # 0: always the likeliest token
    top_k: int = 40,  # 0: from all tokens
    seed: int | None = None,  # None: different every time
) -> Iterator[str]:
    """Yields text as it comes; stops at the end of a text. The prompt is not repeated."""
    draw = torch.Generator()
    if seed is None:
        draw.seed()
    else:
        draw.manual_seed(seed)
    tokenizer, device = model.tokenizer, next(model.module.parameters()).device
    ids = list(tokenizer.encode([prompt])[0]) if prompt else []
    start = len(ids)
    shown = ""
    for _ in range(tokens):
        window = ids[-model.context :] or [tokenizer.separator or 0]
        with torch.no_grad():
            inputs = torch.tensor([window], device=device)
            logits = logits_of(model.module, Batch(inputs, inputs))[0, -1]
        token = sample(logits.float().cpu(), temperature, top_k, draw)
        if token == tokenizer.separator:
            break
        ids.append(token)
        text = tokenizer.decode(ids[start:])
        if not text.endswith(_UNFINISHED):
            yield text[len(shown) :]
            shown = text
    rest = tokenizer.decode(ids[start:])[len(shown) :]
    if rest:
        yield rest


def sample(logits: Tensor, temperature: float, top_k: int, draw: torch.Generator) -> int:
    """One token id from (vocabulary,) logits."""
    if temperature <= 0:
        return int(logits.argmax())
    if 0 < top_k < len(logits):
        least = torch.topk(logits, top_k).values[-1]
        logits = logits.masked_fill(logits < least, -torch.inf)
    chances = torch.softmax(logits / temperature, dim=-1)
    return int(torch.multinomial(chances, 1, generator=draw))
