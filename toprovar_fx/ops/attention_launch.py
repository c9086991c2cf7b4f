"""Chooses between stock attention and the Hopper kernel, with the keys of a row in one range or several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from .cards import HOPPER, MOST_PROGRAMS, capability
from .triton_launch import GLUON_KNOWN, HopperTiles, allows_tma, launch_hopper
from .triton_merge import empty_parts, merge

TILES = HopperTiles(128, 2, hold=False, turns=True)
# Heads of this width were measured against stock attention, on an H200, with 32 and 56 heads in all.
WIDTH = 128
QUERIES_PER_TILE = 128
MOST_RANGES = 8
# Times in steps of 128 keys (1.5 us): of a program beside its steps, of the second kernel's launch, and of
# the sums of a range for 10^6 channels of queries, written and read once.
START = 3.7
JOINING = 0.8
SUMS_OF_A_MILLION = 1.0
# Several ranges are taken only if they should save this share of the time.
LEAST_GAIN = 0.05
# Below these sizes all take about as long as a launch, and stock attention stays.
LEAST_QUERIES = 16
LEAST_KEYS = 512


class Segment(NamedTuple):
    """Queries of every head that one launch attends for.

    Attributes:
        queries: how many.
        ranges: number of key ranges that programs share a tile of them in.
    """

    queries: int
    ranges: int


def choose_segments(queries: int, keys: int, heads: int, multiprocessors: int) -> tuple[Segment, ...]:
    """How the Hopper kernel should be launched.

    A multiprocessor runs one program at a time, so that the kernel takes ``waves * (START + steps)``. Where a
    part of a tile would cost every multiprocessor another wave, a launch of its own shares its keys out.

    Args:
        queries: Queries of a head.
        keys: Keys of a head.
        heads: Heads of all batch rows.
        multiprocessors: Of the card.

    Returns:
        One segment or two; none where stock attention should run.
    """
    if queries < LEAST_QUERIES or keys < LEAST_KEYS:
        return ()
    (ranges, cost), rest = _best(queries, keys, heads, multiprocessors), queries % QUERIES_PER_TILE
    if rest < LEAST_QUERIES or queries < QUERIES_PER_TILE:
        return (Segment(queries, ranges),)
    apart = [_best(number, keys, heads, multiprocessors) for number in (queries - rest, rest)]
    if JOINING + sum(each for _, each in apart) > (1 - LEAST_GAIN) * cost:
        return (Segment(queries, ranges),)
    return Segment(queries - rest, apart[0][0]), Segment(rest, apart[1][0])


def _best(queries: int, keys: int, heads: int, multiprocessors: int) -> tuple[int, float]:
    """The number of ranges that should take least, and what it costs in steps."""
    tiles = heads * triton.cdiv(queries, QUERIES_PER_TILE)
    steps = triton.cdiv(keys, TILES.keys)

    millions = heads * queries * WIDTH * 1e-6

    def cost(ranges: int) -> float:
        waves = math.ceil(tiles * ranges / multiprocessors)
        kernel: float = waves * (START + triton.cdiv(steps, ranges))
        return kernel + (JOINING + ranges * millions * SUMS_OF_A_MILLION if ranges > 1 else 0)

    best = min(range(2, MOST_RANGES + 1), key=cost)
    if cost(best) <= (1 - LEAST_GAIN) * cost(1):
        return filled_ranges(steps, best), cost(best)
    return 1, cost(1)


def filled_ranges(steps: int, ranges: int) -> int:
    """How many of ``ranges`` ranges get keys, when each takes as many whole steps as the first."""
    filled: int = triton.cdiv(steps, triton.cdiv(steps, ranges))
    return filled


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
    """As `launch`, once for the queries of each segment, in order."""
    batch, heads, queries, channels = q.shape
    out = q.new_empty(batch, queries, heads, channels).transpose(1, 2)
    first = 0
    for segment in segments:
        own = slice(first, first + segment.queries)
        _launch(q[:, :, own], k, v, scale, segment.ranges, out[:, :, own])
        first += segment.queries
    return out


def _launch(q: Tensor, k: Tensor, v: Tensor, scale: float, ranges: int, out: Tensor) -> None:
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
    launch_hopper(TILES, (q, k, v), (out, parts, nothing, nothing, parts), sizes, grid, wants)
    if ranges > 1:
        merge(parts, out, ranges, width)
