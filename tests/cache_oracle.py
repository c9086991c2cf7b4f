"""A generation whose caches lose rows between scales, in plain eager PyTorch: no FX, no backend.

A layer's cache is what its attention would read, one list of rows per head; nothing has a place in a buffer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from toprovar_fx.schedules import Schedule

from .models.subjects import SQUARE, Subject, TinyInfinity
from .oracles import (
    InfinityLayer,
    Place,
    PreNormLayer,
    Seen,
    Where,
    enter,
    leave,
    put,
    resized,
    run_layer,
)


@dataclass
class Replayed:
    """Logits per scale; by (scale, layer) rows in the cache, and the softmax [R, H, L, rows]."""

    logits: list[Tensor] = field(default_factory=list)
    cached: dict[Place, int] = field(default_factory=dict)
    attention: dict[Place, Tensor] = field(default_factory=dict)


class Rows(Seen):
    """Self-attention over rows that are kept outside of the model's own cache."""

    def __init__(self, known: tuple[Tensor, Tensor] | None) -> None:
        self.known = known

    def attend(self, q: Tensor, k: Tensor, v: Tensor, rows: Tensor | None, scale: float) -> Tensor:
        if self.known is not None:
            k, v = torch.cat((self.known[0], k), 2), torch.cat((self.known[1], v), 2)
        self.known = k, v
        self.shares = (scale * q.double() @ k.double().transpose(-2, -1)).softmax(-1).float()
        if rows is None:
            return F.scaled_dot_product_attention(q, k, v, scale=scale)
        full = torch.zeros_like(q)
        for entry, index, query, key, value in zip(full, rows, q, k, v, strict=True):
            entry[:, index] = F.scaled_dot_product_attention(query[:, index], key, value, scale=scale)
        return full


def replay_compacted(
    subject: Subject,
    stay: Mapping[Place, Tensor],
    keeps: Mapping[Place, Tensor],
    *,
    images: int = 1,
    schedule: Schedule = SQUARE,
    seed: int = 1,
    where: Where = "input",
    restore: Literal["residual", "cache"] = "cache",
    conditional_from: int | None = None,
) -> Replayed:
    """All scales; after scale s a layer's cache keeps the rows `stay[s, layer]` [R, H, M], in that order.

    `keeps` and the other arguments are those of `oracles.replay`. From scale `conditional_from` on there are
    only the first `images` rows, and of what earlier scales left only theirs.
    """
    subject.use(schedule)
    layer_of = partial(InfinityLayer if isinstance(subject, TinyInfinity) else PreNormLayer, subject)
    found = Replayed()
    known: dict[int, tuple[Tensor, Tensor]] = {}
    updates: dict[int, tuple[int, Tensor]] = {}
    with torch.inference_mode():
        state = subject.state(images, schedule)
        for scale, (end, length) in enumerate(zip(schedule.ends, schedule.tokens, strict=True)):
            hidden = subject.hidden(images, scale, schedule, seed)
            if conditional_from is not None and scale >= conditional_from:
                hidden = hidden[:images]
                state.context = None if state.context is None else state.context.first(images)
                known = {layer: (k[:images], v[:images]) for layer, (k, v) in known.items()}
                updates = {layer: (at, update[:images]) for layer, (at, update) in updates.items()}
            x = enter(subject, hidden, end - length, end)
            for layer in range(subject.layers):
                keep, before, base = keeps.get((scale, layer)), x, x
                if keep is not None and restore == "cache":
                    at, update = updates[layer]
                    base = x + resized(update, schedule.sides[at], schedule.sides[scale])
                if keep is not None and keep.shape[1] == 0:
                    x = base
                else:
                    seen = Rows(known.get(layer))
                    y = run_layer(layer_of(state, layer, end - length, end), x, keep, seen, where)
                    x = y if keep is None else put(base, keep, y)
                    assert seen.known is not None
                    known[layer] = seen.known
                    found.attention[scale, layer] = seen.shares
                if keep is None:
                    updates[layer] = scale, x - before
                if (scale, layer) in stay:
                    index = stay[scale, layer][..., None]
                    known[layer] = tuple(  # type: ignore[assignment]
                        rows.gather(2, index.expand(-1, -1, -1, rows.shape[-1])) for rows in known[layer]
                    )
                found.cached[scale, layer] = known[layer][0].shape[2]
            found.logits.append(leave(subject, x, state))
    return found
