"""Operator `toprovar::rotated_attention`: all between two projections of a cosine attention."""

from __future__ import annotations

import torch
from torch import Tensor

from .attention import attention
from .rotated_qkv import rotated_qkv
from .triton_found import has_triton


@torch.library.custom_op("toprovar::rotated_attention", mutates_args=("keys", "values"))
def rotated_attention(
    qkv: Tensor,
    q_bias: Tensor,
    v_bias: Tensor,
    log_factor: Tensor,
    max_log_factor: float,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    start: int,
    keep: Tensor | None,
    scale: float,
) -> Tensor:
    """`rotated_qkv`, then `attention` of its queries to the first ``start + L`` keys of the cache.

    On Hopper one kernel for few tokens and keys, which each of the two takes little more than a launch for.

    Args:
        qkv: `[R, L, 3, H, D]`.
        q_bias: as `rotated_qkv`.
        v_bias: as `rotated_qkv`.
        log_factor: as `rotated_qkv`.
        max_log_factor: as `rotated_qkv`.
        cos: as `rotated_qkv`.
        sin: as `rotated_qkv`.
        keys: cache `[R, H, slots, D]`; written.
        values: as `keys`.
        start: the first slot to write.
        keep: as `rotated_qkv`.
        scale: of the logits.

    Returns:
        `[R, H, L, D]`, laid out as `[R, L, H, D]` in memory.
    """
    given = qkv, q_bias, v_bias, log_factor, max_log_factor, cos, sin, keys, values, start, keep
    if qkv.is_cuda and has_triton():
        from . import triton_rotated_attention

        if triton_rotated_attention.takes(qkv, keys, values, start):
            with torch.cuda.device(qkv.device):
                return triton_rotated_attention.launch(*given, scale)
    queries = rotated_qkv(*given)
    end = start + qkv.shape[1]
    return attention(queries, keys[:, :, :end], values[:, :, :end], scale)


@rotated_attention.register_fake
def _(qkv: Tensor, *others: object) -> Tensor:
    rows, tokens, _, heads, width = qkv.shape
    return qkv.new_empty(rows, tokens, heads, width).transpose(1, 2)
