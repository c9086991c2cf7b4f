"""One small step model per way to write self-attention, each with what it must compute in plain terms.

`attend` is how an author writes it; `kv_heads`, `scale`, `bias` and the like say in plain terms what it
is, for the oracle.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toprovar_fx.schedules import Schedule

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


FUSED = (Positional, Keyword, AdditiveMask, BooleanMask, KeyMask, OwnScaleMask, NoHeads, NoHeadsMask)
GROUPED = (Grouped, RepeatedHeads, ExpandedHeads, OneKeyHead, GroupedMask)


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
