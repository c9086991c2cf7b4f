"""Cache policy `hack`: contextual heads keep the rows they look at, structural heads rows from everywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from .policy import CachePolicy, LayerCache, best, shared_out

if TYPE_CHECKING:
    from ..options import Options
    from ..schedules import Schedule

# Rows of a structural head to those of a contextual one. The paper gives structural heads more.
_STRUCTURAL, _CONTEXTUAL = 3.0, 1.0


class HACK(CachePolicy):
    """Heads are told apart once, at the first scale after which rows have to go.

    A contextual head shows columns: all queries look at the same rows, so attention varies little from query
    to query. A structural head shows diagonals: every query looks at its own place, so it varies much.

    Attributes:
        structural: by layer, which key heads are structural, [Hk] bool; empty until that scale.
    """

    name = "hack"
    summary = "per head: contextual heads keep the most attended rows, structural heads evenly spread ones"
    source = "HACK, AAAI 2026, arXiv 2504.09261; no code"
    share = 0.3
    deviations: ClassVar[tuple[str, ...]] = (
        "Heads of a layer keep equally many rows; published are budgets per head, which need masks or one "
        "cache per head. A layer's budget is the mean of what its heads would get.",
        "Heads are told apart in every generation, at the first scale that is over the budget, by attention "
        "variance above or below the mean of all heads; published is a calibration beforehand.",
        "Structural heads are given three times the rows of contextual ones, which is our number, and keep "
        "rows at equal distances of the cache; the published rule for them was not at hand.",
        "The budget is a share of the rows that the last scale would find; 0.3 is the 70% compression of the "
        "paper.",
    )

    def __init__(self, options: Options, schedule: Schedule) -> None:
        super().__init__(options, schedule)
        self.structural: dict[int, Tensor] = {}
        self._shares: dict[int, float] = {}

    def select(self, scale: int, caches: Sequence[LayerCache]) -> Mapping[int, Tensor]:
        """The rows of both kinds of heads in layers that are over their budget."""
        if all(one.rows <= self.rows for one in caches):
            return {}
        self._classify(caches)
        shares = [self._shares.get(one.layer, 0.5) for one in caches]
        weights = [_CONTEXTUAL + (_STRUCTURAL - _CONTEXTUAL) * share for share in shares]
        counts = shared_out(weights, caches, self.rows)
        return {
            one.layer: self._keep(one, count)
            for one, count in zip(caches, counts, strict=True)
            if count < one.rows
        }

    def _classify(self, caches: Sequence[LayerCache]) -> None:
        """Once; layers that did not run then keep attended rows, as many as if half their heads did."""
        if self.structural:
            return
        # [R, Hk, W, rows]: the variance over the queries, summed over the rows.
        varies = {one.layer: one.attention.var(2, correction=0).sum(-1).mean(0) for one in caches}
        typical = torch.cat(list(varies.values())).mean()
        self.structural = {layer: found > typical for layer, found in varies.items()}
        shares = torch.stack([kind.float().mean() for kind in self.structural.values()]).tolist()
        self._shares = dict(zip(self.structural, shares, strict=True))

    def _keep(self, cache: LayerCache, count: int) -> Tensor:
        attended = best(cache.attention.sum(2), count)
        kind = self.structural.get(cache.layer)
        if kind is None:
            return attended
        spread = torch.arange(count, device=attended.device) * cache.rows // count
        return torch.where(kind.to(attended.device)[None, :, None], spread, attended)
