"""Operator `toprovar::linear_gelu`: a linear layer whose matrix product activates what it stores."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .._torch_private import linear_gelu_rows
from . import streamed_product


@torch.library.custom_op("toprovar::linear_gelu", mutates_args=())
def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute `gelu(x W^T + b)`, the GELU approximated by tanh.

    On CUDA the sum is not rounded to the tensors' dtype before the activation, which is one rounding less
    than the two operators, and its array `[..., N]` is not written and read once more.

    Args:
        x: `[..., C]`.
        weight: `[N, C]`.
        bias: `[N]`.

    Returns:
        `[..., N]`, contiguous, in the dtype of `x`.
    """
    if x.device.type != "cuda":
        return F.gelu(F.linear(x, weight, bias), approximate="tanh")
    rows = x.reshape(-1, x.shape[-1])
    if streamed_product.takes(rows, weight, whole=True):
        made = streamed_product.streamed_linear(rows, weight, bias, gelu=True)
    else:
        made = linear_gelu_rows(rows, weight, bias)
    return made.view(*x.shape[:-1], weight.shape[0])


@linear_gelu.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))
