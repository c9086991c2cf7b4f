"""Launches the Hopper kernel for attention, with the keys of a row in one range or several."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import triton
from torch import Tensor

from .attention_segments import (
    KEYS_PER_STEP,
    QUERIES_PER_TILE,
    WIDTH,
    Segment,
    choose_segments,
    filled_ranges,
)
from .cards import HOPPER, MOST_PROGRAMS, capability
from .triton_launch import GLUON_KNOWN, HopperTiles, allows_tma, launch_hopper
from .triton_merge import empty_parts, merge

TILES = HopperTiles(KEYS_PER_STEP, 2, hold=False, turns=True)


def has_kernel(q: Tensor, k: Tensor, v: Tensor, scale: float) -> bool:
    """Whether the Hopper kernel takes these operands, on the card that they are on."""
    return (
        GLUON_KNOWN
        and q.dtype in (torch.bfloat16, torch.float16)
        and q.dtype == k.dtype == v.dtype
        and q.device == k.device == v.device
        and capability(q.device) == HOPPER
        and q.shape[0] * q.shape[1] <= MOST_PROGRAMS
        and q.shape[3] == k.shape[3] == v.shape[3] == WIDTH
        and k.shape[:3] == v.shape[:3]
        and q.shape[0] == k.shape[0]
        and q.shape[1] % k.shape[1] == 0
        and scale > 0
        and all(allows_tma(x) for x in (q, k, v))
    )


def segments_for(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Segment, ...]:
    """As `choose_segments`; none for what the kernel does not take."""
    if q.numel() == 0 or k.numel() == 0 or not has_kernel(q, k, v, scale):
        return ()
    multiprocessors = torch.cuda.get_device_properties(q.device).multi_processor_count
    return choose_segments(q.shape[2], k.shape[2], q.shape[0] * q.shape[1], multiprocessors)


def launch(q: Tensor, k: Tensor, v: Tensor, scale: float, ranges: int = 1) -> Tensor:
    """Run the Hopper kernel without entropies, once.

    Args:
        q: Queries ``[B, H, Lq, E]``, bfloat16 or float16.
        k: Keys ``[B, Hk, Lk, E]``.
        v: Values, like keys.
        scale: Factor of the logits, positive.
        ranges: Programs that share the keys of a row; more than there are tiles of keys is as many.

    Returns:
        ``[B, H, Lq, E]``, laid out as ``[B, Lq, H, E]`` in memory.
    """
    return launch_segments(q, k, v, scale, [Segment(q.shape[2], ranges)])


def launch_segments(q: Tensor, k: Tensor, v: Tensor, scale: float, segments: Sequence[Segment]) -> Tensor:
    """As `launch`, once for the queries of each segment, in order.

    A second launch begins while the first still runs, if nothing comes between them.
    """
    batch, heads, queries, channels = q.shape
    out = q.new_empty(batch, queries, heads, channels).transpose(1, 2)
    chains: list[Mapping[str, bool]] = [{} for _ in segments]
    if len(segments) == 2 and segments[0].ranges == 1:
        chains = [{"LEADS": True}, {"FOLLOWS": True, "launch_pdl": True}]
    first = 0
    for segment, chain in zip(segments, chains, strict=True):
        own = slice(first, first + segment.queries)
        _launch(q[:, :, own], k, v, scale, segment.ranges, out[:, :, own], chain)
        first += segment.queries
    return out


def _launch(
    q: Tensor, k: Tensor, v: Tensor, scale: float, ranges: int, out: Tensor, chain: Mapping[str, bool]
) -> None:
    batch, heads, queries, channels = q.shape
    keys = k.shape[2]
    width = max(64, triton.next_power_of_2(channels))
    ranges = filled_ranges(triton.cdiv(keys, TILES.keys), ranges)
    parts = empty_parts(q, ranges if ranges > 1 else 0, width)
    # Entropies, their sums and counters are not wanted.
    nothing = torch.empty(0, dtype=torch.int64, device=q.device)
    sizes = (queries, keys, 0, heads, heads // k.shape[1], scale * math.log2(math.e))
    wants = {"ENTROPY": False, "MEAN": False, "REST": False, "SPLIT": ranges > 1}
    grid = (triton.cdiv(queries, QUERIES_PER_TILE), batch * heads, ranges)
    launch_hopper(TILES, (q, k, v), (out, parts, nothing, nothing, parts), sizes, grid, wants, chain)
    if ranges > 1:
        merge(parts, out, ranges, width)
