"""The plans of the layers at the scale that runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ..criteria.score_registry import ScoreContext
from ..options import Options
from ..policies.layer_plan import LayerPlan, LayerQuestion
from .deciders import Deciders
from .outlook import Outlook
from .ranking import Ranking

if TYPE_CHECKING:
    from .generation import Generation


class LayerPlans:
    """Asks the policy for K and the keep set of every layer, once per scale.

    Args:
        options: the settings.
        generation: the scale that runs.
        deciders: the policy and R.
        outlook: knows explicit keep ratios.
        ranking: the entropy maps that rank tokens.
    """

    def __init__(
        self,
        options: Options,
        generation: Generation,
        deciders: Deciders,
        outlook: Outlook,
        ranking: Ranking,
    ) -> None:
        self._options, self._generation, self._deciders = options, generation, deciders
        self._outlook, self._ranking = outlook, ranking
        self._plans: dict[int, LayerPlan] = {}

    def plan(self, layer: int, hidden: Tensor) -> LayerPlan:
        """The plan of `layer`, whose input is `hidden` [R, L, C]."""
        if layer not in self._plans:
            policy, layers = self._deciders.policy, self._planned_with(layer)
            questions = [self._question(each, hidden) for each in layers]
            plans = policy.plan_together(questions) if len(layers) > 1 else [policy.plan(questions[0])]
            self._plans.update(zip(layers, plans, strict=True))
        return self._plans[layer]

    def _planned_with(self, layer: int) -> list[int]:
        """`layer`, and the later ones whose plans nothing can change any more until they run."""
        options, layers = self._options, self._deciders.layers
        if options.score != "entropy" or options.entropy_source != "previous_scale":
            return [layer]
        later = (
            each
            for each in range(layer + 1, layers)
            # The map of a layer that runs before them may be measured anew.
            if not layer <= self._ranking.ranked_by(each, None) < each and self._outlook.prunes(each)
        )
        return [layer, *later]

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
            seed=self._options.seed,
        )
        return LayerQuestion(
            place=place,
            hidden=hidden,
            detail=self._deciders.scope.detail(layer),
            entropy=self._ranking.map_for(layer, scale),
            ratio=self._outlook.ratio(layer),
        )
