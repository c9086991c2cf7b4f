"""Operator ``toprovar::attention_with_entropy``: attention that also tells the entropy of every row."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .attention_entropy import attention_entropy, check_operands
from .cards import AMPERE, MOST_PROGRAMS, capability
from .triton_found import has_triton

# Widest heads of the kernel, by dtype.
_WIDEST_HEAD = {torch.float32: 128, torch.bfloat16: 256, torch.float16: 256}


@torch.library.custom_op("toprovar::attention_with_entropy", mutates_args=())
def attention_with_entropy(
    q: Tensor, k: Tensor, v: Tensor, scale: float, mean_heads: bool = True, first_key: int = 0
) -> tuple[Tensor, Tensor]:
    """Return ``softmax(scale q k^T) v`` and the entropy of every row of the softmax (eq. 2).

    On CUDA one kernel computes both in one pass over the keys, with fp32 statistics and without the attention
    matrix (`triton_attention.py`). On a CPU, and where that kernel does not apply (no Triton, cards of others
    than NVIDIA or before Ampere, float64, wider heads than 256 or in float32 than 128), they are two: stock
    attention, bit for bit what
    ``torch.nn.functional.scaled_dot_product_attention`` returns, and :func:`attention_entropy`.

    Args:
        q: Queries ``[B, H, Lq, E]``, floating point, any strides.
        k: Keys ``[B, Hk, Lk, E]`` with H a multiple of Hk; head h attends to key head ``h // (H / Hk)``.
        v: Values ``[B, Hk, Lk, Ev]``.
        scale: Factor of the logits. Logits have to be finite.
        mean_heads: Average the entropies over the heads, inside the kernel.
        first_key: Number of leading keys that the entropy leaves out (the output attends to all), to restrict
            it to the keys of the current scale.

    Returns:
        The output ``[B, H, Lq, Ev]`` in q's dtype, laid out as ``[B, Lq, H, Ev]`` in memory; the entropies in
        nats, float32, ``[B, Lq]`` if ``mean_heads`` else ``[B, H, Lq]``, never negative.

    Raises:
        ValueError: The shapes do not fit, or no key is left.
    """
    check_operands(q, k, first_key)
    if v.shape[:3] != k.shape[:3]:
        raise ValueError(f"v {list(v.shape)}: expected {list(k.shape[:3])} and any width, as k")
    if _has_kernel(q, k, v):
        from .triton_launch import launch

        with torch.cuda.device(q.device):
            return launch(q, k, v, scale, mean_heads, first_key)
    grouped = q.shape[1] != k.shape[1]
    attended = F.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=grouped)
    out = empty_output(q, v)
    if attended.stride() != out.stride() or attended.dtype != out.dtype:
        attended = out.copy_(attended)
    return attended, attention_entropy(q, k, scale, mean_heads, first_key)


@attention_with_entropy.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, scale: float, mean_heads: bool = True, first_key: int = 0
) -> tuple[Tensor, Tensor]:
    batch, heads, queries, _ = q.shape
    entropy = q.new_empty((batch, queries) if mean_heads else (batch, heads, queries), dtype=torch.float32)
    return empty_output(q, v), entropy


def empty_output(q: Tensor, v: Tensor) -> Tensor:
    """Return memory for attention to values ``[B, Hk, Lk, Ev]``, laid out as ``[B, Lq, H, Ev]``."""
    batch, heads, queries, _ = q.shape
    return q.new_empty(batch, queries, heads, v.shape[3]).transpose(1, 2)


def _has_kernel(q: Tensor, k: Tensor, v: Tensor) -> bool:
    if not q.is_cuda or q.numel() == 0 or not has_triton():
        return False
    if not (q.dtype == k.dtype == v.dtype and q.device == k.device == v.device and q.shape[3] == v.shape[3]):
        return False
    # Before Ampere there is no bfloat16, of which float32 products are made too, and at 128 channels too
    # little shared memory.
    if capability(q.device) < AMPERE or q.shape[0] * q.shape[1] > MOST_PROGRAMS:
        return False
    return q.shape[3] <= _WIDEST_HEAD.get(q.dtype, 0)
