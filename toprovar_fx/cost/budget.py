"""Solves keep counts for a budget of FLOPs: one common factor on the retention of eq. 6."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

# Absorbs the rounding of factor times weight times tokens before it is cut off.
_SLACK = 1e-6
# Where the common factor alone leaves more than this share of the limit unspent, single tokens are added.
_COARSE = 0.002
_STEPS = 50

Counts = Mapping[tuple[int, int], int]


@dataclass(frozen=True)
class Place:
    """A layer at a scale that may be pruned.

    Attributes:
        scale, layer: where.
        tokens: L.
        weight: its retention under eq. 6, above 0; only ratios between places matter.
        least: fewest tokens that it keeps, unless it is skipped.
    """

    scale: int
    layer: int
    tokens: int
    weight: float
    least: int

    def count(self, factor: float, skip_below: float) -> int:
        """K when all weights are multiplied by `factor`."""
        retention = min(1.0, factor * self.weight)
        if retention < skip_below:
            return 0
        return min(self.tokens, max(self.least, math.floor(retention * self.tokens + _SLACK)))


class Unreachable(Exception):  # noqa: N818 - becomes an OptionError with the options' names in it
    """Even the fewest tokens everywhere cost more than the limit; `counts` are those, `least` their cost."""

    def __init__(self, counts: Counts, least: int) -> None:
        super().__init__(f"at least {least} FLOPs")
        self.counts, self.least = counts, least


def solve_counts(
    places: Sequence[Place], total: Callable[[Counts], int], limit: int, skip_below: float = 0.0
) -> dict[tuple[int, int], int]:
    """Keep as many tokens as `limit` allows, every place in proportion to its weight.

    K of a place is `floor(min(1, factor weight) L)`, at least `least`; the factor is the largest, found by
    bisection, whose total stays within the limit. What rounding leaves over is spent on single tokens, the
    places that were cut off most first.

    Args:
        places: where tokens may be dropped.
        total: FLOPs of everything, given K by (scale, layer) of all places.
        limit: FLOPs that the total may reach.
        skip_below: retention below which a place keeps nothing.

    Raises:
        Unreachable: the limit is below the total of the fewest tokens.
    """

    def counts(factor: float) -> dict[tuple[int, int], int]:
        return {(place.scale, place.layer): place.count(factor, skip_below) for place in places}

    best = counts(0.0)
    if (least := total(best)) > limit:
        raise Unreachable(best, least)
    low, high = 0.0, 1 / min((place.weight for place in places), default=1.0)
    if total(counts(high)) <= limit:
        return counts(high)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        trial = counts(middle)
        if total(trial) <= limit:
            low, best = middle, trial
        else:
            high = middle
    return _spend_rest(places, best, total, limit)


def _spend_rest(
    places: Sequence[Place], counts: dict[tuple[int, int], int], total: Callable[[Counts], int], limit: int
) -> dict[tuple[int, int], int]:
    """One token more wherever it still fits, until hardly anything is left over."""
    open_places = [place for place in places if 0 < counts[place.scale, place.layer] < place.tokens]
    # The place that a slightly larger factor would give the next token comes first.
    open_places.sort(key=lambda place: (counts[place.scale, place.layer] + 1) / (place.weight * place.tokens))
    for place in open_places:
        if limit - total(counts) <= _COARSE * limit:
            break
        trial = {**counts, (place.scale, place.layer): counts[place.scale, place.layer] + 1}
        if total(trial) <= limit:
            counts = trial
    return counts
