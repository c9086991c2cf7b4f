"""Stand-ins for attention libraries that are not installed: operators of their names, layouts and arguments.

They compute by `scaled_dot_product_attention`; to the compiler they are as opaque as the originals.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float | None, bias: Tensor | None = None) -> Tensor:
    """[R, L, H, E] operands; key heads may be fewer."""
    heads_first = (operand.transpose(1, 2) for operand in (q, k, v))
    grouped = q.shape[2] != k.shape[2]
    mixed = F.scaled_dot_product_attention(*heads_first, attn_mask=bias, scale=scale, enable_gqa=grouped)
    return mixed.transpose(1, 2).contiguous()


@torch.library.custom_op("standin::flash_attn_func", mutates_args=())
def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: list[int] | None = None,
    softcap: float = 0.0,
) -> Tensor:
    assert not causal or q.shape[1] == k.shape[1]
    if causal:
        bias = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).tril()
        return _attend(q, k, v, softmax_scale, bias)
    return _attend(q, k, v, softmax_scale)


@flash_attn_func.register_fake
def _(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0):
    return torch.empty_like(q)


@torch.library.custom_op("standin::_flash_attn_forward", mutates_args=())
def flash_attn_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int = -1,
    window_size_right: int = -1,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    return_softmax: bool = False,
) -> tuple[Tensor, Tensor]:
    lse = q.new_zeros(q.shape[0], q.shape[2], q.shape[1], dtype=torch.float32)
    return _attend(q, k, v, softmax_scale), lse


@flash_attn_forward.register_fake
def _(q, k, v, dropout_p, softmax_scale, causal, *rest):
    return torch.empty_like(q), q.new_empty(q.shape[0], q.shape[2], q.shape[1], dtype=torch.float32)


@torch.library.custom_op("standin::flash_attn_varlen_func", mutates_args=())
def flash_attn_varlen_func(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_q: int, max_k: int
) -> Tensor:
    parts = []
    for row in range(len(cu_seqlens_q) - 1):
        own = slice(int(cu_seqlens_q[row]), int(cu_seqlens_q[row + 1]))
        seen = slice(int(cu_seqlens_k[row]), int(cu_seqlens_k[row + 1]))
        parts.append(_attend(q[None, own], k[None, seen], v[None, seen], None)[0])
    return torch.cat(parts)


@flash_attn_varlen_func.register_fake
def _(q, k, v, cu_seqlens_q, cu_seqlens_k, max_q, max_k):
    return torch.empty_like(q)


@torch.library.custom_op("standin::memory_efficient_attention", mutates_args=())
def memory_efficient_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: Tensor | None = None,
    p: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    return _attend(query, key, value, scale, attn_bias)


@memory_efficient_attention.register_fake
def _(query, key, value, attn_bias=None, p=0.0, scale=None):
    return torch.empty_like(query)


@torch.library.custom_op("standin::varlen_attn", mutates_args=())
def varlen_attn(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int
) -> Tensor:
    return flash_attn_varlen_func(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k).clone()


@varlen_attn.register_fake
def _(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k):
    return torch.empty_like(query)
