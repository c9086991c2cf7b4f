"""Floating-point operations as `torch.utils.flop_counter` counts them, with the operators it leaves out."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula, sdpa_flop_count

from ._torch_private import FlopCounter, flex_attention
from .ops import (  # noqa: F401 - registers the operators counted below
    attention,
    attention_entropy,
    attention_with_entropy,
    linear,
    linear_add,
    linear_gelu,
    logits_entropy,
    packed_attention,
    packed_cross_attention,
    packed_self_attention,
    projected_attention,
    rotated_attention,
)

Shape = Any


def flop_counter() -> FlopCounterMode:
    """A counter that also knows FlexAttention, the CPU's flash attention and the entropy operators."""
    mapping = {
        flex_attention: _flex_attention,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        torch.ops.toprovar.attention: _attention,
        torch.ops.toprovar.attention_entropy: _entropy,
        torch.ops.toprovar.masked_attention_entropy: _masked_entropy,
        torch.ops.toprovar.packed_attention: _packed,
        torch.ops.toprovar.packed_cross_attention: _packed_cross,
        torch.ops.toprovar.packed_self_attention: _packed_self,
        torch.ops.toprovar.projected_attention: _projected,
        torch.ops.toprovar.rotated_attention: _rotated,
        torch.ops.toprovar.linear: _linear,
        torch.ops.toprovar.linear_gelu: _linear,
        torch.ops.toprovar.linear_add: _linear,
        torch.ops.toprovar.linear_add_norm: _linear,
        torch.ops.toprovar.linear_add_rows: _linear,
    }
    return FlopCounter(display=False, custom_mapping=mapping)


def _flex_attention(query: Shape, key: Shape, value: Shape, *args: Any, **kwargs: Any) -> int:
    # Its two products, whatever a score_mod adds; every query head has keys, its own or a group's.
    batch, heads, queries, width = query
    return 2 * batch * heads * queries * key[2] * (width + value[3])


def _attention(
    query: Shape, key: Shape, value: Shape, *args: Any, out_shape: Shape = None, **kwargs: Any
) -> int:
    return sdpa_flop_count(query, key, value)


def _linear(x: Shape, weight: Shape, *args: Any, **kwargs: Any) -> int:
    outputs, inputs = weight
    return 2 * math.prod(x[:-1]) * outputs * inputs


def _projected(
    x: Shape, weight: Shape, bias: Shape, rows: int, tokens: int, heads: int, k: Shape, v: Shape,
    *args: Any, **kwargs: Any,
) -> int:  # fmt: skip
    return _linear(x, weight) + sdpa_flop_count((rows, heads, tokens, weight[0] // heads), k, v)


def _rotated(qkv: Shape, *args: Any, **kwargs: Any) -> int:
    rows, tokens, _, heads, width = qkv
    # Behind the caches comes the first slot that is written.
    keys = rows, heads, args[8] + tokens, width
    return sdpa_flop_count((rows, heads, tokens, width), keys, keys)


def _entropy(
    q: Shape, k: Shape, scale: float, mean_heads: bool = True, first_key: int = 0, *, out_shape: Shape = None
) -> int:
    batch, heads, queries, width = q
    return 2 * batch * heads * queries * (k[2] - first_key) * width


def _masked_entropy(
    q: Shape,
    k: Shape,
    mask: Shape,
    scale: float,
    mean_heads: bool = True,
    first_key: int = 0,
    *,
    out_shape: Shape = None,
) -> int:
    return _entropy(q, k, scale, mean_heads, first_key)


@register_flop_formula(torch.ops.toprovar.attention_with_entropy, get_raw=True)
def _attention_with_entropy(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    mean_heads: bool = True,
    first_key: int = 0,
    *,
    out_val: Any = None,
) -> int:
    # On CUDA the entropies come out of the same pass over the keys; elsewhere they are a second one.
    own = 0 if q.is_cuda else _entropy(q.shape, k.shape, scale, mean_heads, first_key)
    return sdpa_flop_count(q.shape, k.shape, v.shape) + own


def _packed(
    q: Shape, kv: Shape, starts: Shape, longest: int, scale: float, kernel: int, *, out_shape: Shape = None
) -> int:
    # Every text is read by the tokens of its own row: the lengths of all texts sum to kv's rows.
    _, tokens, width = q
    return 4 * tokens * kv[0] * width


def _packed_cross(q: Shape, k: Shape, v: Shape, *given: Any, out_shape: Shape = None, **named: Any) -> int:
    _, tokens, heads, width = q
    return 2 * tokens * k[0] * heads * (width + v[-1])


def _packed_self(q: Shape, k: Shape, v: Shape, *given: Any, out_shape: Shape = None, **named: Any) -> int:
    rows, tokens, heads, width = q
    return 2 * rows * tokens * k[1] * heads * (width + v[-1])
