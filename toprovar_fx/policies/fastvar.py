"""Policy `fastvar`: pivotal tokens of every sublayer, cached maps for the others, no last scales."""

from __future__ import annotations

import math
from typing import ClassVar

from .peer import constants
from .policy import Policy

# Layers 3 to 27 of 32 are pruned.
_FIRST, _END = 3 / 32, 28 / 32
# Kept share of the scales 32x32 and 40x40 of 13.
_KEEP = {-4: 0.6, -3: 0.5}


class FastVAR(Policy):
    """Every sublayer keeps the tokens that lie farthest from the mean of the residual stream before it.

    The others get the sublayer's output at the last scale that ran whole, area-interpolated. Scores are the
    option `score="frequency"`, the scales at the end are left out by `scale_exit`.
    """

    name = "fastvar"
    summary = "tokens far from the mean, per sublayer and row; cached maps for the others; no last two scales"
    source = "FastVAR, ICCV 2025, arXiv 2503.23367; code 34cdd65"
    granularity = "sublayer"
    by_options = True
    constants: ClassVar = constants(
        score="frequency", keep=_KEEP, scale_exit=-2, min_scale=-4, cfg_rows="per_row"
    )
    deviations: ClassVar[tuple[str, ...]] = (
        "Scales count from the end of the schedule; published are widths 32 and 40 (pruned), 48 and 64 (not "
        "run), which other schedules need not have.",
        "Layers are shares of the depth; published are layers 3 to 27 of 32. 40 layers give 4 to 34.",
        "The cached map is that of the last scale at which the sublayer ran whole, and of this image; "
        "published is the 24x24 map, which an image of another shape finds left over from the one before.",
        "Kept tokens stay in their order; published is that of the scores, which attention does not see.",
        "Any batch runs; the published code is written for one image with guidance.",
    )

    def is_open(self, unit: int) -> bool:
        """The published share of the depth, less the layers that the options protect."""
        first, end = (math.floor(share * self.layers + 0.5) for share in (_FIRST, _END))
        return first <= unit // self.parts < end and super().is_open(unit)

    def retention(self, scale: int, unit: int, detail: float) -> float:
        """The published share, so that a budget changes all scales alike; the last one at other scales."""
        return _KEEP.get(scale - len(self.schedule), _KEEP[-3])
