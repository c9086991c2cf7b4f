"""What every cache policy answers, and what it is shown of a layer's attention."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..options import Options
    from ..schedules import Schedule

# Queries that are looked at per scale: the centres of a grid of 4 x 4, as ScaleKV publishes.
WATCHED = 16


@dataclass(frozen=True)
class LayerCache:
    """One layer's cache after a scale, and the attention of some of the scale's queries to it.

    Attributes:
        layer: 0-based; of sublayers where the policy of the tokens decides about these.
        start: first row that the scale wrote.
        rows: rows in use.
        keys: [R, Hk, rows, E].
        queries: of `WATCHED` tokens at most, [R, H, W, E]; H is Hk, or a multiple whose neighbours share.
        watched: the cache rows that lie where these tokens do, [W] int64, ascending.
        scale: factor of the logits.
    """

    layer: int
    start: int
    rows: int
    keys: Tensor
    queries: Tensor
    watched: Tensor
    scale: float

    @cached_property
    def attention(self) -> Tensor:
        """Softmax over all rows in use, [R, Hk, W, rows] float32, mean over the queries that share a head."""
        query = self.queries.float().unflatten(1, (self.keys.shape[1], -1))
        logits = self.scale * query @ self.keys.float()[:, :, None].transpose(-2, -1)
        return logits.softmax(-1).mean(2)


class CachePolicy:
    """Keeps all rows; a subclass says which ones stay after a scale.

    All heads of a layer keep equally many rows, for they share one place in the cache; which ones, every head
    of every batch row has for itself.

    Args:
        options: the settings.
        schedule: the scales.

    Attributes:
        name: the value of the option `cache_policy`.
        summary: what it does, in a sentence.
        source: where it was published.
        deviations: where it differs from what was published, and why; sentences.
        share: `cache_budget` where none is given.
        rows: rows that a layer keeps on average: `cache_budget` times those that the last scale would find.
    """

    name: ClassVar[str] = "none"
    summary: ClassVar[str] = "all keys and values stay"
    source: ClassVar[str] = "the models themselves"
    deviations: ClassVar[tuple[str, ...]] = ()
    share: ClassVar[float] = 1.0

    def __init__(self, options: Options, schedule: Schedule) -> None:
        self.options, self.schedule = options, schedule
        share = self.share if options.cache_budget is None else options.cache_budget
        self.rows = share * (schedule.ends[-1] - schedule.tokens[-1])

    def select(self, scale: int, caches: Sequence[LayerCache]) -> Mapping[int, Tensor]:
        """The rows that stay after `scale`, by layer: [R, Hk, M] int64; layers that are not named keep all.

        Args:
            scale: the one that ran.
            caches: layers whose attention ran, in order.
        """
        return {}


def shared_out(weights: Sequence[float], caches: Sequence[LayerCache], rows: float) -> list[int]:
    """Rows per layer in proportion to `weights`, `rows` on average.

    A layer keeps at least the rows that are watched and at most those that it has; others share the rest.
    """
    least = [min(one.rows, len(one.watched)) for one in caches]

    def parts(factor: float) -> list[int]:
        return [
            min(one.rows, max(low, math.floor(factor * weight)))
            for one, low, weight in zip(caches, least, weights, strict=True)
        ]

    wanted = rows * len(caches)
    lower, upper = 0.0, float(max(one.rows for one in caches)) / min(filter(None, weights), default=1.0)
    # Parts grow with the factor: halving finds the largest whose sum is within the budget.
    for _ in range(60):
        middle = (lower + upper) / 2
        lower, upper = (middle, upper) if sum(parts(middle)) <= wanted else (lower, middle)
    return parts(lower)


def best(score: Tensor, count: int) -> Tensor:
    """The `count` rows of the highest score [R, Hk, rows], ascending; of equal ones the earliest."""
    order = torch.sort(score, dim=-1, descending=True, stable=True).indices
    return order[..., :count].sort(-1).values
