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
from .triton_chain import begin, chained

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


def tiles_for(queries: int, keys: int, masked: bool = False) -> Tiles:
    """The tiles that were fastest at such sizes.

    Few queries go to many programs, which then read all their keys at once; with a mask half as many, as
    padding is not read.
    """
    if queries <= 64:
        taken = min(64 if masked else 128, max(32, triton.next_power_of_2(keys)))
        return Tiles(16, taken, 1 if keys <= taken or masked else 2)
    if queries < 400:
        return Tiles(64, 64, 1 if keys <= 64 else 2)
    return Tiles(64, 32, 1 if keys <= 32 else 2)


def takes(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> bool:
    """Whether the kernel runs these operands, and was measured to be faster at such sizes."""
    alike = q.dtype == k.dtype and q.device == k.device and q.stride(3) == 1
    return alike and takes_shape(tuple(q.shape), k, v, mask)


def takes_shape(shape: tuple[int, ...], k: Tensor, v: Tensor, mask: Tensor | None) -> bool:
    """As `takes`, for queries ``[B, H, Lq, E]`` that are still to be made, like the keys."""
    batch, heads, queries, width = shape
    keys = k.shape[2]
    return (
        k.dtype in (torch.bfloat16, torch.float16)
        and k.dtype == v.dtype
        and k.device == v.device
        and capability(k.device) == HOPPER
        and width == k.shape[3] == v.shape[3]
        and width in WIDTHS
        and k.shape[:3] == v.shape[:3]
        and k.shape[0] == batch
        and 0 < batch * heads <= MOST_PROGRAMS
        and heads % max(1, k.shape[1]) == 0
        and k.stride(3) == v.stride(3) == 1
        and 0 < keys <= MOST_KEYS
        and 0 < batch * heads * queries * keys <= MOST_PAIRS
        and (mask is None or _is_of_keys(mask, batch, keys, k.device))
    )


def _is_of_keys(mask: Tensor, batch: int, keys: int, device: torch.device) -> bool:
    """Whether a mask is a number per key, to be added to the logits of all heads and queries."""
    shapes = [(rows, 1, 1, keys) for rows in (1, batch)]
    return mask.is_floating_point() and mask.shape in shapes and mask.device == device and mask.stride(3) == 1


# Lengths change from scale to scale: one compilation for all that take the same tiles.
@triton.jit(do_not_specialize=["queries", "keys"])
def few_keys_kernel(
    q, bias, k, v, mask, out, queries, keys, heads, group, factor, part,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, m_b, o_b, o_h, o_n,
    PARTS: tl.constexpr, BIAS: tl.constexpr, MASKED: tl.constexpr, MOST: tl.constexpr, D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Some queries of a head; the grid is ``[Lq / BLOCK_M, B H]``. ``factor``: the scale times log2(e).

    PARTS: of queries of which only sums in parts are there, in float32.
    """
    LOG2E: tl.constexpr = 1.4426950408889634
    begin(CHAINED)
    row = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    channels = tl.arange(0, D)
    at = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    own = at[:, None] < queries
    q += row * q_b + head * q_h + at[:, None].to(tl.int64) * q_n + channels
    x = tl.load(q, mask=own, other=0.0)
    if PARTS > 1:
        for other in tl.static_range(1, PARTS):
            x += tl.load(q + other * part, mask=own, other=0.0)
        if BIAS:
            x += tl.load(bias + head * D + channels).to(tl.float32)[None, :]
        x = x.to(k.dtype.element_ty)
    k += row * k_b + head // group * k_h
    v += row * v_b + head // group * v_h
    if MASKED:
        # Padding is behind what counts: no more keys are read than those.
        every = tl.arange(0, MOST)
        given = tl.load(mask + row * m_b + every, mask=every < keys, other=float("-inf")).to(tl.float32)
        keys = tl.max(tl.where(given == float("-inf"), 0, every + 1), 0)
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
    return launch_parts(q[None], None, k, v, scale, mask, tiles)


def launch_parts(
    parts: Tensor,
    bias: Tensor | None,
    k: Tensor,
    v: Tensor,
    scale: float,
    mask: Tensor | None = None,
    tiles: Tiles | None = None,
) -> Tensor:
    """Run the kernel on queries that are still to be added up.

    Args:
        parts: ``[S, B, H, Lq, E]``; queries for S = 1, else float32 and summed over S, and rounded, queries.
        bias: ``[H E]``, added to those of several parts.
        k: as `launch`.
        v: as `launch`.
        scale: as `launch`.
        mask: as `launch`.
        tiles: as `launch`.

    Returns:
        As `launch`.
    """
    count, batch, heads, queries, width = parts.shape
    keys = k.shape[2]
    tiles = tiles or tiles_for(queries, keys, mask is not None)
    out = k.new_empty(batch, queries, heads, width).transpose(1, 2)
    of_row = 0 if mask is None or len(mask) == 1 else mask.stride(0)
    most = 1 if mask is None else triton.next_power_of_2(keys)
    few_keys_kernel[(triton.cdiv(queries, tiles.queries), batch * heads)](
        parts, k if bias is None else bias, k, v, k if mask is None else mask, out, queries, keys, heads,
        heads // k.shape[1], scale * math.log2(math.e), parts.stride(0), *parts.stride()[1:4],
        *k.stride()[:3], *v.stride()[:3], of_row, *out.stride()[:3],
        PARTS=count, BIAS=bias is not None, MASKED=mask is not None, MOST=most,
        D=width, BLOCK_M=tiles.queries, BLOCK_N=tiles.keys, STAGES=tiles.stages, num_warps=4,
        **chained(out.device),
    )  # fmt: skip
    return out
