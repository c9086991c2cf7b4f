"""The plans of the layers at the scale that runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ..criteria.score_registry import ScoreContext
from ..policies.layer_plan import LayerPlan, LayerQuestion
from .deciders import Deciders
from .outlook import Outlook
from .ranking import Ranking

if TYPE_CHECKING:
    from .generation import Generation


class LayerPlans:
    """Asks the policy for K and the keep set of every layer, once per scale.

    Args:
        seed: the option `seed`.
        generation: the scale that runs.
        deciders: the policy and R.
        outlook: knows explicit keep ratios.
        ranking: the entropy maps that rank tokens.
    """

    def __init__(
        self, seed: int, generation: Generation, deciders: Deciders, outlook: Outlook, ranking: Ranking
    ) -> None:
        self._seed, self._generation, self._deciders = seed, generation, deciders
        self._outlook, self._ranking = outlook, ranking
        self._plans: dict[int, LayerPlan] = {}

    def plan(self, layer: int, hidden: Tensor) -> LayerPlan:
        """The plan of `layer`, whose input is `hidden` [R, L, C]."""
        found = self._plans.get(layer)
        if found is None:
            found = self._plans[layer] = self._deciders.policy.plan(self._question(layer, hidden))
        return found

    def end_scale(self) -> None:
        """Forget the plans of the scale that ran."""
        self._plans = {}

    def _question(self, layer: int, hidden: Tensor) -> LayerQuestion:
        running, scale = self._generation, self._generation.scale
        place = ScoreContext(
            layer=layer,
            layers=self._deciders.layers,
            scale=scale,
            scales=len(running.schedule),
            side=running.schedule.sides[scale],
            images=running.images,
            seed=self._seed,
        )
        return LayerQuestion(
            place=place,
            hidden=hidden,
            detail=self._deciders.scope.detail(layer),
            entropy=self._ranking.map_for(layer, scale),
            ratio=self._outlook.ratio(layer),
        )
