"""The built-in model: a small decoder over bytes, shaped exactly like Llama, so that its export is
a plain folder that transformers loads.

Pre-norm blocks of causal attention with rotary positions and a gated feed-forward network (SwiGLU),
root-mean-square norms, one embedding that is both input and output, no biases, no dropout. Tensor
names are those of `LlamaForCausalLM`.
"""

from fractions import Fraction
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from node.training.initial import fill_uniform

VOCABULARY = 256  # one token a byte
ROTARY_BASE = 10_000.0
NORM_EPSILON = 1e-5


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:  # (..., width)
        scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + NORM_EPSILON)
        return self.weight * (x.float() * scale).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:  # x: (B, T, width)
        shape = (*x.shape[:2], self.heads, -1)
        q, k, v = (
            p(x).view(shape).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(
            rotate(q, rotary), rotate(k, rotary), v, is_causal=True
        )
        out: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(x.shape))
        return out


class FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(width)
        self.self_attn = Attention(width, heads)
        self.post_attention_layernorm = RMSNorm(width)
        self.mlp = FeedForward(width, hidden)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotary)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Decoder(nn.Module):
    def __init__(self, layers: int, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, width)
        self.layers = nn.ModuleList(Block(width, heads, hidden) for _ in range(layers))
        self.norm = RMSNorm(width)

    def forward(self, ids: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, rotary)
        out: Tensor = self.norm(x)
        return out


class Gpt(nn.Module):
    def __init__(self, layers: int, width: int, heads: int, hidden: int, context: int) -> None:
        super().__init__()
        self.context = context
        self.model = Decoder(layers, width, heads, hidden)
        self.lm_head = nn.Linear(width, VOCABULARY, bias=False)
        self.lm_head.weight = self.model.embed_tokens.weight
        cos, sin = rotary_tables(context, width // heads)
        self.register_buffer("rotary_cos", cos, persistent=False)
        self.register_buffer("rotary_sin", sin, persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:  # (B, T) -> (B, T, 256) logits
        length = input_ids.shape[1]
        rotary = (self.get_buffer("rotary_cos")[:length], self.get_buffer("rotary_sin")[:length])
        logits: Tensor = self.lm_head(self.model(input_ids, rotary))
        return logits


def initialise(model: Gpt, seed: int) -> None:
    """Weights that are the same on every machine: integers from Philox, scaled exactly.

    Uniform with the deviations of GPT-2's scheme: 1/sqrt(fan in) within a block, and less for what
    is added to the residual stream, so that its size does not grow with depth.
    """
    layers = len(model.model.layers)
    for index, (name, parameter) in enumerate(model.named_parameters()):
        if parameter.dim() < 2:
            continue  # norms start at one
        variance = Fraction(1, parameter.shape[1])
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            variance /= 2 * layers
        fill_uniform(parameter.data, root(3 * variance), seed, index)


def root(square: Fraction) -> Fraction:
    """A square root to about 30 bits, from integers alone."""
    return Fraction(isqrt(square.numerator * (1 << 60) // square.denominator), 1 << 30)


def rotary_tables(context: int, head_width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each (context, head width); the two halves of a head hold one rotation's
    two coordinates.
    """
    powers = torch.arange(0, head_width, 2).float() / head_width
    angles = torch.outer(torch.arange(context).float(), 1.0 / ROTARY_BASE**powers)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:  # (B, heads, T, head width)
    cos, sin = rotary
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return x * cos.to(x.dtype) + turned * sin.to(x.dtype)
