"""The plans of the layers at the scale that runs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..criteria.score_registry import ScoreContext
from ..criteria.weighing import weigh_layers
from ..options import Options
from ..policies.layer_plan import LayerPlan, LayerQuestion, wanted_counts
from ..policies.pacing import Pacing
from ..readback import ReadingPart
from .deciders import Deciders
from .layer_memory import LayerMemory
from .outlook import Outlook
from .recorded_function import RecordedFunction

if TYPE_CHECKING:
    from .generation import Generation


class LayerPlans:
    """Asks the policy for K and the keep set of every layer, once per scale.

    Args:
        options: the settings.
        generation: the scale that runs.
        deciders: the policy and R.
        outlook: knows explicit keep ratios.
        left: the maps that rank tokens, and what layers left for those that they do not compute.

    Attributes:
        weigh: `weigh_layers`, recorded where the device can.
    """

    def __init__(
        self,
        options: Options,
        generation: Generation,
        deciders: Deciders,
        outlook: Outlook,
        left: LayerMemory,
    ) -> None:
        self._options, self._generation, self._deciders = options, generation, deciders
        self._outlook, self._left = outlook, left
        self.weigh = RecordedFunction(weigh_layers, None)
        self._plans: dict[int, LayerPlan] = {}
        self._counts: dict[int, int] = {}
        self._told: tuple[int, tuple[int, ...], ReadingPart] | None = None

    def plan(self, layer: int, hidden: Tensor) -> LayerPlan:
        """The plan of `layer`, whose input is `hidden` [R, L, C]."""
        if layer not in self._plans:
            policy, layers = self._deciders.policy, self._planned_with(layer)
            questions = [self._question(each, hidden) for each in layers]
            if len(layers) > 1:
                pacing = Pacing(self.weigh, partial(self._resize_updates, layers, hidden.device))
                plans = policy.plan_together(questions, pacing)
            else:
                plans = [policy.plan(questions[0])]
            self._plans.update(zip(layers, plans, strict=True))
        return self._plans[layer]

    def counts(self, part: range, hidden: Tensor) -> tuple[tuple[int, int], ...] | None:
        """(layer, K) of the layers of `part` that may be pruned, where one wait gives them; else None."""
        if not self._together:
            return None
        layers = self._outlook.pruning(part)
        if self._told is not None and self._told[:2] == (self._generation.scale, tuple(layers)):
            self._counts = self._told_counts(layers, self._told[2], hidden.device)
            return tuple(self._counts.items())
        if any(self._reranked(layer, after=part.start) for layer in layers):
            return None
        return tuple((layer, self.plan(layer, hidden).count) for layer in layers)

    def look_ahead(self) -> None:
        """Find what is to be asked for once D and K are known, and does not depend on them."""
        if self._options.by_entropies:
            self._outlook.able_here()

    def count(self, layer: int, hidden: Tensor) -> int:
        """K of `layer`, as told or planned."""
        told = self._counts.get(layer)
        return self.plan(layer, hidden).count if told is None else told

    def hear(self, scale: int, layers: tuple[int, ...], shares: ReadingPart) -> None:
        """Take the shares of tokens that `layers` want to keep at `scale`, where they are yet to run."""
        self._told = scale, layers, shares

    @property
    def waits(self) -> bool:
        """Whether who asks for the K that were told has to wait for the device."""
        told = self._told
        return told is not None and told[0] == self._generation.scale and not told[2].arrived

    def forget_told(self) -> None:
        """Weigh the next scale's layers anew: it has other rows, or none follows."""
        self._told = None

    def _told_counts(
        self, layers: Sequence[int], shares: ReadingPart, device: torch.device
    ) -> dict[int, int]:
        self._resize_updates(layers, device)
        length = self._generation.schedule.tokens[self._generation.scale]
        return dict(zip(layers, wanted_counts(self._options, shares.tolist(), length), strict=True))

    @property
    def _together(self) -> bool:
        """Whether one map ranks several layers, or each its own of an earlier scale."""
        return self._options.ranks_from_before or self._options.ranks_by_dense_layer

    def _reranked(self, layer: int, after: int) -> bool:
        """Whether the map that ranks `layer` is measured anew at this scale, by a layer from `after` on."""
        if self._options.ranks_by_dense_layer:
            return any(map(self._outlook.taps, range(after, layer)))
        ranking = self._left.maps.ranked_by(layer, None)
        return after <= ranking < layer and self._outlook.taps(ranking)

    def _resize_updates(self, layers: Sequence[int], device: torch.device) -> None:
        """Give the device the work that follows if the layers are pruned, while the host waits for K."""
        if device.type != "cuda" or self._options.restore != "cache":
            return
        known = [layer for layer in layers if layer in self._left.updates]
        if self._left.updates.blocks(known) is None:  # else the step resizes them itself
            for layer in known:
                self._left.updates.at(layer, self._generation.scale)

    def _planned_with(self, layer: int) -> list[int]:
        """`layer`, and the later ones whose plans nothing can change any more until they run."""
        layers = self._deciders.layers
        if not self._together:
            return [layer]
        if self._options.ranks_by_dense_layer:
            layers = next((at + 1 for at in range(layer, layers) if self._outlook.taps(at)), layers)
            return [layer, *self._outlook.pruning(range(layer + 1, layers))]
        later = (
            each
            for each in range(layer + 1, layers)
            if self._outlook.prunes(each) and not self._reranked(each, after=layer)
        )
        return [layer, *later]

    def end_scale(self) -> None:
        """Forget the plans of the scale that ran."""
        self._plans, self._counts = {}, {}

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
            entropy=self._left.ranking(layer),
            ratio=self._outlook.ratio(layer),
        )
