"""Solves keep counts for a budget of FLOPs: factors on the retention of eq. 6, by scale or common to all."""

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
    places: Sequence[Place],
    total: Callable[[Counts], int],
    limit: int,
    skip_below: float = 0.0,
    last_first: bool = False,
) -> dict[tuple[int, int], int]:
    """Keep as many tokens as `limit` allows, the places of one scale in proportion to their weights.

    K of a place is `floor(min(1, factor weight) L)`, at least `least`. The factor is common to all places,
    or, with `last_first`, to those of one scale: a scale is cut only where all later ones are cut to the
    least. The factors are the largest, found by bisection, whose total stays within the limit. What rounding
    leaves over is spent on single tokens, the places that were cut off most first.

    Args:
        places: where tokens may be dropped.
        total: FLOPs of everything, given K by (scale, layer) of all places.
        limit: FLOPs that the total may reach.
        skip_below: retention below which a place keeps nothing.
        last_first: cut the last scales first, instead of all alike.

    Raises:
        Unreachable: the limit is below the total of the fewest tokens.
    """
    scales = sorted({place.scale for place in places}) if last_first else []
    whole = 1 / min((place.weight for place in places), default=1.0)

    def counts(extent: float) -> dict[tuple[int, int], int]:
        """K at a share of all factors, 0 to 1; with `last_first` the first scale's share is used up first."""

        def factor(place: Place) -> float:
            if not last_first:
                return extent * whole
            return min(1.0, max(0.0, extent * len(scales) - scales.index(place.scale))) * whole

        return {(place.scale, place.layer): place.count(factor(place), skip_below) for place in places}

    best = counts(0.0)
    if (least := total(best)) > limit:
        raise Unreachable(best, least)
    if total(counts(1.0)) <= limit:
        return counts(1.0)
    low, high = 0.0, 1.0
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
