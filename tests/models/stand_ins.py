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


def _by_rows(
    q: Tensor, k: Tensor, v: Tensor, starts_q: Tensor, starts_k: Tensor, scale: float | None
) -> Tensor:
    parts = []
    for row in range(len(starts_q) - 1):
        own = slice(int(starts_q[row]), int(starts_q[row + 1]))
        seen = slice(int(starts_k[row]), int(starts_k[row + 1]))
        parts.append(_attend(q[None, own], k[None, seen], v[None, seen], scale)[0])
    return torch.cat(parts)


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
    return _by_rows(q, k, v, cu_seqlens_q, cu_seqlens_k, None)


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


@torch.library.custom_op("standin::_flash_attn_varlen_forward", mutates_args=())
def flash_attn_varlen_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int = -1,
    window_size_right: int = -1,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    return_softmax: bool = False,
    block_table: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    assert max_seqlen_q == int((cu_seqlens_q[1:] - cu_seqlens_q[:-1]).max())
    assert max_seqlen_k == int((cu_seqlens_k[1:] - cu_seqlens_k[:-1]).max())
    mixed = _by_rows(q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale)
    return mixed, q.new_zeros(q.shape[1], q.shape[0], dtype=torch.float32)


@flash_attn_varlen_forward.register_fake
def _(q, k, v, *rest, **named):
    return torch.empty_like(q), q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)


@torch.library.custom_op("standin::_varlen_attn", mutates_args=())
def varlen_attn_operator(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    is_causal: bool = False,
    scale: float | None = None,
    window_size: list[int] | None = None,
    enable_gqa: bool = False,
    num_splits: int | None = None,
) -> tuple[Tensor, Tensor]:
    assert enable_gqa or query.shape[1] == key.shape[1]
    return _by_rows(query, key, value, cu_seq_q, cu_seq_k, scale), query.new_zeros(1)


@varlen_attn_operator.register_fake
def _(query, key, value, *rest, **named):
    return torch.empty_like(query), query.new_empty(1)
