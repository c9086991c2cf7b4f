"""One small step model per way to write self-attention, each with what it must compute in plain terms.

`attend` is how an author writes it; `kv_heads`, `scale`, `bias` and the like say in plain terms what it
is, for the oracle.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toprovar_fx.schedules import Schedule

from .stand_ins import flash_attn_forward, flash_attn_func, memory_efficient_attention
from .subjects import Lists, State, Subject

WIDTH, HEADS, HEAD, LAYERS, LONGEST = 16, 4, 4, 2, 130


class Attending(nn.Module):
    """Two pre-norm blocks; keys and values are cached as [R, Hk, Lmax, E], or [R, Lmax, Hk, E].

    Attributes:
        kv_heads: Hk.
        scale: softmax scale.
        heads_first: layout of the cache.
        cached: attends to all scales so far, else to its own.
        columns: what is added to the logits differs between keys.
    """

    kv_heads = HEADS
    scale = 0.5
    heads_first = True
    cached = True
    columns = False

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))
        self.kv = nn.ModuleList(nn.Linear(WIDTH, 2 * self.kv_heads * HEAD) for _ in range(LAYERS))
        self.out = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))
        self.mlp = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, 3)
        for layer in (*self.q, *self.kv):
            nn.init.normal_(layer.weight, std=0.6)
        self.register_buffer("table", torch.randn(HEADS, LONGEST, LONGEST))
        self.register_buffer("text", torch.randn(2, 5, WIDTH))

    def forward(self, hidden: Tensor, keys: list[Tensor], values: list[Tensor], end: int) -> Any:
        x = hidden
        for layer in range(LAYERS):
            q, k, v = self.project(x, layer)
            mixed = self.attend(q, k, v, keys[layer], values[layer], end)
            x = self.rest(x, mixed, layer)
        return self.head(x)

    def project(self, x: Tensor, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [R, L, H, E], keys and values [R, L, Hk, E]."""
        y = F.layer_norm(x, (WIDTH,))
        q = self.q[layer](y).unflatten(-1, (HEADS, HEAD))
        k, v = self.kv[layer](y).unflatten(-1, (2, self.kv_heads, HEAD)).unbind(2)
        return q, k, v

    def rest(self, x: Tensor, mixed: Tensor, layer: int) -> Tensor:
        """What follows attention, by attended values [R, L, H, E]."""
        x = x + self.out[layer](mixed.flatten(2))
        return x + self.mlp[layer](F.silu(F.layer_norm(x, (WIDTH,))))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, end: int) -> Tensor:
        """Attended values [R, L, H, E]."""
        k, v = self.remember(k, v, keys, values, end)
        return self.mix(q.transpose(1, 2), k, v, end).transpose(1, 2)

    def remember(self, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, end: int) -> tuple[Tensor, Tensor]:
        """All keys and values to attend to, in the layout of the cache."""
        start = end - k.shape[1]
        if self.heads_first:
            k, v = k.transpose(1, 2), v.transpose(1, 2)
        if not self.cached:
            return k, v
        if self.heads_first:
            keys[:, :, start:end] = k
            values[:, :, start:end] = v
            return keys[:, :, :end], values[:, :, :end]
        keys[:, start:end] = k
        values[:, start:end] = v
        return keys[:, :end], values[:, :end]

    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        """Attention of queries [R, H, L, E] to keys and values in the layout of the cache."""
        raise NotImplementedError

    def bias(self, start: int, end: int) -> Tensor | None:
        """What is added to the logits, [H or 1, L or 1, keys], or None."""
        return None

    def modified(self, logits: Tensor, places: Tensor) -> Tensor:
        """Logits [R, H, L, keys] before the bias is added, by the places [R, L] of their rows."""
        return logits

    def after(self, mixed: Tensor, logits: Tensor) -> Tensor:
        """What becomes of attended values [R, L, H, E]."""
        return mixed


# torch.nn.functional.scaled_dot_product_attention.


class Positional(Attending):
    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, None, 0.0, False)


class Keyword(Attending):
    scale = 0.3

    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        return F.scaled_dot_product_attention(
            query=q, key=k, value=v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=0.3
        )


class AdditiveMask(Attending):
    columns = True

    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, self.table[:, end - q.shape[2] : end, :end])

    def bias(self, start: int, end: int) -> Tensor:
        return self.table[:, start:end, :end]


class BooleanMask(Attending):
    columns = True

    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        allowed = (self.table[0, end - q.shape[2] : end, :end] > -0.5)[None, None]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)

    def bias(self, start: int, end: int) -> Tensor:
        allowed = self.table[:1, start:end, :end] > -0.5
        return torch.zeros(allowed.shape).masked_fill(~allowed, -torch.inf)


class KeyMask(Attending):
    """A mask over the keys alone, with a batch dimension."""

    columns = True

    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        mask = self.table[0, 0, :end].expand(2, 1, 1, end)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    def bias(self, start: int, end: int) -> Tensor:
        return self.table[:1, :1, :end]


class OwnScaleMask(Attending):
    """No cache: rows and columns of the mask are this scale's tokens."""

    cached = False

    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        start = end - q.shape[2]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.table[:, start:end, start:end])

    def bias(self, start: int, end: int) -> Tensor:
        return self.table[:, start:end, start:end]


class NoHeads(Attending):
    """Batch rows and heads on one axis."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        q, k, v = (x.reshape(-1, x.shape[2], HEAD) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).view(-1, HEADS, q.shape[1], HEAD)


class NoHeadsMask(Attending):
    cached = False

    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        start = end - q.shape[2]
        q, k, v = (x.reshape(-1, x.shape[2], HEAD) for x in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=self.table[:1, start:end, start:end])
        return mixed.view(-1, HEADS, q.shape[1], HEAD)

    def bias(self, start: int, end: int) -> Tensor:
        return self.table[:1, start:end, start:end]


# Grouped queries.


class Grouped(Attending):
    kv_heads = 2

    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


class RepeatedHeads(Attending):
    kv_heads = 2

    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        k, v = k.repeat_interleave(2, dim=1), torch.repeat_interleave(v, 2, dim=1)
        return F.scaled_dot_product_attention(q, k, v)


class ExpandedHeads(Attending):
    kv_heads = 2

    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        rows, heads, seen, width = k.shape
        k = k[:, :, None].expand(rows, heads, 2, seen, width).reshape(rows, 2 * heads, seen, width)
        v = v[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1, 2)
        return F.scaled_dot_product_attention(q, k, v)


class OneKeyHead(Attending):
    kv_heads = 1

    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        return F.scaled_dot_product_attention(q, k.expand(-1, HEADS, -1, -1), v.repeat(1, HEADS, 1, 1))


class GroupedMask(Attending):
    kv_heads, columns = 2, True

    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        mask = self.table[:, end - q.shape[2] : end, :end]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True, scale=0.5)

    def bias(self, start: int, end: int) -> Tensor:
        return self.table[:, start:end, :end]


# Operators of libraries, [R, L, H, E].


class LibraryLayout(Attending):
    heads_first = False

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, end: int) -> Tensor:
        return self.mix(q, *self.remember(k, v, keys, values, end), end)


class Flash(LibraryLayout):
    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        return flash_attn_func(q, k, v)


class FlashGrouped(LibraryLayout):
    kv_heads, scale = 2, 0.4

    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        return flash_attn_func(q, k, v, softmax_scale=0.4, causal=False, window_size=[-1, -1])


class FlashOperator(LibraryLayout):
    """What flash-attn's own wrapper leaves in a graph: an operator with several results."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        return flash_attn_forward(q, k, v, 0.0, 0.5, False)[0]


class FlashOverHeadsFirstCache(Attending):
    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        return flash_attn_func(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


class Xformers(LibraryLayout):
    scale = 0.2

    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        return memory_efficient_attention(q, k, v, scale=0.2)


class XformersBias(LibraryLayout):
    columns = True

    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        bias = self.table[None, :, end - q.shape[1] : end, :end].expand(q.shape[0], -1, -1, -1)
        return memory_efficient_attention(q, k, v, attn_bias=bias)

    def bias(self, start: int, end: int) -> Tensor:
        return self.table[:, start:end, :end]


# Written out.


class Matmul(Attending):
    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        return ((q @ k.transpose(-2, -1)) / math.sqrt(HEAD)).softmax(-1) @ v


class MatmulFloat(Attending):
    """Scaled queries and keys, softmax in float32 from another dtype."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        scores = torch.matmul(q * HEAD**-0.25, k.mul(HEAD**-0.25).transpose(2, 3))
        weights = F.softmax(scores.double(), dim=-1, dtype=torch.float32).to(v.dtype)
        return torch.matmul(F.dropout(weights, 0.1, training=self.training), v)


class MatmulMask(Attending):
    columns = True

    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        scores = torch.matmul(q, k.transpose(-1, -2)).mul(0.5)
        scores = scores + self.table[None, :, end - q.shape[2] : end, :end]
        return torch.softmax(scores, dim=3).matmul(v)

    def bias(self, start: int, end: int) -> Tensor:
        return self.table[:, start:end, :end]


class MatmulFill(Attending):
    columns = True

    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        hidden = self.table[0, end - q.shape[2] : end, :end] < -0.5
        scores = (0.5 * q @ k.transpose(-1, -2)).masked_fill(hidden, float("-inf"))
        return scores.softmax(dim=-1) @ v

    def bias(self, start: int, end: int) -> Tensor:
        hidden = self.table[:1, start:end, :end] < -0.5
        return torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf)


class MatmulOwnScale(Attending):
    """No cache; a mask of rows and columns, in merged heads."""

    cached = False

    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        rows, _, length, _ = q.shape
        q, k, v = (x.reshape(-1, length, HEAD) for x in (q, k, v))
        scores = (torch.bmm(q, k.transpose(1, 2)) * 0.5).view(rows, HEADS, length, length)
        scores = scores + self.table[:, end - length : end, end - length : end]
        weights = scores.view(-1, length, length).softmax(-1)
        return torch.bmm(weights, v).view(rows, HEADS, length, HEAD)

    def bias(self, start: int, end: int) -> Tensor:
        return self.table[:, start:end, start:end]


class Einsum(LibraryLayout):
    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        scores = torch.einsum("blhd,bmhd->bhlm", q, k) * 0.5
        return torch.einsum("bhlm,bmhd->blhd", scores.softmax(-1), v)


class EinsumDots(LibraryLayout):
    """Scores as [R, L, H, keys]."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        weights = torch.einsum("...lhd, ...mhd -> ...lhm", q * 0.5, k).softmax(-1)
        return torch.einsum("...lhm, ...mhd -> ...lhd", weights, v)


class Bmm(Attending):
    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        rows, heads, length, _ = q.shape
        q, k, v = (x.reshape(rows * heads, -1, HEAD) for x in (q, k, v))
        weights = torch.bmm(0.5 * q, k.transpose(1, 2)).softmax(dim=-1)
        return weights.bmm(v).reshape(rows, heads, length, HEAD)


class Baddbmm(Attending):
    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        rows, heads, length, _ = q.shape
        q, k, v = (x.reshape(rows * heads, x.shape[2], HEAD) for x in (q, k, v))
        empty = torch.empty(q.shape[0], q.shape[1], k.shape[1])
        scores = torch.baddbmm(empty, q, k.transpose(-1, -2), beta=0, alpha=0.5)
        return torch.bmm(scores.softmax(-1), v).view(rows, heads, length, HEAD)


class BaddbmmMask(Attending):
    columns = True

    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        rows, heads, length, _ = q.shape
        q, k, v = (x.reshape(rows * heads, x.shape[2], HEAD) for x in (q, k, v))
        mask = self.table[:, end - length : end, :end].repeat(2, 1, 1)
        scores = torch.baddbmm(mask, q, k.transpose(-1, -2), alpha=0.5)
        return torch.bmm(scores.softmax(-1), v).view(rows, heads, length, HEAD)

    def bias(self, start: int, end: int) -> Tensor:
        return self.table[:, start:end, :end]


class GroupedMatmul(Attending):
    """Queries of a group on an axis of their own."""

    kv_heads = 2

    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        rows, _, length, _ = q.shape
        q = q.view(rows, 2, 2, length, HEAD)
        weights = (q @ k.unsqueeze(2).transpose(-1, -2) * 0.5).softmax(-1)
        return (weights @ v.unsqueeze(2)).view(rows, HEADS, length, HEAD)


class CrossHandwritten(Attending):
    """Handwritten cross-attention to a text behind self-attention: row-wise in the tokens."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)

    def rest(self, x: Tensor, mixed: Tensor, layer: int) -> Tensor:
        q = F.layer_norm(x, (WIDTH,)).unflatten(-1, (HEADS, HEAD)).transpose(1, 2)
        text = self.text.unflatten(-1, (HEADS, HEAD)).transpose(1, 2)
        scores = q @ text.transpose(-2, -1) + self.table[:2, 0, None, None, :5]
        seen = (scores.softmax(-1) @ text).transpose(1, 2).flatten(2)
        return super().rest(x, mixed, layer) + seen


class CrossMasked(Attending):
    """Cross-attention to a text by the fused operator with a mask over the text."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)

    def rest(self, x: Tensor, mixed: Tensor, layer: int) -> Tensor:
        q = F.layer_norm(x, (WIDTH,)).unflatten(-1, (HEADS, HEAD)).transpose(1, 2)
        text = self.text.unflatten(-1, (HEADS, HEAD)).transpose(1, 2)
        seen = F.scaled_dot_product_attention(q, text, text, self.table[:2, 0, None, None, :5] > 0)
        return super().rest(x, mixed, layer) + seen.transpose(1, 2).flatten(2)


FUSED = (Positional, Keyword, AdditiveMask, BooleanMask, KeyMask, OwnScaleMask, NoHeads, NoHeadsMask)
GROUPED = (Grouped, RepeatedHeads, ExpandedHeads, OneKeyHead, GroupedMask)
LIBRARIES = (Flash, FlashGrouped, FlashOperator, FlashOverHeadsFirstCache, Xformers, XformersBias)
HANDWRITTEN = (Matmul, MatmulFloat, MatmulMask, MatmulFill, MatmulOwnScale, Einsum, EinsumDots)
HANDWRITTEN += (Bmm, Baddbmm, BaddbmmMask, GroupedMatmul)
CROSS = (CrossHandwritten, CrossMasked)
KINDS: Mapping[str, type[Attending]] = {
    kind.__name__: kind for kind in (*FUSED, *GROUPED, *LIBRARIES, *HANDWRITTEN, *CROSS)
}


class AttendingSubject(Subject):
    """One of these models."""

    def __init__(self, kind: type[Attending]) -> None:
        torch.manual_seed(0)
        self.name, self.model = kind.__name__, kind().eval()
        self.width, self.layers = WIDTH, LAYERS

    def state(self, images: int, schedule: Schedule) -> State:
        tokens, heads = schedule.ends[-1] + 1, self.model.kv_heads
        inner = (heads, tokens) if self.model.heads_first else (tokens, heads)
        keys, values = ([torch.zeros(2 * images, *inner, HEAD) for _ in range(LAYERS)] for _ in range(2))
        return State(Lists(keys, values))

    def arguments(self, hidden: Tensor, state: State, end: int) -> tuple[Any, ...]:
        return hidden, state.keys, state.values, end
