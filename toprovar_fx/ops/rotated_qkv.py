"""Operator `toprovar::rotated_qkv`: all between the projection of a cosine attention and the attention."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .rotate_pairs import rotate_pairs
from .triton_found import has_triton

# Of the kernel; elsewhere any will do.
KERNEL_DTYPES = (torch.bfloat16, torch.float16)
KERNEL_WIDTHS = (16, 32, 64, 128, 256)


@torch.library.custom_op("toprovar::rotated_qkv", mutates_args=("keys", "values"))
def rotated_qkv(
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
    keep: Tensor | None = None,
) -> Tensor:
    """Normalise and rotate queries and keys, add the biases, and write keys and values to their cache slots.

    ::

        query = rotate(normalize(q + q_bias) * exp(min(log_factor, max_log_factor)))
        keys[:, :, start : start + L] = rotate(normalize(k))
        values[:, :, start : start + L] = v + v_bias

    in float32, rounded once. On CUDA one kernel, which reads and writes every number once; elsewhere, and for
    dtypes or widths that it does not take, the operators of the model, bit for bit.

    Args:
        qkv: `[R, L, 3, H, D]`.
        q_bias: `[H D]`.
        v_bias: `[H D]`.
        log_factor: H numbers, of any shape.
        max_log_factor: their upper bound.
        cos: cosines of the angles of the channel pairs, `[1 or R, 1, L, D / 2]` float32, any strides.
        sin: sines, as `cos`.
        keys: cache `[R, H, slots, D]` in the dtype of `qkv`, any strides; written.
        values: as `keys`, another tensor; written.
        start: the first slot to write.
        keep: rows of a table that all batch rows share, where the tokens stand, `[R, L]` int64; by default
            row i is that of token i.

    Returns:
        Queries `[R, H, L, D]`, laid out as `[R, L, H, D]` in memory, so that attention's result is, too.
    """
    _, tokens, _, heads, width = qkv.shape
    out = _empty_queries(qkv)
    if qkv.is_cuda and has_kernel(qkv.dtype, width):
        from .triton_rotation import launch

        with torch.cuda.device(qkv.device):
            launch(
                qkv, q_bias, v_bias, log_factor, max_log_factor, cos, sin, keys, values, start, keep, out
            )  # fmt: skip
        return out.transpose(1, 2)
    if keep is not None:
        cos, sin = cos[0, 0][keep][:, None], sin[0, 0][keep][:, None]
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    query = query.float() + q_bias.view(1, heads, 1, -1)
    factor = log_factor.float().clamp_max(max_log_factor).exp().view(1, heads, 1, 1)
    slots = slice(start, start + tokens)
    out.transpose(1, 2).copy_(rotate_pairs(F.normalize(query, dim=-1) * factor, cos, sin))
    keys[:, :, slots] = rotate_pairs(F.normalize(key.float(), dim=-1), cos, sin).to(qkv.dtype)
    values[:, :, slots] = value + v_bias.to(qkv.dtype).view(1, heads, 1, -1)
    return out.transpose(1, 2)


@rotated_qkv.register_fake
def _(qkv: Tensor, *others: object, **named: object) -> Tensor:
    return _empty_queries(qkv).transpose(1, 2)


def _empty_queries(qkv: Tensor) -> Tensor:
    rows, tokens, _, heads, width = qkv.shape
    return qkv.new_empty(rows, tokens, heads, width)


def has_kernel(dtype: torch.dtype, width: int) -> bool:
    """Whether there is a kernel for heads of this width: half precision, a power of two from 16 to 256."""
    return dtype in KERNEL_DTYPES and width in KERNEL_WIDTHS and has_triton()
