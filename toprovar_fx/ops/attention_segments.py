"""Chooses between stock attention and the Hopper kernel, with the keys of a row in one range or several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

# Heads of this width were measured against stock attention, on an H200, with 32 and 56 heads in all.
WIDTH = 128
QUERIES_PER_TILE = 128
KEYS_PER_STEP = 128
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


@lru_cache(maxsize=4096)
def choose_segments(queries: int, keys: int, heads: int, multiprocessors: int) -> tuple[Segment, ...]:
    """How the Hopper kernel should be launched.

    A multiprocessor runs one program at a time, so that the kernel takes ``waves * (START + steps)``. Where a
    part of a tile would cost every multiprocessor another wave, a launch of its own shares its keys out; its
    programs run where those of the first have ended.

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
    rest, steps = queries % QUERIES_PER_TILE, _ceil(keys, KEYS_PER_STEP)
    ranges, cost = _best(_alone(queries, steps, heads, multiprocessors))
    if rest < LEAST_QUERIES or queries < QUERIES_PER_TILE:
        return (Segment(queries, filled_ranges(steps, ranges)),)
    shared, together = _best(_beside(queries, steps, heads, multiprocessors))
    if together > (1 - LEAST_GAIN) * cost:
        return (Segment(queries, filled_ranges(steps, ranges)),)
    return Segment(queries - rest, 1), Segment(rest, filled_ranges(steps, shared))


def _best(costs: Sequence[float]) -> tuple[int, float]:
    """The number of ranges that should take least, given what 1, 2, ... cost, and what it costs."""
    best = min(range(1, len(costs)), key=costs.__getitem__)
    one = costs[best] > (1 - LEAST_GAIN) * costs[0]
    return (1, costs[0]) if one else (best + 1, costs[best])


def _alone(queries: int, steps: int, heads: int, multiprocessors: int) -> list[float]:
    """Steps that one launch takes with 1, 2, ... ranges."""
    tiles = heads * _ceil(queries, QUERIES_PER_TILE)
    return [
        _ceil(tiles * ranges, multiprocessors) * (START + _ceil(steps, ranges))
        + _sums(heads * queries, ranges)
        for ranges in range(1, MOST_RANGES + 1)
    ]


def _beside(queries: int, steps: int, heads: int, multiprocessors: int) -> list[float]:
    """Steps that whole tiles take in one range, with the part of a tile in 1, 2, ... ranges beside them."""
    waves, busy = divmod(heads * (queries // QUERIES_PER_TILE), multiprocessors)
    wave = START + steps
    # How many multiprocessors have done their whole tiles, by when.
    done = ((multiprocessors - busy, waves * wave), (busy, (waves + 1) * wave))
    last = max(at for number, at in done if number)
    return [
        max(last, end_of(heads * ranges, START + _ceil(steps, ranges), done))
        + _sums(heads * (queries % QUERIES_PER_TILE), ranges)
        for ranges in range(1, MOST_RANGES + 1)
    ]


def end_of(programs: int, each: float, begins: Sequence[tuple[int, float]]) -> float:
    """When the last of equally long programs ends, on (multiprocessors, when they are there)."""
    apart = abs(begins[0][1] - begins[1][1])
    turns = range(1, _ceil(programs, sum(number for number, _ in begins)) + math.ceil(apart / each) + 1)
    ends = sorted((at + turn * each, number) for number, at in begins if number for turn in turns)
    ended = accumulate(number for _, number in ends)
    return next(end for (end, _), so_far in zip(ends, ended, strict=True) if so_far >= programs)


def _sums(rows: int, ranges: int) -> float:
    """Steps that it takes to add up the ranges of so many rows."""
    return JOINING + ranges * rows * WIDTH * 1e-6 * SUMS_OF_A_MILLION if ranges > 1 else 0.0


def filled_ranges(steps: int, ranges: int) -> int:
    """How many of ``ranges`` ranges get keys, when each takes as many whole steps as the first."""
    return _ceil(steps, _ceil(steps, ranges))


def _ceil(many: int, each: int) -> int:
    return -(-many // each)
