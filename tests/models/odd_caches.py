"""Small step models, in the manner of `odd.py`, that do something unusual with their caches."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .odd import HEADS, WIDTH, Plain


class NarrowWrite(Plain):
    """Not odd: the same write in other words."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, end: int) -> Tensor:
        start = end - q.shape[2]
        keys.narrow(2, start, q.shape[2]).copy_(k)
        values.narrow(2, start, q.shape[2]).copy_(v)
        return F.scaled_dot_product_attention(q, keys[:, :, :end], values[:, :, :end])


class UnknownPlaces(Plain):
    """The places that are written come in from outside."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, end: int) -> Tensor:
        start = end - q.shape[2]
        keys.index_copy_(2, self.places[start:end], k)
        values[:, :, start:end] = v
        return F.scaled_dot_product_attention(q, keys[:, :, :end], values[:, :, :end])


class RotatedCache(Plain):
    """Keys are cached without their positions and get them when they are read."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, end: int) -> Tensor:
        start = end - q.shape[2]
        keys[:, :, start:end] = k
        values[:, :, start:end] = v
        turned = keys[:, :, :end] * self.table[:end, : WIDTH // HEADS]
        return F.scaled_dot_product_attention(q, turned, values[:, :, :end])


class EarlyRead(Plain):
    """Looks into the cache before the scale is written."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, end: int) -> Tensor:
        return super().attend(q + keys[:, :, : end - q.shape[2]].sum(), k, v, keys, values, end)


class SummedCache(Plain):
    """Looks at all cached values beside attention."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, end: int) -> Tensor:
        mixed = super().attend(q, k, v, keys, values, end)
        return mixed + values[:, :, :end].mean(2, keepdim=True)


class ConstantWrite(Plain):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, end: int) -> Tensor:
        start = end - q.shape[2]
        keys[:, :, start:end] = k
        values[:, :, start:end] = v
        keys[:, :, 0:1] = 0.0
        return F.scaled_dot_product_attention(q, keys[:, :, :end], values[:, :, :end])


class ShiftedWrite(Plain):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, end: int) -> Tensor:
        start = end - q.shape[2]
        keys[:, :, start:end] = k
        values[:, :, start:end] = v
        return F.scaled_dot_product_attention(q, keys[:, :, 1 : end + 1], values[:, :, 1 : end + 1])


class Appended(Plain):
    """Keys and values joined instead of written."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, end: int) -> Tensor:
        return F.scaled_dot_product_attention(q, torch.cat((keys, k), 2), torch.cat((values, v), 2))


class SharedCache(Plain):
    """Both layers attend over the cache that the first one wrote."""

    def block(self, x: Tensor, layer: int, keys: list[Tensor], values: list[Tensor], end: int) -> Tensor:
        if layer == 0:
            return super().block(x, 0, keys, values, end)
        q, _, _ = self.heads(self.qkv[1](F.layer_norm(x, (WIDTH,))))
        mixed = F.scaled_dot_product_attention(q, keys[0][:, :, :end], values[0][:, :, :end])
        return x + self.out[1](mixed.transpose(1, 2).flatten(2))


class LateRead(Plain):
    """The head looks at a cache."""

    def forward(self, hidden: Tensor, keys: list[Tensor], values: list[Tensor], end: int) -> Any:
        return super().forward(hidden, keys, values, end) + keys[0][:, :, :end].mean()


class WrittenTwice(Plain):
    """The second write is what counts."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, end: int) -> Tensor:
        keys[:, :, end - q.shape[2] : end] = k.sin()
        return super().attend(q, k, v, keys, values, end)


class UsedWrite(Plain):
    """What was written is used as the slice that it was written to."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, end: int) -> Tensor:
        start = end - q.shape[2]
        written = keys[:, :, start:end].copy_(k)
        values[:, :, start:end] = v
        return F.scaled_dot_product_attention(q, keys[:, :, :end], values[:, :, :end]) + written
