"""Attention as models write it: many spellings of softmax(scale q k') v, and some that look alike."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from ..models.stand_ins import flash_attn_func, memory_efficient_attention
from .parts_positions import LONGEST
from .spec import ATTENTION_MIXERS, BlockSpec


class Attend(nn.Module):
    """Queries [R, L, H, E] or [R, H, L, E] and keys of all tokens so far to [R, L, C]."""

    def __init__(self, spec: BlockSpec, heads: int, key_heads: int, head_width: int) -> None:
        super().__init__()
        self.kind, self.gqa, self.groups = spec.attention, spec.gqa, heads // key_heads
        self.tokens_first = spec.layout == "tokens_first"
        self.given = 0.4 if spec.softmax_scale == "given" else None
        self.scale = self.given or 1 / math.sqrt(head_width)
        if self.kind in ("sdpa_bias", "flex_table"):
            self.bias = nn.Parameter(torch.randn(1, heads, LONGEST, LONGEST))
        if self.kind == "flex_distance":
            self.slopes = nn.Parameter(0.1 * torch.randn(heads))
        if self.kind == "flex_temperature":
            self.factors = nn.Parameter(torch.rand(heads, LONGEST) + 0.5)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, start: int, end: int) -> Tensor:
        if self.gqa in ("repeat", "expand"):
            k, v = self._spread(k), self._spread(v)
        if self.kind in ("flash", "xformers", "einsum"):
            return self._tokens_first(q, k, v).flatten(2)
        if self.tokens_first:
            q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        mixed = self._heads_first(q, k, v, start, end)
        rows, _, length, _ = q.shape
        return mixed.transpose(1, 2).reshape(rows, length, -1)

    def _spread(self, x: Tensor) -> Tensor:
        """Every key head once per query head of its group."""
        at = 2 if self.tokens_first else 1
        if self.gqa == "repeat":
            return x.repeat_interleave(self.groups, dim=at)
        return x.unsqueeze(at + 1).expand(*[-1] * (at + 1), self.groups, *[-1] * (3 - at)).flatten(at, at + 1)

    def _tokens_first(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.kind == "einsum" and not self.tokens_first:
            weights = (torch.einsum("bhqe,bhke->bhqk", q, k) * self.scale).softmax(dim=-1)
            return torch.einsum("bhqk,bhke->bqhe", weights, v)
        if not self.tokens_first:
            q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if self.kind == "einsum":
            weights = torch.einsum("bqhe,bkhe->bhqk", q * self.scale, k).softmax(dim=-1)
            return torch.einsum("bhqk,bkhe->bqhe", weights, v)
        if self.kind == "flash":
            return flash_attn_func(q, k, v, softmax_scale=self.given)
        return memory_efficient_attention(q, k, v, scale=self.given)

    def _heads_first(self, q: Tensor, k: Tensor, v: Tensor, start: int, end: int) -> Tensor:
        grouped = {"enable_gqa": True} if self.gqa == "native" else {}
        given = {} if self.given is None else {"scale": self.given}
        if self.kind == "sdpa":
            return F.scaled_dot_product_attention(q, k, v, None, 0.0, False, **given, **grouped)
        if self.kind == "sdpa_keyword":
            return F.scaled_dot_product_attention(query=q, key=k, value=v, **given, **grouped)
        if self.kind == "sdpa_bias":
            first = 0 if k.shape[2] == end else start
            bias = self.bias[:, :, start:end, first:end]
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, **given, **grouped)
        if self.kind == "sdpa_triangle":
            seen = self._triangle(k, start, end)
            return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, **given, **grouped)
        if self.kind == "matmul_triangle":
            hidden = self._triangle(k, start, end).logical_not()
            scores = (self.scale * q @ k.transpose(-2, -1)).masked_fill(hidden, float("-inf"))
            return scores.softmax(-1) @ v
        if self.kind.startswith("flex"):
            change = self._score_mod(0 if k.shape[2] == end else start, start, end)
            return flex_attention(q, k, v, change, scale=self.given, enable_gqa=self.gqa == "native")
        if self.kind == "matmul":
            weights = F.softmax((q * self.scale) @ k.transpose(-2, -1), dim=-1)
            return weights @ v
        if self.kind == "matmul_float":
            scores = torch.matmul(q, k.transpose(2, 3)) / (1 / self.scale)
            return torch.matmul(F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype), v)
        rows, heads, length, _ = q.shape
        q, k, v = (x.reshape(rows * heads, x.shape[2], x.shape[3]) for x in (q, k, v))
        weights = torch.softmax(torch.bmm(q, k.transpose(1, 2)) * self.scale, dim=-1)
        return torch.bmm(weights, v).view(rows, heads, length, -1)

    def _score_mod(self, first: int, start: int, end: int) -> Callable[..., Tensor] | None:
        """What changes a score; query i stands at position start + i, key j at first + j."""
        if self.kind == "flex_distance":
            slopes = self.slopes
            return lambda score, b, h, i, j: score + slopes[h] * (start + i - first - j)
        if self.kind == "flex_temperature":
            factors = self.factors
            return lambda score, b, h, i, j: score * factors[h, start + i]
        if self.kind == "flex_table":
            table = self.bias[0, :, start:end, first:end]
            return lambda score, b, h, i, j: score + table[h, i, j]
        return None

    def _triangle(self, k: Tensor, start: int, end: int) -> Tensor:
        """Which keys a query sees: those that are no further on than itself, [L, T]."""
        first = 0 if k.shape[2] == end else start
        places = torch.arange(end, device=k.device)
        return places[start:, None] >= places[None, first:]


class MixedAttention(nn.Module):
    """What looks like attention over the scale's own tokens and must not lose rows: `ATTENTION_MIXERS`."""

    def __init__(self, spec: BlockSpec) -> None:
        super().__init__()
        assert spec.mixer in ATTENTION_MIXERS
        self.kind, self.tokens_first = spec.mixer, spec.layout == "tokens_first"

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[R, L, H, E] or [R, H, L, E], as many key heads as heads, to [R, L, C]."""
        if self.tokens_first:
            q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        return self._mix(q, k, v).transpose(1, 2).flatten(2)

    def _mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.kind == "causal":
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        if self.kind == "attention_dropout":
            return F.scaled_dot_product_attention(q, k, v, dropout_p=0.25)
        if self.kind == "block_mask":
            rows = q.shape[2]
            seen = create_block_mask(lambda b, h, i, j: i >= j, None, None, rows, rows, device=q.device)
            return flex_attention(q, k, v, block_mask=seen)
        return (q @ k.transpose(-2, -1)).softmax(dim=-2) @ v
