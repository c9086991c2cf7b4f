"""Joins the attention of a row over several ranges of keys, in plain Triton: any CUDA card, the interpreter.

Range i leaves ``acc_i = sum 2^(s - peak_i) v``, ``mass_i = sum 2^(s - peak_i)`` and its peak, with ``s`` the
logits in base 2. The output is ``sum 2^(peak_i - peak) acc_i / sum 2^(peak_i - peak) mass_i``, where peak is
the largest of the peaks.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Rows of a program: 16 bytes of a range for each of its 128 threads at 128 channels.
ROWS_PER_PROGRAM = 4


@triton.jit(do_not_specialize=["queries", "heads", "every"])
def merge_kernel(
    parts, out, queries, heads, every, o_b,
    D: tl.constexpr, BLOCK_D: tl.constexpr, RANGES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Some of ``every = B H Lq`` rows.

    ``parts`` float32 holds the sums ``[RANGES, B, H, Lq, BLOCK_D]``, then peaks, then masses, both
    ``[RANGES, B, H, Lq]``; ``out`` is ``[B, Lq, H, D]``, contiguous but for rows that are ``o_b``
    apart.
    """
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = rows < every
    columns = tl.arange(0, BLOCK_D)
    whole = tl.cast(every, tl.int64)
    peaks = parts + RANGES * whole * BLOCK_D + rows
    masses = peaks + RANGES * whole
    peak = tl.full((ROWS,), float("-inf"), tl.float32)
    for part in tl.static_range(RANGES):
        peak = tl.maximum(peak, tl.load(peaks + part * whole, mask=inside, other=0.0))
    acc = tl.zeros((ROWS, BLOCK_D), tl.float32)
    mass = tl.zeros((ROWS,), tl.float32)
    for part in tl.static_range(RANGES):
        at = part * whole + rows
        weight = tl.math.exp2(tl.load(peaks + part * whole, mask=inside, other=0.0) - peak)
        mass += weight * tl.load(masses + part * whole, mask=inside, other=1.0)
        values = tl.load(parts + at[:, None] * BLOCK_D + columns[None, :], mask=inside[:, None], other=0.0)
        acc += weight[:, None] * values
    query = rows % queries
    head = rows // queries % heads
    batch = rows // queries // heads
    to = out + batch[:, None] * o_b + (query * heads + head)[:, None] * D + columns[None, :]
    value = (acc / mass[:, None]).to(out.dtype.element_ty)
    tl.store(to, value, mask=inside[:, None] & (columns[None, :] < D))


def empty_parts(like: Tensor, ranges: int, width: int) -> Tensor:
    """Room for what ``ranges`` ranges of keys leave of queries ``[B, H, Lq, E]``, ``width`` channels each."""
    rows = like.shape[0] * like.shape[1] * like.shape[2]
    return torch.empty(ranges * rows * (width + 2), dtype=torch.float32, device=like.device)


def merge(parts: Tensor, out: Tensor, ranges: int, width: int) -> None:
    """Run the kernel.

    Args:
        parts: As `empty_parts`, filled.
        out: ``[B, H, Lq, E]``, laid out as ``[B, Lq, H, E]`` in memory, or some queries of that; written.
        ranges: Number of ranges.
        width: Channels in ``parts``, a power of two, at least E.
    """
    batch, heads, queries, channels = out.shape
    every = batch * heads * queries
    merge_kernel[(triton.cdiv(every, ROWS_PER_PROGRAM),)](
        parts, out, queries, heads, every, out.stride(0),
        D=channels, BLOCK_D=width, RANGES=ranges, ROWS=ROWS_PER_PROGRAM, num_warps=4,
    )  # fmt: skip
