"""Operator `toprovar::linear`: a linear layer whose weight is read ahead where its rows are few."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from . import streamed_product


@torch.library.custom_op("toprovar::linear", mutates_args=())
def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Compute ``x W^T``.

    On Hopper, in half precision, for few rows, by the kernel of `streamed_product.py`; else by the library.

    Args:
        x: `[..., C]`.
        weight: `[N, C]`.

    Returns:
        `[..., N]`, contiguous, in the dtype of `x`.
    """
    rows = x.reshape(-1, x.shape[-1])
    if streamed_product.takes(rows, weight, whole=True):
        return streamed_product.streamed_linear(rows, weight, None).view(*x.shape[:-1], -1)
    return F.linear(x, weight).contiguous()


@linear.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))
