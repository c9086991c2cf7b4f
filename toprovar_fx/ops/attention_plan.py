"""Chooses between stock attention and the Hopper kernel, and how its tiles are dealt out."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

# Heads of this width were measured against stock attention, on an H200, with 32 and 56 heads in all.
WIDTH = 128
QUERIES_PER_TILE = 128
KEYS_PER_STEP = 128
MOST_RANGES = 8
# Times in steps of 128 keys (1.5 us): of a launch, of a piece of work beside its steps, of the second
# kernel's launch, and of the sums of a range for 10^6 channels of queries, written and read once.
LAUNCH = 2.2
PIECE = 1.5
JOINING = 0.8
SUMS_OF_A_MILLION = 1.0
# Tiles are dealt out in ranges only if that should save this share of the time.
LEAST_GAIN = 0.015
# Below these sizes all take about as long as a launch, and stock attention stays.
LEAST_QUERIES = 16
LEAST_KEYS = 512


class Deal(NamedTuple):
    """How the tiles of all heads become pieces of work, which the programs take in turns.

    Attributes:
        whole: number of tiles, the first in order, that are one piece each.
        ranges: number of ranges of keys that each other tile is dealt out in.
        programs: how many there are at most.
    """

    whole: int
    ranges: int
    programs: int


@lru_cache(maxsize=4096)
def choose_deal(queries: int, keys: int, heads: int, programs: int) -> Deal | None:
    """How tiles should be dealt out.

    Programs that take whole tiles in turns end apart where tiles do not divide evenly among them. Then the
    tiles of the last turn, or of the last two, are dealt out to all of them.

    Args:
        queries: Queries of a head.
        keys: Keys of a head.
        heads: Heads of all batch rows.
        programs: Programs that run at a time.

    Returns:
        None where stock attention should run.
    """
    if queries < LEAST_QUERIES or keys < LEAST_KEYS:
        return None
    tiles = tiles_of(queries, heads)
    steps = _ceil(keys, KEYS_PER_STEP)
    turns = tiles // programs
    undealt = Deal(tiles, 1, programs)
    deals = [
        Deal(whole * programs, filled_ranges(steps, ranges), programs)
        for whole in {turns, max(0, turns - 1)}
        if whole * programs < tiles
        for ranges in range(2, MOST_RANGES + 1)
    ]
    costs = {deal: steps_of(deal, tiles, steps) for deal in (undealt, *deals)}
    best = min(costs, key=costs.__getitem__)
    return best if costs[best] <= (1 - LEAST_GAIN) * costs[undealt] else undealt


def steps_of(deal: Deal, tiles: int, steps: int) -> float:
    """How long the kernels take, in steps; all programs have the same number of whole tiles, or all are."""
    programs = deal.programs
    dealt = (tiles - deal.whole) * deal.ranges
    first = _ceil(deal.whole, programs) * (PIECE + steps)
    rest = _ceil(dealt, programs) * (PIECE + _ceil(steps, deal.ranges))
    sums = JOINING + dealt * QUERIES_PER_TILE * WIDTH * 1e-6 * SUMS_OF_A_MILLION if dealt else 0.0
    return LAUNCH + first + rest + sums


def tiles_of(queries: int, heads: int) -> int:
    """Tiles of so many queries of every head."""
    return heads * _ceil(queries, QUERIES_PER_TILE)


def filled_ranges(steps: int, ranges: int) -> int:
    """How many of ``ranges`` ranges get keys, when each takes as many whole steps as the first."""
    return _ceil(steps, _ceil(steps, ranges))


def _ceil(many: int, each: int) -> int:
    return -(-many // each)
