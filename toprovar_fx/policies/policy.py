"""What every policy answers; the answers here follow the options `keep`, `scale_exit` and `score`."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import Tensor

from .layer_plan import LayerPlan, LayerQuestion, plan_layer
from .pacing import UNPACED, Pacing

if TYPE_CHECKING:
    from ..options import Options
    from ..schedules import Schedule
    from .scale_depth import ScaleDepth


class Policy:
    """Decides in one generation; the controller makes one, asks it, and keeps the books.

    A *unit* is what is decided about at once: a layer, or a sublayer where `granularity` says so and the
    model's blocks can be cut there. Units count from 0 through the whole model.

    Args:
        options: the settings, the policy's own constants among them.
        schedule: the scales.
        images: B.
        depth: finds or holds the scale depth D, and knows `scale_exit`.

    Attributes:
        name: the value of the option `policy`.
        summary: what it does, in a sentence.
        source: where it was published.
        deviations: where it differs from what was published, and why; sentences.
        constants: option values that it starts from; they go over those of the preset.
        granularity: what it decides about at once.
        skips: whether it leaves out scales or rows although no option asks for it.
        by_options: whether the options and the model's size alone decide which units are pruned, and `score`
            which of their tokens, so that a whole step can be decided before it runs.
        parts: units of a layer.
        units: units of the model.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    deviations: ClassVar[tuple[str, ...]] = ()
    constants: ClassVar[Mapping[str, object]] = {}
    granularity: ClassVar[Literal["layer", "sublayer"]] = "layer"
    skips: ClassVar[bool] = False
    by_options: ClassVar[bool] = False

    def __init__(self, options: Options, schedule: Schedule, images: int, depth: ScaleDepth) -> None:
        self.options, self.schedule, self.images, self.depth = options, schedule, images, depth
        self.units, self.parts = 0, 1

    def adopt(self, units: int, parts: int) -> None:
        """Learn the size of the model, when its first scale step runs."""
        self.units, self.parts = units, parts

    @property
    def layers(self) -> int:
        """Number of layers of the model."""
        return self.units // self.parts

    # Which scales, and which rows of them.

    def exits(self, scale: int) -> bool:
        """Whether `scale` and all later ones are not run at all."""
        return self.depth.exits(scale)

    def observe_codes(self, scale: int, summed: Tensor, decode: Callable[[Tensor], Tensor]) -> None:
        """Look at the code sum [B, d, h, w] after a scale; `decode` makes images [B, 3, H, W] of it."""

    def conditional_only(self, scale: int) -> bool:
        """Whether the unconditional rows of a guided generation are left out at `scale`."""
        first = self.options.guidance_until
        if first is None:
            return False
        return scale >= max(1, first if first > 0 else len(self.schedule) + first)

    def alone(self) -> Sequence[Hashable] | None:
        """Per image, what would be left out of it in a batch of its own; None where batches do no harm."""
        return None

    def keep_rows(self, rows: int) -> None:
        """Forget all but the first `rows` batch rows: the others do not run any more."""

    # Which layers.

    def is_open(self, unit: int) -> bool:
        """Whether a unit may be pruned at all; `protected_layers_first` and `_last` are not."""
        first, last = self.options.protected_layers_first, self.options.protected_layers_last
        return first <= unit // self.parts < self.layers - last

    def keep_ratio(self, scale: int, unit: int) -> float | None:
        """K / L of a unit at a scale; None where the policy has none beforehand."""
        return self.options.keep_ratio(scale, unit // self.parts, len(self.schedule), self.layers)

    def prunes(self, scale: int) -> bool:
        """Whether the units without a keep ratio may compute fewer tokens at the scale that runs."""
        return False

    def may_prune(self, scale: int, running: int) -> bool:
        """The same for a later scale, as far as it can be told while `running` runs."""
        return False

    def retention(self, scale: int, unit: int, detail: float) -> float:
        """Relative weight of a unit when a budget is shared out; `detail` is R of eq. 4."""
        return 1.0

    def observe_layer(self, scale: int, unit: int, before: Tensor, after: Tensor) -> None:
        """Look at the residual stream [R, L, C] around a unit that ran, in whole or in part."""

    def watches(self, scale: int) -> bool:
        """Whether it has to see every unit of `scale`, so that these have to be called one by one."""
        return type(self).observe_layer is not Policy.observe_layer

    # Which tokens, and what the others get.

    def plan(self, ask: LayerQuestion) -> LayerPlan:
        """K and the keep set of one unit at one scale."""
        return plan_layer(self.options, ask)

    def plan_together(self, asks: Sequence[LayerQuestion], pacing: Pacing = UNPACED) -> list[LayerPlan]:
        """The plans of several units of one scale, in which nothing but the questions decides."""
        return [self.plan(ask) for ask in asks]

    def complete(self, scale: int, unit: int, keep: Tensor, hidden: Tensor) -> Tensor:
        """What a unit hands on that computed the tokens `keep` [R, K] and made `hidden` [R, L, C]."""
        return hidden
