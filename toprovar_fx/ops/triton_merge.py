"""Adds up attention over ranges of the keys, in plain Triton: any CUDA card, the interpreter.

Range i leaves ``acc_i = sum 2^(s - peak_i) v``, ``mass_i = sum 2^(s - peak_i)`` and its peak, with ``s`` the
logits in base 2. The output is ``sum 2^(peak_i - peak) acc_i / sum 2^(peak_i - peak) mass_i``, where peak is
the largest of the peaks.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_plan import QUERIES_PER_TILE, WIDTH, tiles_of
from .triton_chain import begin, chained

# Rows of a program: 16 bytes of a range for each of its 128 threads at 128 channels.
ROWS_PER_PROGRAM = 4


@triton.jit(do_not_specialize=["queries", "heads", "every", "whole", "tiles"])
def merge_kernel(
    parts, out, queries, heads, every, whole, tiles, o_b,
    D: tl.constexpr, TILE: tl.constexpr, RANGES: tl.constexpr, ROWS: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Some rows of one of ``tiles`` tiles of TILE queries, from number ``whole`` on, in order.

    ``parts`` float32 holds the sums ``[RANGES, tiles, TILE, D]``, then peaks, then masses, both
    ``[RANGES, tiles, TILE]``; ``out`` is ``[B, Lq, H, D]``, contiguous but for rows that are ``o_b`` apart.
    Tiles are numbered as in `gluon_dealt_attention`; ``every`` is ``B H``.
    """
    first = tl.program_id(0) * ROWS
    tile = whole + first // TILE
    full = queries // TILE
    ends = every * full
    inner = tile < ends
    head = tl.where(inner, tile // tl.maximum(full, 1), tile - ends)
    start = tl.where(inner, tile % tl.maximum(full, 1), full) * TILE
    query = start + first % TILE + tl.arange(0, ROWS)
    inside = query < queries
    rows = first.to(tl.int64) + tl.arange(0, ROWS)
    columns = tl.arange(0, D)
    of_range = tl.cast(tiles, tl.int64) * TILE
    peaks = parts + RANGES * of_range * D + rows
    masses = peaks + RANGES * of_range
    begin(CHAINED)
    peak = tl.full((ROWS,), float("-inf"), tl.float32)
    for part in tl.static_range(RANGES):
        peak = tl.maximum(peak, tl.load(peaks + part * of_range, mask=inside, other=0.0))
    acc = tl.zeros((ROWS, D), tl.float32)
    mass = tl.zeros((ROWS,), tl.float32)
    for part in tl.static_range(RANGES):
        at = part * of_range + rows
        weight = tl.math.exp2(tl.load(peaks + part * of_range, mask=inside, other=0.0) - peak)
        mass += weight * tl.load(masses + part * of_range, mask=inside, other=1.0)
        values = tl.load(parts + at[:, None] * D + columns[None, :], mask=inside[:, None], other=0.0)
        acc += weight[:, None] * values
    batch = (head // heads).to(tl.int64)
    to = out + batch * o_b + (query[:, None].to(tl.int64) * heads + head % heads) * D + columns[None, :]
    tl.store(to, (acc / mass[:, None]).to(out.dtype.element_ty), mask=inside[:, None])


def empty_parts(like: Tensor, pieces: int) -> Tensor:
    """Room for what so many ranges of tiles leave, on a tensor's device."""
    rows = pieces * QUERIES_PER_TILE
    return torch.empty(rows * (WIDTH + 2), dtype=torch.float32, device=like.device)


def merge(parts: Tensor, out: Tensor, whole: int, ranges: int) -> None:
    """Run the kernel.

    Args:
        parts: As `empty_parts`, filled.
        out: ``[B, H, Lq, E]``, laid out as ``[B, Lq, H, E]`` in memory; what other tiles hold stays.
        whole: Number of tiles in front of those that are dealt out.
        ranges: Number of ranges of each.
    """
    batch, heads, queries, channels = out.shape
    tiles = tiles_of(queries, batch * heads) - whole
    merge_kernel[(tiles * QUERIES_PER_TILE // ROWS_PER_PROGRAM,)](
        parts, out, queries, heads, batch * heads, whole, tiles, out.stride(0),
        D=channels, TILE=QUERIES_PER_TILE, RANGES=ranges, ROWS=ROWS_PER_PROGRAM, num_warps=4,
        **chained(out.device),
    )  # fmt: skip
