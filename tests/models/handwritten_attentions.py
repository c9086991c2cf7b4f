"""Step models whose attention is written out in single operators, in the manner of `attentions.py`."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .attentions import HEAD, HEADS, WIDTH, Attending
from .packaged_attentions import LibraryLayout


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


HANDWRITTEN = (Matmul, MatmulFloat, MatmulMask, MatmulFill, MatmulOwnScale, Einsum, EinsumDots)
HANDWRITTEN += (Bmm, Baddbmm, BaddbmmMask, GroupedMatmul)
CROSS = (CrossHandwritten, CrossMasked)
