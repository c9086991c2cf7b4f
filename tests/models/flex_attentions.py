"""Step models whose self-attention is FlexAttention, in the manner of `attentions.py`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from .attentions import HEAD, HEADS, WIDTH, Attending

CAP = 3.0


class Flex(Attending):
    """No score_mod, or one that does nothing."""

    scale = 0.3

    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        return flex_attention(q, k, v, score_mod=lambda score, b, h, i, j: score, scale=0.3)


class FlexGrouped(Attending):
    kv_heads = 2

    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        return flex_attention(q, k, v, enable_gqa=True)


class FlexLogSum(Attending):
    """What is attended to shrinks where the logits are low."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        mixed, log_sum = flex_attention(q, k, v, return_lse=True)
        return mixed * log_sum.sigmoid().unsqueeze(-1)

    def after(self, mixed: Tensor, logits: Tensor) -> Tensor:
        return mixed * logits.logsumexp(-1).sigmoid().transpose(1, 2).unsqueeze(-1)


class FlexSoftCap(Attending):
    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        def capped(score, b, h, i, j):
            return CAP * torch.tanh(score / CAP)

        return flex_attention(q, k, v, capped)

    def modified(self, logits: Tensor, places: Tensor) -> Tensor:
        return CAP * torch.tanh(logits / CAP)


class FlexHeads(Attending):
    """Factors by head, and by batch row and head, in shared key heads."""

    kv_heads = 2

    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        factors, more = self.table[0, 0], self.table[1]

        def scaled(score, b, h, i, j):
            return score * factors[h] * more[b, h]

        return flex_attention(q, k, v, score_mod=scaled, enable_gqa=True)

    def modified(self, logits: Tensor, places: Tensor) -> Tensor:
        factors = self.table[0, 0, :HEADS] * self.table[1, : len(logits), :HEADS]
        return logits * factors[..., None, None]


class FlexTemperature(Attending):
    """A factor by the query's place in the schedule."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        start, factors = end - q.shape[2], self.table[0, 0]

        def scaled(score, b, h, i, j):
            return score * factors[start + i]

        return flex_attention(q, k, v, score_mod=scaled)

    def modified(self, logits: Tensor, places: Tensor) -> Tensor:
        return logits * self.table[0, 0][places][:, None, :, None]


class FlexDistance(Attending):
    """A slope per head along the distance between query and key."""

    columns = True

    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        start, slopes = end - q.shape[2], self.table[0, 0]

        def biased(score, b, h, i, j):
            return score + 0.1 * slopes[h] * (start + i - j)

        return flex_attention(q, k, v, score_mod=biased)

    def bias(self, start: int, end: int) -> Tensor:
        distance = torch.arange(start, end)[:, None] - torch.arange(end)
        return 0.1 * self.table[0, 0, :HEADS, None, None] * distance


class FlexTable(Attending):
    columns = True

    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        table = self.table[:, end - q.shape[2] : end, :end]
        return flex_attention(q, k, v, score_mod=lambda score, b, h, i, j: score + table[h, i, j])

    def bias(self, start: int, end: int) -> Tensor:
        return self.table[:, start:end, :end]


class FlexOwnScale(Attending):
    """No cache: queries and keys are this scale's tokens."""

    cached = False

    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        start = end - q.shape[2]
        table = self.table[:, start:end, start:end]
        return flex_attention(q, k, v, score_mod=lambda score, b, h, i, j: score + table[h, i, j])

    def bias(self, start: int, end: int) -> Tensor:
        return self.table[:, start:end, start:end]


class FlexCross(Attending):
    """Cross-attention to a text, with a bias over the text, behind plain self-attention."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        return flex_attention(q, k, v)

    def rest(self, x: Tensor, mixed: Tensor, layer: int) -> Tensor:
        table = self.table[0]
        q = F.layer_norm(x, (WIDTH,)).unflatten(-1, (HEADS, HEAD)).transpose(1, 2)
        text = self.text.unflatten(-1, (HEADS, HEAD)).transpose(1, 2)
        seen = flex_attention(q, text, text, lambda score, b, h, i, j: score + table[b, j])
        return super().rest(x, mixed, layer) + seen.transpose(1, 2).flatten(2)


ROWS = (Flex, FlexGrouped, FlexLogSum, FlexSoftCap, FlexHeads, FlexTemperature, FlexOwnScale, FlexCross)
FLEX: Mapping[str, type[Attending]] = {kind.__name__: kind for kind in (*ROWS, FlexDistance, FlexTable)}
