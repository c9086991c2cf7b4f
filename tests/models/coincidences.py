"""A scale step whose sizes may all be equal to its token count: heads, widths, rows, texts, caches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toprovar_fx.schedules import Schedule

from .families import Attend
from .family_caches import PlainCache
from .subjects import State, Subject

DEPTH = 2


@dataclass(frozen=True)
class Sizes:
    """Sizes of a case.

    Attributes:
        tokens: L of the scale before the last, which has twice as many.
        before: tokens of all scales before it, 1 or 3 to L.
        heads, head: H and E; the width is H E.
        images: B; the rows are 2 B.
        vectors: vectors per sample [R, V, C], of which two modulate.
        text: tokens of a text [R, T, C] to attend to.
        cache: "slice", "cat" or "none".
        slots: rows of the cache beyond those that are used.
        merged: heads are merged with the batch rows, and the attention is two products.
    """

    tokens: int
    before: int = 1
    heads: int = 2
    head: int = 4
    images: int = 1
    vectors: int = 2
    text: int = 3
    cache: str = "slice"
    slots: int = 0
    merged: bool = False

    @property
    def schedule(self) -> Schedule:
        """Maps of one row."""
        between = [self.before - 1] if self.before > 1 else []
        return Schedule(tuple((1, count) for count in (1, *between, self.tokens, 2 * self.tokens)))


class Coincident(nn.Module):
    """Two AdaLN blocks with cross-attention; shapes are written as numbers wherever they can be."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes, width = sizes, sizes.heads * sizes.head
        self.table = nn.Parameter(torch.randn(sizes.schedule.ends[-1], width))
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(DEPTH))
        self.asks = nn.ModuleList(nn.Linear(width, width) for _ in range(DEPTH))
        self.outs = nn.ModuleList(nn.Linear(width, width) for _ in range(2 * DEPTH))
        self.mlps = nn.ModuleList(nn.Linear(width, width) for _ in range(DEPTH))
        self.head = nn.Linear(width, 3)

    def forward(self, hidden: Tensor, vectors: Tensor, text: Tensor, store: list[Any], end: int) -> Tensor:
        table, x = self.table[end - hidden.shape[1] : end], hidden
        for layer in range(DEPTH):

            def attend(q: Tensor, k: Tensor, v: Tensor, layer: int = layer) -> Tensor:
                return self.mixed(q, *self.cached(k, v, store, layer, end))

            x = self.layer(x, layer, table, vectors, text, attend)
        return self.head(x)

    def layer(
        self, x: Tensor, layer: int, table: Tensor, vectors: Tensor, text: Tensor, attend: Attend
    ) -> Tensor:
        rows, length, width = x.shape
        shape = rows, length, self.sizes.heads, self.sizes.head
        shift, scale = vectors.unbind(1)[:2]
        y = F.layer_norm(x, (width,)) * (1 + scale[:, None]) + shift[:, None] + table
        q, k, v = self.qkv[layer](y).view(rows, length, 3, *shape[2:]).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.outs[layer](attend(q, k, v).transpose(1, 2).reshape(rows, length, width))
        q = self.asks[layer](F.layer_norm(x, (width,))).view(shape).transpose(1, 2)
        told = text.unflatten(-1, shape[2:]).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(q, told, told).transpose(1, 2)
        x = x + self.outs[DEPTH + layer](mixed.reshape(rows, length, width))
        return x + self.mlps[layer](F.silu(F.layer_norm(x, (width,))))

    def cached(self, k: Tensor, v: Tensor, store: list[Any], layer: int, end: int) -> tuple[Tensor, Tensor]:
        old, kind = store[layer], self.sizes.cache
        if kind == "slice":
            start = end - k.shape[2]
            old[0][:, :, start:end], old[1][:, :, start:end] = k, v
            return old[0][:, :, :end], old[1][:, :, :end]
        if kind == "cat":
            if old[0] is not None:
                k, v = torch.cat((old[0], k), 2), torch.cat((old[1], v), 2)
            store[layer] = [k, v]
        return k, v

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not self.sizes.merged:
            return F.scaled_dot_product_attention(q, k, v)
        rows, heads, length, head = q.shape
        q, k, v = (x.reshape(rows * heads, x.shape[2], head) for x in (q, k, v))
        shares = (torch.bmm(q, k.transpose(1, 2)) * head**-0.5).softmax(-1)
        return torch.bmm(shares, v).view(rows, heads, length, head)


@dataclass
class Given:
    """What a generation keeps: vectors, text, and the caches."""

    vectors: Tensor
    text: Tensor
    rows: list[Any]


class CoincidentSubject(Subject):
    """The model of a case."""

    def __init__(self, sizes: Sizes) -> None:
        torch.manual_seed(0)
        self.name, self.sizes, self.model = "coincident", sizes, Coincident(sizes).eval()
        self.width, self.layers = sizes.heads * sizes.head, DEPTH

    def state(self, images: int, schedule: Schedule) -> State:
        sizes, source = self.sizes, torch.Generator().manual_seed(3)
        vectors, text = (
            torch.randn(2 * images, count, self.width, generator=source)
            for count in (sizes.vectors, sizes.text)
        )
        shape = 2 * images, sizes.heads, schedule.ends[-1] + sizes.slots, sizes.head
        empty = [torch.zeros(shape), torch.zeros(shape)] if sizes.cache == "slice" else [None, None]
        return State(Given(vectors, text, [list(map(_own, empty)) for _ in range(DEPTH)]))

    def arguments(self, hidden: Tensor, state: State, end: int) -> tuple[Any, ...]:
        given = state.cache
        return hidden.clone(), given.vectors, given.text, given.rows, end


def _own(cache: Tensor | None) -> Tensor | None:
    return None if cache is None else cache.clone()


def plainly(subject: CoincidentSubject, keeps: Mapping[tuple[int, int], Tensor]) -> list[Tensor]:
    """Logits of a generation that keeps the tokens `keeps[scale, layer]` [R, K], the others as they came."""
    model, sizes, schedule = subject.model, subject.sizes, subject.sizes.schedule
    given = subject.state(sizes.images, schedule).cache
    caches = [PlainCache() for _ in range(DEPTH)]
    logits = []
    with torch.inference_mode():
        for scale, end in enumerate(schedule.ends):
            table = model.table[end - schedule.tokens[scale] : end]
            x = subject.hidden(sizes.images, scale, schedule)
            for layer in range(DEPTH):
                if sizes.cache == "none":
                    caches[layer] = PlainCache()
                keep, row = keeps.get((scale, layer)), torch.arange(len(x))[:, None]
                more = given.vectors, given.text, caches[layer].attend
                if keep is None:
                    x = model.layer(x, layer, table, *more)
                else:
                    some = model.layer(x[row, keep], layer, table[keep], *more)
                    x = x.clone()
                    x[row, keep] = some
            logits.append(model.head(x))
    return logits
