"""Operator ``toprovar::attention``: attention by whichever kernel is fastest at its sizes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .triton_found import has_triton


@torch.library.custom_op("toprovar::attention", mutates_args=())
def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """Return ``softmax(scale q k^T + mask) v``.

    On Hopper, in half precision, the kernel of `gluon_dealt_attention.py` where it was measured to be faster
    (`attention_plan.py`).
    Few keys have a kernel of their own (`triton_few_keys.py`).
    Elsewhere what ``torch.nn.functional.scaled_dot_product_attention`` returns, bit for bit.

    Args:
        q: Queries ``[B, H, Lq, E]``, floating point, any strides.
        k: Keys ``[B, Hk, Lk, E]`` with H a multiple of Hk; head h attends to key head ``h // (H / Hk)``.
        v: Values ``[B, Hk, Lk, Ev]``.
        scale: Factor of the logits.
        mask: Added to them, of any shape that spreads to ``[B, H, Lq, Lk]``.

    Returns:
        ``[B, H, Lq, Ev]`` in q's dtype, laid out as ``[B, Lq, H, Ev]`` in memory.

    Raises:
        ValueError: An operand has no four dimensions.
    """
    _check_rank(q, k, v)
    if q.is_cuda and has_triton():
        from . import attention_launch, triton_few_keys

        deal = attention_launch.deal_for(q, k, v, scale) if mask is None else None
        if deal is not None:
            with torch.cuda.device(q.device):
                return attention_launch.launch(q, k, v, scale, deal)
        if triton_few_keys.takes(q, k, v, mask):
            with torch.cuda.device(q.device):
                return triton_few_keys.launch(q, k, v, scale, mask)
    grouped = q.shape[1] != k.shape[1]
    attended = F.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=grouped)
    # Stock kernels for CUDA lay it out like this or like the queries: no copy for those of our models.
    return attended.transpose(1, 2).contiguous().transpose(1, 2)


@attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    _check_rank(q, k, v)
    batch, heads, queries, _ = q.shape
    return q.new_empty(batch, queries, heads, v.shape[3]).transpose(1, 2)


def _check_rank(q: Tensor, k: Tensor, v: Tensor) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != 4:
            raise ValueError(f"{name} {list(x.shape)}: expected four dimensions, [B, H, L, E]")
