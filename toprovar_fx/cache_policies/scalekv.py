"""Cache policy `scalekv`: layers that look far back get long caches, the others short ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .policy import CachePolicy, LayerCache, best, shared_out

if TYPE_CHECKING:
    from ..options import Options
    from ..schedules import Schedule

# Neighbouring rows over which attention is pooled.
_POOLED = 5
# Rows that look concentrated: this share of those of earlier scales.
_FEW = 0.1
# What a refiner keeps of an equal part, at the first scale and at the last but one.
_FIRST, _LAST = 1.0, 0.5


class ScaleKV(CachePolicy):
    """Drafters spread their attention over earlier scales, refiners gather it on this one or on a few rows.

    A refiner's budget falls from scale to scale, and what it gives up goes to the drafters.

    Attributes:
        refiners: by scale, the layers that were refiners there.
    """

    name = "scalekv"
    summary = "per layer and scale: drafters keep long caches, refiners shorter ones from scale to scale"
    source = "ScaleKV, NeurIPS 2025, arXiv 2505.19602; published code is without the cache"
    share = 0.1
    deviations: ClassVar[tuple[str, ...]] = (
        "Roles are found in every generation and at every scale, by the attention of 16 queries: a refiner "
        "is a layer whose attention to its own map and to the tenth of earlier rows it likes best is above "
        "the mean of all layers. Published is an index measured beforehand, once per model.",
        "A refiner's budget falls evenly to half of an equal part, our number; drafters share what is left. "
        "Published are tables of cache lengths for one schedule.",
        "The 16 queries are the centres of a 4 x 4 grid of any map, or evenly spaced among kept tokens; "
        "published are square maps. Rows of these tokens always stay.",
        "The budget is a share of the rows that the last scale would find; 0.1 is the published compression.",
    )

    def __init__(self, options: Options, schedule: Schedule) -> None:
        super().__init__(options, schedule)
        self.refiners: dict[int, set[int]] = {}

    def select(self, scale: int, caches: Sequence[LayerCache]) -> Mapping[int, Tensor]:
        """The watched rows, and those that they attend to most, in layers that are over their budget."""
        if all(one.rows <= self.rows for one in caches):
            return {}
        index: list[float] = torch.stack([_selectivity(one) for one in caches]).tolist()
        typical = sum(index) / len(index)
        refines = [value > typical for value in index]
        self.refiners[scale] = {one.layer for one, refined in zip(caches, refines, strict=True) if refined}
        weights = self._weights(scale, refines)
        counts = shared_out(weights, caches, self.rows)
        return {
            one.layer: _keep(one, count)
            for one, count in zip(caches, counts, strict=True)
            if count < one.rows
        }

    def _weights(self, scale: int, refines: Sequence[bool]) -> list[float]:
        """Parts per layer, 1 on average."""
        gone = scale / max(len(self.schedule) - 2, 1)
        refiner = _FIRST + (_LAST - _FIRST) * gone
        some = sum(refines)
        rest = len(refines) - some
        drafter = (len(refines) - some * refiner) / rest if rest else 0.0
        return [refiner if refined else drafter for refined in refines]


def _selectivity(cache: LayerCache) -> Tensor:
    """Share of attention on the scale's own rows and on the few earlier rows that get most, in [0, 1], []."""
    attention = cache.attention
    earlier = attention[..., : cache.start]
    few = max(1, round(_FEW * cache.start))
    taken = earlier.topk(min(few, cache.start), -1).values.sum(-1)
    return (attention[..., cache.start :].sum(-1) + taken).mean()


def _keep(cache: LayerCache, count: int) -> Tensor:
    mass = cache.attention.sum(2)
    pooled = F.max_pool1d(mass, _POOLED, stride=1, padding=_POOLED // 2)
    pooled[..., cache.watched] = float("inf")
    return best(pooled, count)
