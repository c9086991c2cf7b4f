"""The kernel behind `toprovar::attention` for few keys, in plain Triton: any CUDA card, and the interpreter.

The first scales of a generation, and every scale over the text, attend to some dozens of keys, which takes
little more than a launch.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cards import HOPPER, MOST_PROGRAMS, capability

# Measured against stock attention on an H200, with 32 heads in all; see docs/results.md.
WIDTHS = (64, 128)
MOST_KEYS = 512
MOST_PAIRS = 32 * 4096 * 64


class Tiles(NamedTuple):
    """How the kernel is compiled.

    Attributes:
        queries: rows of a program.
        keys: keys per step.
        stages: tiles of keys in flight.
    """

    queries: int
    keys: int
    stages: int


def tiles_for(queries: int, keys: int) -> Tiles:
    """The tiles that were fastest at such sizes.

    Few queries go to many programs, which then read all their keys at once.
    """
    if queries <= 64:
        taken = min(128, max(32, triton.next_power_of_2(keys)))
        return Tiles(16, taken, 1 if keys <= taken else 2)
    if queries < 400:
        return Tiles(64, 64, 1 if keys <= 64 else 2)
    return Tiles(64, 32, 1 if keys <= 32 else 2)


def takes(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> bool:
    """Whether the kernel runs these operands, and was measured to be faster at such sizes."""
    batch, heads, queries, width = q.shape
    keys = k.shape[2]
    return (
        q.dtype in (torch.bfloat16, torch.float16)
        and q.dtype == k.dtype == v.dtype
        and q.device == k.device == v.device
        and capability(q.device) == HOPPER
        and width == k.shape[3] == v.shape[3]
        and width in WIDTHS
        and k.shape[:3] == v.shape[:3]
        and k.shape[0] == batch
        and 0 < batch * heads <= MOST_PROGRAMS
        and heads % max(1, k.shape[1]) == 0
        and q.stride(3) == k.stride(3) == v.stride(3) == 1
        and 0 < keys <= MOST_KEYS
        and 0 < batch * heads * queries * keys <= MOST_PAIRS
        and (mask is None or _is_of_keys(mask, batch, keys, q.device))
    )


def _is_of_keys(mask: Tensor, batch: int, keys: int, device: torch.device) -> bool:
    """Whether a mask is a number per key, to be added to the logits of all heads and queries."""
    shapes = [(rows, 1, 1, keys) for rows in (1, batch)]
    return mask.is_floating_point() and mask.shape in shapes and mask.device == device and mask.stride(3) == 1


# Lengths change from scale to scale: one compilation for all that take the same tiles.
@triton.jit(do_not_specialize=["queries", "keys"])
def few_keys_kernel(
    q, k, v, mask, out, queries, keys, heads, group, factor,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, m_b, o_b, o_h, o_n,
    MASKED: tl.constexpr, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Some queries of a head; the grid is ``[Lq / BLOCK_M, B H]``. ``factor``: the scale times log2(e)."""
    LOG2E: tl.constexpr = 1.4426950408889634
    row = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    channels = tl.arange(0, D)
    at = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    own = at[:, None] < queries
    x = tl.load(q + row * q_b + head * q_h + at[:, None].to(tl.int64) * q_n + channels, mask=own, other=0.0)
    k += row * k_b + head // group * k_h
    v += row * v_b + head // group * v_h
    peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    mass = tl.zeros((BLOCK_M,), tl.float32)
    sums = tl.zeros((BLOCK_M, D), tl.float32)
    for start in tl.range(0, keys, BLOCK_N, num_stages=STAGES):
        key = start + tl.arange(0, BLOCK_N)
        inside = key < keys
        slot = key.to(tl.int64)
        key_tile = tl.load(k + slot[None, :] * k_n + channels[:, None], mask=inside[None, :], other=0.0)
        values = tl.load(v + slot[:, None] * v_n + channels[None, :], mask=inside[:, None], other=0.0)
        logits = tl.dot(x, key_tile) * factor
        if MASKED:
            added = tl.load(mask + row * m_b + slot, mask=inside, other=0.0).to(tl.float32)
            logits += added[None, :] * LOG2E
        logits = tl.where(inside[None, :], logits, float("-inf"))
        higher = tl.maximum(peak, tl.max(logits, 1))
        # Before the first key that counts the peak is -inf, and -inf less -inf no number.
        base = tl.where(higher == float("-inf"), 0.0, higher)
        p = tl.exp2(logits - base[:, None])
        decay = tl.exp2(peak - base)
        mass = mass * decay + tl.sum(p, 1)
        sums = tl.dot(p.to(values.dtype), values, sums * decay[:, None])
        peak = higher
    # Zeros for a query to which the mask leaves no key, as in stock attention.
    mass = tl.where(mass == 0.0, 1.0, mass)
    result = (sums / mass[:, None]).to(out.dtype.element_ty)
    tl.store(out + row * o_b + head * o_h + at[:, None].to(tl.int64) * o_n + channels, result, mask=own)


def launch(
    q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None, tiles: Tiles | None = None
) -> Tensor:
    """Run the kernel.

    Args:
        q: Queries ``[B, H, Lq, E]``, bfloat16 or float16, E a power of 2 from 16 on, without gaps.
        k: Keys ``[B, Hk, Lk, E]``, channels without gaps.
        v: Values, like keys.
        scale: Factor of the logits.
        mask: Added to the logits, ``[B or 1, 1, 1, Lk]``; a query that it leaves no key gets zeros.
        tiles: By default `tiles_for`.

    Returns:
        ``[B, H, Lq, E]``, laid out as ``[B, Lq, H, E]`` in memory.
    """
    batch, heads, queries, width = q.shape
    keys = k.shape[2]
    tiles = tiles or tiles_for(queries, keys)
    out = q.new_empty(batch, queries, heads, width).transpose(1, 2)
    of_row = 0 if mask is None or len(mask) == 1 else mask.stride(0)
    few_keys_kernel[(triton.cdiv(queries, tiles.queries), batch * heads)](
        q, k, v, q if mask is None else mask, out, queries, keys, heads, heads // k.shape[1],
        scale * math.log2(math.e), *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], of_row,
        *out.stride()[:3],
        MASKED=mask is not None, D=width, BLOCK_M=tiles.queries, BLOCK_N=tiles.keys, STAGES=tiles.stages,
        num_warps=4,
    )  # fmt: skip
    return out
