"""Operator `toprovar::sigma_ratio`: the two largest singular values of many small matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from ..criteria.scope import sigma_ratio as ratio_of
from .triton_found import has_triton

# A program holds a matrix and three squares of its shorter side in registers.
LARGEST_SIDE = 32


@torch.library.custom_op("toprovar::sigma_ratio", mutates_args=())
def sigma_ratio(matrix: Tensor, centre: bool = False) -> Tensor:
    """Return ``sigma1 / sigma2`` as `toprovar_fx.criteria.sigma_ratio`, which says how and how exactly.

    On CUDA and up to 32 rows and columns one kernel, which adds up in another order; elsewhere that function.

    Args:
        matrix: ``[..., h, w]``.
        centre: subtract the mean of all entries first.

    Returns:
        float32, ``[...]``, at least 1; +inf where sigma2 is 0.
    """
    if matrix.is_cuda and matrix.numel() and max(matrix.shape[-2:]) <= LARGEST_SIDE and has_triton():
        from .triton_sigma import launch

        with torch.cuda.device(matrix.device):
            return launch(matrix, centre)
    return ratio_of(matrix, centre)


@sigma_ratio.register_fake
def _(matrix: Tensor, centre: bool = False) -> Tensor:
    return matrix.new_empty(matrix.shape[:-2], dtype=torch.float32)
