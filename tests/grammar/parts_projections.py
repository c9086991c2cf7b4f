"""Projections to queries, keys and values, and norms of queries and keys."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .spec import BlockSpec

QKV = tuple[Tensor, Tensor, Tensor]


class Projections(nn.Module):
    """x [R, L, C] to q, k, v in the block's layout; grouped queries have fewer key heads."""

    def __init__(self, spec: BlockSpec, width: int, heads: int, key_heads: int) -> None:
        super().__init__()
        self.kind, self.tokens_first = spec.qkv, spec.layout == "tokens_first"
        self.heads, self.key_heads, self.head_width = heads, key_heads, width // heads
        inner = key_heads * self.head_width
        self.sizes = (width, inner, inner)
        if self.kind == "separate":
            self.q, self.k, self.v = (nn.Linear(width, size, bias=spec.bias) for size in self.sizes)
        else:
            self.qkv = nn.Linear(width, sum(self.sizes), bias=spec.bias)

    def forward(self, x: Tensor) -> QKV:
        rows, length, _ = x.shape
        if self.kind == "fused_view":
            parts = self.qkv(x).view(rows, length, 3, self.heads, self.head_width)
            if self.tokens_first:
                return parts.unbind(2)
            return parts.permute(2, 0, 3, 1, 4).unbind(0)
        if self.kind == "fused_split":
            parts = self.qkv(x).split(self.sizes, dim=-1)
        else:
            parts = self.q(x), self.k(x), self.v(x)
        counts = (self.heads, self.key_heads, self.key_heads)
        split = (part.view(rows, length, n, -1) for part, n in zip(parts, counts, strict=True))
        return tuple(part if self.tokens_first else part.transpose(1, 2) for part in split)

    def at(self, x: Tensor) -> QKV:
        """The same of any number of tokens, always [R, H, N, E], from slices of the weights."""
        if self.kind == "separate":
            layers = [(layer.weight, layer.bias) for layer in (self.q, self.k, self.v)]
        else:
            biases = [None] * 3 if self.qkv.bias is None else self.qkv.bias.split(self.sizes)
            layers = list(zip(self.qkv.weight.split(self.sizes), biases, strict=True))
        parts = (F.linear(x, weight, bias) for weight, bias in layers)
        return tuple(part.unflatten(-1, (-1, self.head_width)).transpose(1, 2) for part in parts)


class QKNorm(nn.Module):
    """Norms of every head's queries and keys; "l2" has a learned factor per head."""

    def __init__(self, spec: BlockSpec, heads: int, head_width: int) -> None:
        super().__init__()
        self.kind, self.tokens_first = spec.qk_norm, spec.layout == "tokens_first"
        if self.kind == "l2":
            shape = (1, 1, heads, 1) if self.tokens_first else (1, heads, 1, 1)
            self.factor = nn.Parameter(1 + 0.3 * torch.randn(shape))
        elif self.kind == "rms":
            self.q, self.k = nn.RMSNorm(head_width, eps=1e-6), nn.RMSNorm(head_width, eps=1e-6)
        elif self.kind == "layer":
            self.q, self.k = nn.LayerNorm(head_width), nn.LayerNorm(head_width)

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        if self.kind == "none":
            return q, k
        if self.kind == "l2":
            factor = self.factor.clamp_max(4.6).exp()
            return F.normalize(q, dim=-1) * factor, F.normalize(k, dim=-1)
        return self.q(q), self.k(k)

    def at(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """The same of [R, H, N, E]."""
        if self.kind != "l2":
            return self(q, k)
        length_q, length_k = (x.square().sum(-1, keepdim=True).sqrt() for x in (q, k))
        return q / length_q * self.factor.clamp_max(4.6).exp().reshape(1, -1, 1, 1), k / length_k
