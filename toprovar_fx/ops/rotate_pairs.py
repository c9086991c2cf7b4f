"""Rotation of channel pairs: the arithmetic that the model's RoPE and the operator `rotated_qkv` share."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate adjacent channel pairs ``(2 m, 2 m + 1)`` by angles.

    Args:
        x: ``[..., D]``.
        cos: cosines of the angles, ``[..., D / 2]``.
        sin: sines, as ``cos``.

    Returns:
        ``[..., D]``, in the dtype that the operands promote to.
    """
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)
