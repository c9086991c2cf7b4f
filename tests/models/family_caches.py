"""What the models of `families.py` keep per layer, and how their attention reaches all rows so far.

Each way is written as models have it (`attend` in a scale step, traced by Dynamo); `PlainCache` is what the
reference needs: a list of rows per layer, joined.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

WIDTH, HEADS, DEPTH = 32, 2, 3
HEAD = WIDTH // HEADS


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


class Joined:
    """`torch.cat` on [R, H, L, E]; the state starts empty-handed, with None."""

    def new(self, like: Tensor, rows: int, tokens: int) -> list[Any]:
        return [[None, None] for _ in range(DEPTH)]

    def end(self, store: list[Any], length: int, end: int) -> int:
        return end

    def attend(self, store: list[Any], layer: int, end: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        old = store[layer]
        if old[0] is not None:
            k, v = torch.cat((old[0], k), dim=2), torch.cat([old[1], v], dim=-2)
        store[layer] = [k, v]
        return sdpa(q, k, v)


class JoinedTokensFirst(Joined):
    """`torch.cat` on [R, L, H, E]; where a scale begins is told by the length of a cache."""

    def end(self, store: list[Any], length: int, end: int) -> int:
        return length if store[0][0] is None else store[0][0].shape[1] + length

    def attend(self, store: list[Any], layer: int, end: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v, old = k.transpose(1, 2), v.transpose(1, 2), store[layer]
        if old[0] is not None:
            k, v = torch.cat((old[0], k), 1), torch.cat((old[1], v), 1)
        store[layer] = [k, v]
        rows, known = k.shape[:2]
        k = k.view(rows, known, HEADS, HEAD)
        return sdpa(q, k.transpose(1, 2), v.permute(0, 2, 1, 3).to(q.dtype))


class Sliced:
    """A buffer [R, H, L, E], written by slice."""

    tokens_at = 2

    def end(self, store: list[Any], length: int, end: int) -> int:
        return end

    def new(self, like: Tensor, rows: int, tokens: int) -> list[Any]:
        shape = [rows, HEADS, HEAD]
        shape.insert(self.tokens_at, tokens + 1)
        return [[like.new_zeros(shape) for _ in range(2)] for _ in range(DEPTH)]

    def attend(self, store: list[Any], layer: int, end: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = store[layer]
        self.write(keys, k, end - k.shape[2], end)
        self.write(values, v, end - k.shape[2], end)
        return sdpa(q, keys[:, :, :end], values[..., :end, :])

    def write(self, cache: Tensor, rows: Tensor, start: int, end: int) -> None:
        cache[:, :, start:end] = rows


class Narrowed(Sliced):
    def write(self, cache: Tensor, rows: Tensor, start: int, end: int) -> None:
        cache.narrow(2, start, end - start).copy_(rows)


class CopiedSlice(Sliced):
    def write(self, cache: Tensor, rows: Tensor, start: int, end: int) -> None:
        cache[..., start:end, :].copy_(rows)


class IndexCopied(Sliced):
    def write(self, cache: Tensor, rows: Tensor, start: int, end: int) -> None:
        cache.index_copy_(2, torch.arange(start, end), rows)


class Indexed(Sliced):
    def write(self, cache: Tensor, rows: Tensor, start: int, end: int) -> None:
        cache[:, :, start + torch.arange(end - start)] = rows


class Scattered(Sliced):
    def write(self, cache: Tensor, rows: Tensor, start: int, end: int) -> None:
        index = torch.arange(start, end).view(1, 1, -1, 1).expand(rows.shape[0], HEADS, -1, HEAD)
        cache.scatter_(2, index, rows)


class TokensFirst(Sliced):
    """A buffer [R, L, H, E], read by `narrow`."""

    tokens_at = 1

    def attend(self, store: list[Any], layer: int, end: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = store[layer]
        start = end - k.shape[2]
        keys[:, start:end], values[:, start:end] = k.transpose(1, 2), v.transpose(1, 2)
        return sdpa(q, keys.narrow(1, 0, end).transpose(1, 2), values[:, :end].transpose(1, 2))


class Functional(Sliced):
    """`slice_scatter` into a new cache of the same length."""

    def attend(self, store: list[Any], layer: int, end: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = store[layer]
        start = end - k.shape[2]
        keys = torch.slice_scatter(keys, k, 2, start, end)
        values = values.slice_scatter(v, dim=2, start=start, end=end)
        store[layer] = [keys, values]
        return sdpa(q, keys[:, :, :end], values[:, :, :end])


class Stacked(Sliced):
    """One tensor [layers, 2, R, H, L, E] for the whole model."""

    def new(self, like: Tensor, rows: int, tokens: int) -> Any:
        return like.new_zeros(DEPTH, 2, rows, HEADS, tokens + 1, HEAD)

    def attend(self, store: Any, layer: int, end: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        start = end - k.shape[2]
        store[layer, 0, :, :, start:end] = k
        store[layer, 1, :, :, start:end] = v
        return sdpa(q, store[layer, 0, :, :, :end], store[layer, 1, :, :, :end])


class PlainCache:
    """The reference: what a layer computed, one scale after another."""

    def __init__(self) -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.keys.append(k)
        self.values.append(v)
        return sdpa(q, torch.cat(self.keys, 2), torch.cat(self.values, 2))

    def keep(self, rows: Tensor) -> None:
        index = rows[..., None].expand(-1, -1, -1, HEAD)
        self.keys = [torch.cat(self.keys, 2).gather(2, index)]
        self.values = [torch.cat(self.values, 2).gather(2, index)]
