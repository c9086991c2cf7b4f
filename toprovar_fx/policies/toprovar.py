"""Policy `toprovar`: attention entropy decides from which scale on, in which layers, which tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from ..criteria.saliency import mean_retention, scale_weight
from .layer_plan import LayerPlan, LayerQuestion, plan_layers
from .pacing import UNPACED, Pacing
from .policy import Policy

# The mean of a normalised entropy map, by the option `normalise`; 1 / L where it sums to 1.
_MEAN_SALIENCY = {"mean": 1.0, "rank": 0.5, "minmax": 0.5}


class ToProVAR(Policy):
    """The criterion of the paper, with its open choices as options (docs/method.md)."""

    name = "toprovar"
    summary = "attention entropy decides from which scale on, in which layers and which tokens"
    source = "ToProVAR, arXiv 2602.22948"
    deviations: ClassVar[tuple[str, ...]] = (
        "The paper leaves choices open and some formulas contradict the text: docs/method.md lists each.",
    )

    def prunes(self, scale: int) -> bool:
        """Past the depth D, if tokens or layers may be dropped."""
        return self._shrinks and self.depth.beyond(scale)

    def may_prune(self, scale: int, running: int) -> bool:
        """Past the depth D, or where D may still fire at the scale that runs."""
        may_fire = self.depth.undecided and running >= self.depth.first
        return self.depth.beyond(scale) or may_fire

    def retention(self, scale: int, unit: int, detail: float) -> float:
        """The mean of P_keep (eq. 6)."""
        options, tokens = self.options, self.schedule.tokens[scale]
        saliency = _MEAN_SALIENCY.get(options.normalise, 1 / tokens)
        weight = scale_weight(scale, len(self.schedule))
        return mean_retention(saliency, detail, weight, options.alpha_min, options.alpha_max)

    def plan_together(self, asks: Sequence[LayerQuestion], pacing: Pacing = UNPACED) -> list[LayerPlan]:
        """All at the price of one."""
        return plan_layers(self.options, asks, pacing)

    @property
    def _shrinks(self) -> bool:
        options = self.options
        return not options.explicit and (options.prune_tokens or options.layer_skip_below > 0)
