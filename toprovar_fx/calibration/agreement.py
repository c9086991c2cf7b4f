"""How the decisions of single images are joined into one, and how far they agree with it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..schedules import Schedule
from .replay import Decisions, Place

# Below it a layer is global, from it on it is a detail layer.
ROLE_BORDER = 0.5


def joined_depth(depths: Sequence[int | None]) -> int | None:
    """Return the upper median of D: the first scale from which on most images are past their depth.

    None counts as never; of an even number of images more than half are past it.
    """
    ordered = sorted(math.inf if depth is None else depth for depth in depths)
    median = ordered[len(ordered) // 2]
    return None if math.isinf(median) else int(median)


def joined_scope(images: Sequence[Decisions]) -> tuple[float, ...]:
    """Return the mean R of every layer."""
    return tuple(sum(values) / len(images) for values in zip(*(each.scope for each in images), strict=True))


def joined_count(images: Sequence[Decisions], place: Place) -> int:
    """Return the most frequent K of a place among the images that run it; of equals the largest."""
    counts = Counter(each.kept[place] for each in images if place in each.kept)
    most = max(counts.values())
    return max(count for count, times in counts.items() if times == most)


@dataclass(frozen=True)
class Disagreement:
    """A (scale, layer) at which images decide otherwise than the profile.

    Attributes:
        scale, layer: where.
        calibrated: K of the profile.
        online: how many images decide for which other K.
    """

    scale: int
    layer: int
    calibrated: int
    online: Mapping[int, int]


@dataclass(frozen=True)
class Agreement:
    """Shares, from 0 to 1, of decisions of single images that equal the calibrated ones.

    Attributes:
        depth: of the images' D.
        roles: of the layers' roles: R below or from 0.5 on.
        kept: of K over all (scale, layer).
        kept_where_pruned: of K over the (scale, layer) at which the image or the profile prunes.
        pruned_or_not: over all (scale, layer), of whether fewer than all tokens are kept.
        places: where they differ, most images first.
    """

    depth: float
    roles: float
    kept: float
    kept_where_pruned: float
    pruned_or_not: float
    places: tuple[Disagreement, ...]


def agreement(calibrated: Decisions, images: Sequence[Decisions], schedule: Schedule) -> Agreement:
    """Compare the decisions of images with the calibrated ones; a scale that is not run keeps none."""
    layers = range(len(calibrated.scope))
    kept, pruned, either = [], [], []
    elsewhere: dict[Place, Counter[int]] = {}
    for image in images:
        for scale, tokens in enumerate(schedule.tokens):
            for layer in layers:
                ours = calibrated.kept.get((scale, layer), 0)
                theirs = image.kept.get((scale, layer), 0)
                kept.append(ours == theirs)
                pruned.append((ours < tokens) == (theirs < tokens))
                if ours < tokens or theirs < tokens:
                    either.append(ours == theirs)
                if ours != theirs:
                    elsewhere.setdefault((scale, layer), Counter())[theirs] += 1
    places = [
        Disagreement(*place, calibrated.kept.get(place, 0), dict(sorted(counts.items())))
        for place, counts in elsewhere.items()
    ]
    return Agreement(
        depth=_share([image.depth == calibrated.depth for image in images]),
        roles=_share(
            [
                (ours < ROLE_BORDER) == (theirs < ROLE_BORDER)
                for image in images
                for ours, theirs in zip(calibrated.scope, image.scope, strict=True)
            ]
        ),
        kept=_share(kept),
        kept_where_pruned=_share(either),
        pruned_or_not=_share(pruned),
        places=tuple(sorted(places, key=lambda each: -sum(each.online.values()))),
    )


def _share(equal: Sequence[bool]) -> float:
    return sum(equal) / len(equal) if equal else 1.0
