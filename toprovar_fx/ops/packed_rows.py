"""Operators `toprovar::packed_self_attention`, `packed_cross_attention`: packed kernels called by batch rows.

Variable-length kernels take the tokens of all batch rows on one axis and cumulative lengths that tell them
apart. Here the tokens keep their axis, and the lengths are made of it, so that rows may be left out before.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .._torch_private import parameter_names, required_parameters

# Names that kernels have for the same thing: flash-attn's, then those of torch.nn.attention.varlen.
QUERY_STARTS = ("cu_seqlens_q", "cu_seq_q")
KEY_STARTS = ("cu_seqlens_k", "cu_seq_k")
MOST_QUERIES = ("max_seqlen_q", "max_q")
MOST_KEYS = ("max_seqlen_k", "max_k")
SCALES = ("softmax_scale", "scale")
GROUPED = "enable_gqa"
# What a kernel may demand to be given although it changes nothing.
_NEUTRAL = {"dropout_p": 0.0, "causal": False, "is_causal": False}


@torch.library.custom_op("toprovar::packed_self_attention", mutates_args=())
def packed_self_attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None, kernel: str) -> Tensor:
    """Attention of every batch row to as many keys of its own.

    Args:
        q: queries `[R, L, H, E]`.
        k: keys `[R, Lk, H', E]`, of H or fewer heads.
        v: values, as the keys.
        scale: softmax scale; None for the kernel's own, 1 / sqrt(E).
        kernel: registered name of the packed kernel, such as "flash_attn::_flash_attn_varlen_forward".

    Returns:
        `[R, L, H, E]` in the dtype of `q`.
    """
    length = k.shape[1]
    starts = _starts(len(k), length, k.device)
    return _attend(q, k.flatten(0, 1), v.flatten(0, 1), starts, length, scale, kernel)


@packed_self_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, scale: float | None, kernel: str) -> Tensor:
    return q.new_empty(q.shape)


@torch.library.custom_op("toprovar::packed_cross_attention", mutates_args=())
def packed_cross_attention(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor, longest: int, scale: float | None, kernel: str
) -> Tensor:
    """Attention of batch row r to keys `starts[r]` to `starts[r + 1]`.

    Args:
        q: queries `[R, L, H, E]`.
        k: keys of all rows one after another, `[N, H', E]`.
        v: values, as the keys.
        starts: first key of each row and their total, `[R + 1]` int32.
        longest: most keys of a row.
        scale: softmax scale; None for the kernel's own, 1 / sqrt(E).
        kernel: registered name of the packed kernel.

    Returns:
        `[R, L, H, E]` in the dtype of `q`.
    """
    return _attend(q, k, v, starts, longest, scale, kernel)


@packed_cross_attention.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor, longest: int, scale: float | None, kernel: str
) -> Tensor:
    return q.new_empty(q.shape)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor, longest: int, scale: float | None, kernel: str
) -> Tensor:
    rows, length = q.shape[:2]
    namespace, _, name = kernel.partition("::")
    function = getattr(getattr(torch.ops, namespace), name).default
    known = set(parameter_names(function))
    given: dict[str, Any] = {
        name: value for name, value in _NEUTRAL.items() if name in required_parameters(function)
    }
    given |= {
        _named(QUERY_STARTS, known): _starts(rows, length, q.device),
        _named(KEY_STARTS, known): starts,
        _named(MOST_QUERIES, known): length,
        _named(MOST_KEYS, known): longest,
    }
    if scale is None and set(SCALES) & set(required_parameters(function)):
        scale = 1 / math.sqrt(q.shape[-1])
    if scale is not None:
        given[_named(SCALES, known)] = scale
    if GROUPED in known and q.shape[2] != k.shape[1]:
        given[GROUPED] = True
    found = function(q.flatten(0, 1), k, v, **given)
    mixed: Tensor = found[0] if isinstance(found, (tuple, list)) else found
    # The result must not be memory that the kernel was given or shares with another result.
    return mixed.unflatten(0, (rows, length)).clone(memory_format=torch.contiguous_format)


def _named(names: tuple[str, ...], known: set[str]) -> str:
    return next(name for name in names if name in known)


def _starts(rows: int, length: int, device: torch.device) -> Tensor:
    """Where `rows` rows of `length` tokens begin, and where the last one ends: `[rows + 1]` int32."""
    return torch.arange(rows + 1, dtype=torch.int32, device=device) * length
