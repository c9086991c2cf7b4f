"""What follows self-attention: feed-forward networks, cross-attention, and guidance inside a layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .spec import BlockSpec


class FeedForward(nn.Module):
    """GELU, or SwiGLU with one projection or two."""

    def __init__(self, spec: BlockSpec, width: int) -> None:
        super().__init__()
        self.kind, inner = spec.mlp, 2 * width
        if self.kind == "swiglu":
            self.gate = nn.Linear(width, inner, bias=spec.bias)
        self.up = nn.Linear(width, 2 * inner if self.kind == "swiglu_fused" else inner, bias=spec.bias)
        self.down = nn.Linear(inner, width, bias=spec.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "gelu":
            return self.down(F.gelu(self.up(x), approximate="tanh"))
        if self.kind == "swiglu":
            return self.down(F.silu(self.gate(x)) * self.up(x))
        gate, value = self.up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * value)


class CrossAttention(nn.Module):
    """Every token attends to a context [R, T, C], with a mask [R, 1, 1, T] or without."""

    def __init__(self, spec: BlockSpec, width: int, heads: int) -> None:
        super().__init__()
        self.kind, self.heads = spec.cross, heads
        self.q, self.kv, self.out = (nn.Linear(width, n * width) for n in (1, 2, 1))

    def forward(self, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        rows, length, width = x.shape
        q = self.q(x).view(rows, length, self.heads, -1).transpose(1, 2)
        k, v = (
            self.kv(context)
            .view(rows, -1, 2, self.heads, width // self.heads)
            .permute(2, 0, 3, 1, 4)
            .unbind(0)
        )
        if self.kind == "matmul":
            weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
            mixed = weights @ v
        else:
            chosen = mask if self.kind == "masked" else None
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=chosen)
        return self.out(mixed.transpose(1, 2).reshape(rows, length, width))


def guide(x: Tensor, factor: float = 1.5) -> Tensor:
    """Mix the conditional rows with the unconditional ones; [conditional B, unconditional B]."""
    conditional, unconditional = x.chunk(2, dim=0)
    return torch.cat((unconditional + factor * (conditional - unconditional), unconditional), dim=0)
