"""Floating-point operations as `torch.utils.flop_counter` counts them, with the operators it leaves out."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from .ops import attention_entropy  # noqa: F401 - registers the operator counted below

Shape = Any


def flop_counter() -> FlopCounterMode:
    """A counter that also knows the CPU's flash attention and the entropy operator."""
    mapping = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        torch.ops.toprovar.attention_entropy: _entropy,
    }
    return FlopCounterMode(display=False, custom_mapping=mapping)


def _attention(
    query: Shape, key: Shape, value: Shape, *args: Any, out_shape: Shape = None, **kwargs: Any
) -> int:
    return sdpa_flop_count(query, key, value)


def _entropy(
    q: Shape, k: Shape, scale: float, mean_heads: bool = True, first_key: int = 0, *, out_shape: Shape = None
) -> int:
    batch, heads, queries, width = q
    return 2 * batch * heads * queries * (k[2] - first_key) * width
