"""Operators with the names, layouts and parameters of attention packages that CPUs do not have."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _tokens_first(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
    heads_first = (x.transpose(1, 2) for x in (q, k, v))
    mixed = F.scaled_dot_product_attention(*heads_first, scale=scale, enable_gqa=q.shape[2] != k.shape[2])
    return mixed.transpose(1, 2).contiguous()


@torch.library.custom_op("grammar::flash_attn_func", mutates_args=())
def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
) -> Tensor:
    """Attention of [R, L, H, E] to [R, T, Hk, E]."""
    assert not causal and not dropout_p
    return _tokens_first(q, k, v, softmax_scale)


@flash_attn_func.register_fake
def _(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False):
    return q.new_empty(q.shape)


@torch.library.custom_op("grammar::memory_efficient_attention", mutates_args=())
def memory_efficient_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: Tensor | None = None,
    p: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """Attention of [R, L, H, E] to [R, T, H, E]."""
    assert attn_bias is None and not p
    return _tokens_first(query, key, value, scale)


@memory_efficient_attention.register_fake
def _(query, key, value, attn_bias=None, p=0.0, scale=None):
    return query.new_empty(query.shape)
