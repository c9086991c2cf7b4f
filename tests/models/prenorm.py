"""A next-scale transformer with another block layout than Infinity's: affine pre-norm, no AdaLN, no text.

Written independently of the package's own models, so that what the analysis finds in it is found by
structure.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class Cache:
    """Preallocated keys and values per layer, each [B, H, Lmax, E]."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)


class Attention(nn.Module):
    """Self-attention over the cache; one fused qkv projection or three."""

    def __init__(self, width: int, heads: int, fused: bool, rope: bool) -> None:
        super().__init__()
        self.heads, self.fused, self.rope = heads, fused, rope
        if fused:
            self.qkv = nn.Linear(width, 3 * width)
        else:
            self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, table: Tensor | None, keys: Tensor, values: Tensor, end: int) -> Tensor:
        batch, length, width = x.shape
        if self.fused:
            q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = (
                layer(x).view(batch, length, self.heads, -1).transpose(1, 2)
                for layer in (self.q, self.k, self.v)
            )
        if self.rope:
            q, k = rotate(q, table), rotate(k, table)
        keys[:, :, end - length : end] = k
        values[:, :, end - length : end] = v
        mixed = F.scaled_dot_product_attention(q, keys[:, :, :end], values[:, :, :end])
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate-half RoPE; `table` is [2, L, E] (cosines, sines)."""
    first, second = x.chunk(2, dim=-1)
    return x * table[0] + torch.cat((-second, first), dim=-1) * table[1]


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); a gated (SwiGLU-like) MLP."""

    def __init__(self, width: int, heads: int, fused: bool, rope: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, fused, rope)
        self.gate, self.up = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor, table: Tensor | None, keys: Tensor, values: Tensor, end: int) -> Tensor:
        x = x + self.attention(self.norm1(x), table, keys, values, end)
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class PreNorm(nn.Module):
    """One scale step: hidden [B, L, C] -> logits [B, L, V], with a RoPE or an absolute position table."""

    def __init__(
        self,
        depth: int = 3,
        width: int = 32,
        heads: int = 4,
        tokens: int = 256,
        fused: bool = True,
        rope: bool = True,
    ) -> None:
        super().__init__()
        self.depth, self.width, self.heads = depth, width, heads
        self.blocks = nn.ModuleList(Block(width, heads, fused, rope) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)
        self.rope = rope
        table = torch.randn(2, tokens, width // heads) if rope else torch.randn(1, tokens, width)
        self.register_buffer("table", table, persistent=False)

    def forward(self, hidden: Tensor, cache: Cache, end: int) -> Tensor:
        start = end - hidden.shape[1]
        table = self.table[:, start:end]
        x = hidden if self.rope else hidden + table
        for block, keys, values in zip(self.blocks, cache.keys, cache.values, strict=True):
            x = block(x, table if self.rope else None, keys, values, end)
        return self.head(self.norm(x))

    def new_cache(self, batch: int, tokens: int = 256) -> Cache:
        shape = (batch, self.heads, tokens + 1, self.width // self.heads)
        return Cache([torch.zeros(shape) for _ in self.blocks], [torch.zeros(shape) for _ in self.blocks])
