"""Small step models whose self-attention must not be pruned as it is written."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from .odd import HEADS, WIDTH, Plain
from .stand_ins import flash_attn_func

SCALE = 1 / math.sqrt(WIDTH // HEADS)


class Cached(Plain):
    """`mix` attends over the cache."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, end: int) -> Tensor:
        start = end - q.shape[2]
        keys[:, :, start:end] = k
        values[:, :, start:end] = v
        return self.mix(q, keys[:, :, :end], values[:, :, :end], end)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)


# A value per key, where keys of pruned tokens are dropped.


class KeyMask(Cached):
    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.table[:end, 0][None])


class HandwrittenKeyMask(Cached):
    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        return (q @ k.transpose(-2, -1) * SCALE + self.table[:end, 0]).softmax(-1) @ v


class KeyTable(Cached):
    """Positions are added to the keys when they are read."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        return F.scaled_dot_product_attention(q, k + self.table[:end, : WIDTH // HEADS], v)


class MaskOfTokens(Cached):
    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=q[..., :1])


# Handwritten, and no softmax(q k^T) v.


class ManualSoftmax(Cached):
    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        weights = (q @ k.transpose(-2, -1) * SCALE).exp()
        return (weights / weights.sum(-1, keepdim=True)) @ v


class StableSoftmax(Cached):
    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        scores = q @ k.transpose(-2, -1) * SCALE
        weights = torch.exp(scores - scores.max(-1, keepdim=True)[0])
        return (weights / weights.sum(-1, keepdim=True)) @ v


class LogSoftmax(Cached):
    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        return (q @ k.transpose(-2, -1) * SCALE).log_softmax(-1).exp() @ v


class QuerySoftmax(Cached):
    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        return (q @ k.transpose(-2, -1) * SCALE).softmax(-2) @ v


class CentredScores(Cached):
    """A reduction over the keys that is no softmax."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        scores = q @ k.transpose(-2, -1) * SCALE
        scores = scores - scores.mean(-1, keepdim=True)
        return scores.softmax(-1) @ v


class Differential(Cached):
    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        weights = (q @ k.transpose(-2, -1) * SCALE).softmax(-1)
        return (weights - 0.1 * (k[:, :, -q.shape[2] :] @ k.transpose(-2, -1)).softmax(-1)) @ v


class SummedScores(Cached):
    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        scores = q @ k.transpose(-2, -1) * SCALE
        return (scores + k[:, :, -q.shape[2] :] @ k.transpose(-2, -1)).softmax(-1) @ v


class SummedQueries(Plain):
    """The product with the values sums over the queries."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, end: int) -> Tensor:
        return (q @ k.transpose(-2, -1) * SCALE).softmax(-1).transpose(-2, -1) @ v


class OtherValues(Cached):
    """Values that are no tokens."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        values = self.table[:end, : WIDTH // HEADS]
        return F.scaled_dot_product_attention(q, k, values.expand(2, HEADS, -1, -1))


class CachedKeysOutside(Cached):
    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        return F.scaled_dot_product_attention(q + k.mean(2, keepdim=True), k, v)


class CachedKeysInPlace(Cached):
    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        return F.scaled_dot_product_attention(q, k.mul_(1.01), v)


class KeysInArithmetic(Cached):
    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        return (q @ k.transpose(-2, -1) * (end + 1)).softmax(-1) @ v


# Library functions that do more.


class Window(Cached):
    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return flash_attn_func(q, k, v, window_size=[8, 8]).transpose(1, 2)


class SoftCap(Cached):
    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return flash_attn_func(q, k, v, softcap=20.0).transpose(1, 2)


class FlashCausal(Plain):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, end: int) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return flash_attn_func(q, k, v, causal=True).transpose(1, 2)


class HiddenKeys(Plain):
    """Keys and values are the hidden state, as no layer made them."""

    def block(self, x: Tensor, layer: int, keys: list[Tensor], values: list[Tensor], end: int) -> Tensor:
        q, _, _ = self.qkv[layer](F.layer_norm(x, (WIDTH,))).chunk(3, -1)
        x = x + self.out[layer](F.scaled_dot_product_attention(q, x, x))
        return x + self.mlp[layer](F.silu(F.layer_norm(x, (WIDTH,))))


class SizesByKeyword(Cached):
    """The token count is stated by keyword."""

    def feed(self, x: Tensor, end: int) -> Tensor:
        return torch.reshape(x, shape=(x.shape[0], x.shape[1], WIDTH))


class OneLayer(Cached):
    """The second layer alone is odd; the first one could be pruned."""

    def block(self, x: Tensor, layer: int, keys: list[Tensor], values: list[Tensor], end: int) -> Tensor:
        self.odd = layer == 1
        return super().block(x, layer, keys, values, end)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        return self.other(q, k, v, end) if self.odd else super().mix(q, k, v, end)

    def other(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return flash_attn_func(q, k, v, softcap=20.0).transpose(1, 2)


class FlexValues(Cached):
    """Scores are changed by what a token is, not by where it stands."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        loudness = q.mean((1, 3))

        def change(score: Tensor, b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return score + loudness[b, query]

        return flex_attention(q, k, v, score_mod=change)


class FlexLength(Cached):
    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        tokens = q.shape[2]
        return flex_attention(q, k, v, score_mod=lambda score, b, h, query, key: score / tokens)


class FlexOwnLength(Plain):
    """Positions as shares of the token count, in attention without a cache."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, end: int) -> Tensor:
        tokens = q.shape[2]
        return flex_attention(q, k, v, lambda score, b, h, query, key: score * (1 + query / tokens))


class FlexBlocks(Cached):
    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        blocks = create_block_mask(lambda b, h, q, k: k >= 0, None, None, q.shape[2], end, device="cpu")
        return flex_attention(q, k, v, block_mask=blocks)


# Random numbers.


class AttentionDropout(Cached):
    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=1e-9)


class Dropout(Plain):
    def feed(self, x: Tensor, end: int) -> Tensor:
        return F.dropout(x, 1e-9, training=True)


class Noise(Plain):
    def feed(self, x: Tensor, end: int) -> Tensor:
        return x + 0.0 * torch.rand_like(x)
