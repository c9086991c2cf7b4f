"""Operator ``toprovar::projected_attention``: a linear layer that makes queries, and their attention."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .attention import attention
from .split_product import in_parts
from .triton_found import has_triton


@torch.library.custom_op("toprovar::projected_attention", mutates_args=())
def projected_attention(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: int,
    tokens: int,
    heads: int,
    k: Tensor,
    v: Tensor,
    scale: float,
    mask: Tensor | None = None,
) -> Tensor:
    """Return the `toprovar::attention` of the queries ``x W^T + bias``, seen as ``[B, Lq, H, E]``.

    On Hopper a product of few queries is summed in parts (`split_product.py`) where the kernel for few keys
    follows, which adds them up. Elsewhere the linear layer and the attention, bit for bit.

    Args:
        x: ``[..., C]``.
        weight: ``[H E, C]``.
        bias: ``[H E]``.
        rows: B.
        tokens: Lq.
        heads: H.
        k: Keys ``[B, Hk, Lk, E]``, as `toprovar::attention` takes them.
        v: Values ``[B, Hk, Lk, Ev]``.
        scale: Factor of the logits.
        mask: Added to them.

    Returns:
        ``[B, H, Lq, Ev]``, laid out as ``[B, Lq, H, Ev]`` in memory.
    """
    sums = _sums(x, weight, bias, rows, tokens, heads, k, v, mask)
    if sums is None:
        queries = F.linear(x, weight, bias).view(rows, tokens, heads, -1).transpose(1, 2)
        return attention(queries, k, v, scale, mask)
    from . import triton_few_keys

    with torch.cuda.device(x.device):
        apart = sums.view(len(sums), rows, tokens, heads, -1).transpose(2, 3)
        return triton_few_keys.launch_parts(apart, bias, k, v, scale, mask)


@projected_attention.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: int,
    tokens: int,
    heads: int,
    k: Tensor,
    v: Tensor,
    scale: float,
    mask: Tensor | None = None,
) -> Tensor:
    return x.new_empty(rows, tokens, heads, v.shape[3]).transpose(1, 2)


def _sums(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: int,
    tokens: int,
    heads: int,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
) -> Tensor | None:
    """Parts of the product; None where it is wanted whole, or the kernel for few keys does not follow."""
    if not x.is_cuda or not has_triton():
        return None
    from . import triton_few_keys

    alike = [each for each in (x, weight, bias) if each is not None]
    shape = rows, heads, tokens, weight.shape[0] // heads
    taken = (
        all(each.dtype == k.dtype and each.device == k.device for each in alike)
        and weight.is_contiguous()
        and (bias is None or bias.is_contiguous())
        and triton_few_keys.takes_shape(shape, k, v, mask)
    )
    if not taken:
        return None
    with torch.cuda.device(x.device):
        return in_parts(x.reshape(rows * tokens, -1), weight)
