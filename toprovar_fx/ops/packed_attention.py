"""Operator `toprovar::packed_attention`: attention of token rows to packed texts of different lengths."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Variable-length kernels that were met so far; a graph names one by its number.
_KERNELS: list[Callable[..., Tensor]] = []


def kernel_number(kernel: Callable[..., Tensor]) -> int:
    """The number by which `packed_attention` calls `kernel`.

    Args:
        kernel: with the parameters of flash-attn's `flash_attn_varlen_kvpacked_func`.
    """
    for number, known in enumerate(_KERNELS):
        if known is kernel:
            return number
    _KERNELS.append(kernel)
    return len(_KERNELS) - 1


@torch.library.custom_op("toprovar::packed_attention", mutates_args=())
def packed_attention(
    q: Tensor, kv: Tensor, starts: Tensor, longest: int, scale: float, kernel: int
) -> Tensor:
    """Let every token of batch row r attend to text r.

    The token count enters here alone, so rows of `q` may be left out before the operator.

    Args:
        q: queries, `[R, L, H * E]`. As flash-attn takes no fp32, fp32 runs in bfloat16.
        kv: keys and values of all texts one after another, `[N, 2, H, E]`.
        starts: first row of each text in `kv` and their total, `[R + 1]` int32.
        longest: length of the longest text.
        scale: softmax scale.
        kernel: `kernel_number` of the kernel to call.

    Returns:
        `[R, L, H * E]` in the dtype of `q`.
    """
    rows, length, width = q.shape
    heads, head_width = kv.shape[2:]
    dtype = torch.bfloat16 if q.dtype == torch.float32 else q.dtype
    mixed = _KERNELS[kernel](
        q=q.reshape(rows * length, heads, head_width).to(dtype),
        kv=kv.to(dtype),
        cu_seqlens_q=torch.arange(0, (rows + 1) * length, length, dtype=torch.int32, device=q.device),
        cu_seqlens_k=starts,
        max_seqlen_q=length,
        max_seqlen_k=longest,
        dropout_p=0,
        softmax_scale=scale,
    )
    return mixed.reshape(rows, length, width).to(q.dtype).contiguous()


@packed_attention.register_fake
def _(q: Tensor, kv: Tensor, starts: Tensor, longest: int, scale: float, kernel: int) -> Tensor:
    return q.new_empty(q.shape)
