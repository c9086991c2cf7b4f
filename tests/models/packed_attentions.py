"""Step models whose attention kernels take packed rows, in the manner of `attentions.py`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from .attentions import HEAD, HEADS, WIDTH, Attending
from .stand_ins import (
    flash_attn_varlen_forward,
    flash_attn_varlen_func,
    varlen_attn,
    varlen_attn_operator,
)


def steps(rows: int, length: int) -> Tensor:
    """Cumulative lengths of equally long rows, as upstream Infinity computes them."""
    return torch.arange(0, (rows + 1) * length, length, dtype=torch.int32)


class PackedFlattened(Attending):
    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        rows, length = q.shape[0], q.shape[2]
        q, k, v = (each.transpose(1, 2).flatten(0, 1) for each in (q, k, v))
        mixed = flash_attn_varlen_func(q, k, v, steps(rows, length), steps(rows, end), length, end)
        return mixed.unflatten(0, (rows, -1)).transpose(1, 2)


class PackedReshaped(Attending):
    """Lengths by a product, made once for both; heads are joined as the rows are parted."""

    heads_first = False

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, end: int) -> Tensor:
        rows, length = q.shape[:2]
        k, v = self.remember(k, v, keys, values, end)
        count = torch.arange(rows + 1, dtype=torch.int32)
        mixed = varlen_attn(
            q.reshape(rows * length, HEADS, HEAD),
            k.reshape(-1, HEADS, HEAD),
            v.reshape(-1, HEADS, HEAD),
            cu_seq_q=count * length,
            cu_seq_k=end * count,
            max_q=length,
            max_k=end,
        )
        return mixed.view(rows, length, WIDTH).unflatten(-1, (HEADS, HEAD))


class PackedGrouped(Attending):
    """Heads that share keys; lengths by a padded sum; casts on the way."""

    kv_heads = 2
    heads_first = False

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, end: int) -> Tensor:
        rows, length = q.shape[:2]
        k, v = self.remember(k, v, keys, values, end)
        lengths = [F.pad(torch.full((rows,), n).cumsum(0), (1, 0)).to(torch.int32) for n in (length, end)]
        packed = q.flatten(2).view(-1, HEADS, HEAD).contiguous().to(torch.float32)
        keys, values = (each.flatten(0, 1).contiguous() for each in (k, v))
        mixed, _ = varlen_attn_operator(
            packed, keys, values, *lengths, length, end, scale=0.5, enable_gqa=True, window_size=[-1, -1]
        )
        return mixed.reshape(rows, length, HEADS, HEAD)


class PackedOperator(Attending):
    """The operator that `flash_attn_varlen_func` calls; one length too far in the range."""

    scale = 0.3

    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        rows, length = q.shape[0], q.shape[2]
        q, k, v = (each.transpose(1, 2).flatten(0, 1) for each in (q, k, v))
        starts, key_starts = torch.arange(0, rows * length + 1, length), steps(rows, end)
        mixed, _ = flash_attn_varlen_forward(
            q, k, v, starts, key_starts, length, end, 0.0, 0.3, causal=False, window_size_left=-1
        )
        return mixed.view(rows, length, HEADS, HEAD).transpose(1, 2)


class PackedText(Attending):
    """Cross-attention to texts of different lengths behind self-attention."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("packed_text", torch.randn(7, HEADS, HEAD))
        self.register_buffer("text_starts", torch.tensor([0, 3, 7], dtype=torch.int32))

    def mix(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)

    def rest(self, x: Tensor, mixed: Tensor, layer: int) -> Tensor:
        rows, length = x.shape[:2]
        q = F.layer_norm(x, (WIDTH,)).view(rows * length, HEADS, HEAD)
        text, starts = self.packed_text, steps(rows, length)
        seen, _ = flash_attn_varlen_forward(
            q, text, text, starts, self.text_starts, length, 4, 0.0, 0.7, False
        )
        return super().rest(x, mixed, layer) + seen.view(rows, length, -1)


PACKED: Mapping[str, type[Attending]] = {
    kind.__name__: kind
    for kind in (PackedFlattened, PackedReshaped, PackedGrouped, PackedOperator, PackedText)
}
