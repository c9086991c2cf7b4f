"""Small step models that write in place, or to memory that others read."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .odd import WIDTH, Plain


class Writing(Plain):
    """Has a vector and a memory of all tokens, both buffers that `Plain` does not write; `layer` runs."""

    layer = 0

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("state", torch.full((WIDTH,), 0.1))
        self.register_buffer("memory", torch.zeros(2, 256, WIDTH))

    def block(self, x: Tensor, layer: int, keys: list[Tensor], values: list[Tensor], end: int) -> Tensor:
        self.layer = layer
        return super().block(x, layer, keys, values, end)


# Understood.


class Statement(Writing):
    """Writes to what it computed, in statements whose results nothing uses."""

    def heads(self, qkv: Tensor) -> tuple[Tensor, ...]:
        q, k, v = super().heads(qkv)
        q.mul_(1.5)
        return q, k, v

    def feed(self, x: Tensor, end: int) -> Tensor:
        x.clamp_(-1, 0.5)
        x.view(*x.shape[:2], -1, 2).add_(0.25)
        return x


class OwnScale(Writing):
    """The cache is scratch memory: every scale writes its rows from the first one on."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, end: int) -> Tensor:
        tokens = q.shape[2]
        keys[:, :, :tokens] = k
        values[:, :, :tokens] = v
        return F.scaled_dot_product_attention(q, keys[:, :, :tokens], values[:, :, :tokens])


class BehindText(Writing):
    """Scratch memory behind five rows of a text."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, end: int) -> Tensor:
        last = q.shape[2] + 5
        keys[:, :, 5:last] = k
        values[:, :, 5:last] = v
        return F.scaled_dot_product_attention(q, keys[:, :, :last], values[:, :, :last])


class KeysAndValues(Writing):
    """One cache, of which attention reads halves."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, end: int) -> Tensor:
        both = torch.cat((k, v), -1)
        keys[:, :, end - q.shape[2] : end] = both
        k, v = keys[:, :, :end].chunk(2, -1)
        return F.scaled_dot_product_attention(q, k, v)


class LikeAnother(Writing):
    """A vector and scores take the type of tokens; with as many channels as tokens no number tells which."""

    def feed(self, x: Tensor, end: int) -> Tensor:
        return x * self.state.type_as(x)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, end: int) -> Tensor:
        keys[:, :, end - q.shape[2] : end] = k
        values[:, :, end - q.shape[2] : end] = v
        scores = q @ keys[:, :, :end].transpose(-1, -2)
        return scores.softmax(-1).type_as(q) @ values[:, :, :end]


# Not understood.


class ThroughCast(Writing):
    """A cast that has nothing to do hands on the block's input."""

    def touch(self, x: Tensor, end: int) -> Tensor:
        x.float().mul_(0.5)
        return x


class ThroughHeads(Writing):
    def touch(self, x: Tensor, end: int) -> Tensor:
        x.unflatten(-1, (2, -1)).mul_(0.5)
        return x


class ChangedTable(Writing):
    """Positions change between their two uses."""

    def feed(self, x: Tensor, end: int) -> Tensor:
        table = self.table[end - x.shape[1] : end] * 1.0
        x = x + table
        return x * table.view(-1).mul_(2).view(table.shape) + table


class BehindAttention(Writing):
    """What attention's queries come from is changed behind it."""

    def block(self, x: Tensor, layer: int, keys: list[Tensor], values: list[Tensor], end: int) -> Tensor:
        y = F.layer_norm(x, (WIDTH,))
        q, k, v = self.heads(self.qkv[layer](y))
        y.mul_(self.attend(q, k, v, keys[layer], values[layer], end).transpose(1, 2).flatten(2))
        return x + self.out[layer](y)


class Counter(Writing):
    """A buffer counts the calls, and is read before and behind."""

    def feed(self, x: Tensor, end: int) -> Tensor:
        x = x * (self.state + 1)
        self.state.add_(0.1)
        return x + self.state


class Copied(Writing):
    """A buffer gets a value of the first layer, from which both layers compute."""

    def feed(self, x: Tensor, end: int) -> Tensor:
        if self.layer == 0:
            self.state.copy_(x[0, 0])
            self.half = self.state * 0.5
        return x + self.half


class Remembered(Writing):
    """Rows of every scale are left for somebody else."""

    def feed(self, x: Tensor, end: int) -> Tensor:
        if self.layer == 0:
            self.memory[:, end - x.shape[1] : end] = x
        return x


class Backends(Writing):
    """Chooses the kernel of one attention."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, end: int) -> Tensor:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return super().attend(q, k, v, keys, values, end)


class MovedIndex(Writing):
    """The index of one layer's rows begins at 0 and is moved in place."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, end: int) -> Tensor:
        if self.layer == 0:
            return super().attend(q, k, v, keys, values, end)
        index = torch.arange(q.shape[2])
        index.add_(end - q.shape[2])
        keys.index_copy_(2, index, k)
        values.index_copy_(2, index, v)
        return F.scaled_dot_product_attention(q, keys[:, :, :end], values[:, :, :end])


@torch.library.custom_op("toprovar_tests::lerp", mutates_args=())
def shifted(x: Tensor, weight: Tensor) -> Tensor:
    """A mixture of every token with the one before, under the name of a pointwise operator of torch."""
    return torch.lerp(x, torch.roll(x, 1, 1), weight)


@shifted.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return torch.empty_like(x)


class ForeignName(Writing):
    def feed(self, x: Tensor, end: int) -> Tensor:
        return torch.ops.toprovar_tests.lerp(x, self.state)


class RefinedText(Writing):
    """The first attention of the graph runs over a text."""

    def forward(
        self, hidden: Tensor, keys: list[Tensor], values: list[Tensor], end: int, text: Tensor
    ) -> Any:
        q, k, v = self.heads(self.qkv[0](text))
        self.refined = text + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return super().forward(hidden, keys, values, end)

    def feed(self, x: Tensor, end: int) -> Tensor:
        return x + self.refined.mean(1, keepdim=True)
