"""What a pruned generation must compute, in plain eager PyTorch: no FX, no backend, the models' own modules.

Written from the method alone: gather the kept rows, run the block, scatter back; a layer's cache
holds the rows that the layer computed, one scale after another.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from toprovar_fx.models.block import modulate
from toprovar_fx.models.rope import angles_of
from toprovar_fx.schedules import Schedule

from .models.prenorm import rotate
from .models.subjects import SQUARE, State, Subject, TinyInfinity

Where = Literal["input", "query", "attention"]
Place = tuple[int, int]
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass
class Trace:
    """Everything an oracle saw, by (scale, layer).

    Attributes:
        logits: per scale.
        before, after: the residual stream [R, L, C] around a layer.
        entropy: of every query that was computed over all keys, [R, L or K] float64 in nats, mean of heads.
        scale_entropy: the same over the keys of the current scale only.
        cached: rows in the layer's cache after the scale.
    """

    logits: list[Tensor] = field(default_factory=list)
    before: dict[Place, Tensor] = field(default_factory=dict)
    after: dict[Place, Tensor] = field(default_factory=dict)
    entropy: dict[Place, Tensor] = field(default_factory=dict)
    scale_entropy: dict[Place, Tensor] = field(default_factory=dict)
    cached: dict[Place, int] = field(default_factory=dict)


class Layer(ABC):
    """One block of a model, cut after its self-attention."""

    softmax_scale: float

    @abstractmethod
    def attention(self, x: Tensor, rows: Tensor | None, attend: Attend) -> Tensor:
        """x plus self-attention; `rows` [R, K] are the positions that x holds, None for all."""

    @abstractmethod
    def rest(self, x: Tensor) -> Tensor:
        """What follows self-attention, residuals included."""


class InfinityLayer(Layer):
    softmax_scale = 1.0

    def __init__(self, subject: Subject, state: State, layer: int, start: int, end: int) -> None:
        self.block, self.context, self.layer = list(subject.model.blocks())[layer], state.context, layer
        self.rope = subject.model.rope[:, :, start:end]
        self.gss = (self.block.ada_gss + self.context.gss).unbind(2)

    def attention(self, x: Tensor, rows: Tensor | None, attend: Attend) -> Tensor:
        gamma, _, scale, _, shift, _ = self.gss
        rope = self.rope
        if rows is not None:
            rope = torch.stack([rope[0][:, row] for row in rows])
        return x + self.block.sa(modulate(x, scale, shift), angles_of(rope), attend) * gamma

    def rest(self, x: Tensor) -> Tensor:
        _, gamma, _, scale, _, shift = self.gss
        text = self.context.keys[self.layer], self.context.values[self.layer], self.context.mask
        x = x + self.block.ca(self.block.ca_norm(x), *text)
        return x + self.block.ffn(modulate(x, scale, shift)) * gamma


class PreNormLayer(Layer):
    def __init__(self, subject: Subject, state: State, layer: int, start: int, end: int) -> None:
        self.block, self.rope = subject.model.blocks[layer], subject.model.rope
        self.table = subject.model.table[:, start:end]
        self.softmax_scale = (subject.width // subject.model.heads) ** -0.5

    def attention(self, x: Tensor, rows: Tensor | None, attend: Attend) -> Tensor:
        own = self.block.attention
        batch, length, width = x.shape
        y = self.block.norm1(x)
        parts = own.qkv(y).chunk(3, dim=-1) if own.fused else (own.q(y), own.k(y), own.v(y))
        q, k, v = (part.unflatten(-1, (own.heads, -1)).transpose(1, 2) for part in parts)
        if self.rope:
            table = self.table if rows is None else torch.stack([self.table[:, row] for row in rows], 1)
            table = table if rows is None else table[:, :, None]
            q, k = rotate(q, table), rotate(k, table)
        return x + own.out(attend(q, k, v).transpose(1, 2).reshape(batch, length, width))

    def rest(self, x: Tensor) -> Tensor:
        y = self.block.norm2(x)
        return x + self.block.down(F.silu(self.block.gate(y)) * self.block.up(y))


def softmax_entropy(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Entropy of every softmax row in float64, mean of the heads, [R, Lq]."""
    logits = scale * q.double() @ k.double().transpose(-2, -1)
    shares = logits.log_softmax(-1)
    return -(shares.exp() * shares).sum(-1).mean(1)


def take(x: Tensor, rows: Tensor) -> Tensor:
    """Rows [R, K] of x [R, L, C]."""
    return torch.stack([entry[row] for entry, row in zip(x, rows, strict=True)])


def put(base: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    """`base` [R, L, C] with rows [R, K] replaced."""
    result = base.clone()
    for entry, row, value in zip(result, rows, values, strict=True):
        entry[row] = value
    return result


def replay(
    subject: Subject,
    keeps: Mapping[Place, Tensor] | None = None,
    *,
    images: int = 1,
    schedule: Schedule = SQUARE,
    seed: int = 1,
    where: Where = "input",
    restore: Literal["residual", "cache"] = "cache",
    scales: int | None = None,
    entropies: bool = True,
) -> Trace:
    """A generation that keeps the tokens `keeps[scale, layer]` [R, K] and everything elsewhere; K = 0 skips.

    Args:
        where: rows dropped before the block ("input": keys and values of pruned tokens do not exist), at the
            queries ("query": they do), or after self-attention ("attention").
        restore: pruned rows get nothing ("residual"), or the layer's update at the last scale where it ran
            whole, area-interpolated ("cache").
        scales: number of scales that run.
        entropies: whether to compute them (they would be counted as operations).
    """
    keeps, trace = keeps or {}, Trace()
    subject.use(schedule)
    layer_of = partial(InfinityLayer if isinstance(subject, TinyInfinity) else PreNormLayer, subject)
    with torch.inference_mode():
        state = subject.state(images, schedule)
        cached = [0] * subject.layers
        updates: dict[int, tuple[int, Tensor]] = {}
        for scale in range(len(schedule) if scales is None else scales):
            end = schedule.ends[scale]
            start = end - schedule.tokens[scale]
            x = enter(subject, subject.hidden(images, scale, schedule, seed), start, end)
            for layer in range(subject.layers):
                place = scale, layer
                trace.before[place] = x
                keep = keeps.get(place)
                base = x
                if keep is not None and restore == "cache":
                    known, update = updates[layer]
                    base = x + resized(update, schedule.sides[known], schedule.sides[scale])
                if keep is not None and keep.shape[1] == 0:
                    x = base
                else:
                    seen = Seen(state.keys[layer], state.values[layer], cached[layer])
                    y = run_layer(layer_of(state, layer, start, end), x, keep, seen, where)
                    cached[layer] = seen.end
                    if entropies:
                        seen.measure(trace, place, layer_of(state, layer, start, end).softmax_scale)
                    x = y if keep is None else put(base, keep, y)
                if keep is None:
                    updates[layer] = scale, x - trace.before[place]
                trace.after[place], trace.cached[place] = x, cached[layer]
            trace.logits.append(leave(subject, x, state))
    return trace


class Seen:
    """Self-attention of one layer at one scale: what it writes, reads and computes."""

    def __init__(self, keys: Tensor, values: Tensor, start: int) -> None:
        self.keys, self.values, self.start, self.end = keys, values, start, start
        self.query: Tensor | None = None
        self.softmax: dict[str, float] = {}

    def attend(self, q: Tensor, k: Tensor, v: Tensor, rows: Tensor | None, scale: float) -> Tensor:
        self.end = self.start + k.shape[2]
        self.keys[:, :, self.start : self.end] = k
        self.values[:, :, self.start : self.end] = v
        self.query = (
            q if rows is None else torch.stack([one[:, row] for one, row in zip(q, rows, strict=True)])
        )
        past = self.keys[:, :, : self.end], self.values[:, :, : self.end]
        mixed = F.scaled_dot_product_attention(self.query, *past, scale=scale)
        if rows is None:
            return mixed
        # Rows that were not asked for are zero: the caller gathers the others again.
        full = torch.zeros_like(q)
        for entry, row, value in zip(full, rows, mixed, strict=True):
            entry[:, row] = value
        return full

    def measure(self, trace: Trace, place: Place, scale: float) -> None:
        keys = self.keys[:, :, : self.end]
        trace.entropy[place] = softmax_entropy(self.query, keys, scale)
        trace.scale_entropy[place] = softmax_entropy(self.query, keys[:, :, self.start :], scale)


def run_layer(layer: Layer, x: Tensor, keep: Tensor | None, seen: Seen, where: Where) -> Tensor:
    """The rows of `keep`, [R, K, C], or all."""
    attend = partial(seen.attend, rows=None, scale=layer.softmax_scale)
    if keep is None:
        return layer.rest(layer.attention(x, None, attend))
    if where == "input":
        return layer.rest(layer.attention(take(x, keep), keep, attend))
    if where == "query":
        attend = partial(seen.attend, rows=keep, scale=layer.softmax_scale)
    return layer.rest(take(layer.attention(x, None, attend), keep))


def enter(subject: Subject, hidden: Tensor, start: int, end: int) -> Tensor:
    """What the model does before its first block."""
    if isinstance(subject, TinyInfinity) or subject.model.rope:
        return hidden
    return hidden + subject.model.table[:, start:end]


def leave(subject: Subject, x: Tensor, state: State) -> Tensor:
    """What the model does after its last block."""
    model = subject.model
    if isinstance(subject, TinyInfinity):
        scale, shift = state.context.head_modulation.unbind(2)
        return model.head(modulate(x, scale, shift))
    return model.head(model.norm(x))


def resized(update: Tensor, sides: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """[R, h w, C] averaged over the area of every cell of the target map."""
    grid = update.transpose(1, 2).unflatten(-1, sides)
    return F.interpolate(grid, size=target, mode="area").flatten(2).transpose(1, 2)
