"""Policy `skipvar`: by the detail of a preview it leaves out last scales, or their unconditional rows."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch.nn.functional as F
from torch import Tensor

from ..user_line import warn_at_user_line
from .classifier import load_classifier
from .high_frequency import high_frequency_share, sobel_change
from .peer import constants
from .policy import Policy

if TYPE_CHECKING:
    from ..options import Options
    from ..schedules import Schedule
    from .scale_depth import ScaleDepth

# The scale after which it decides, of 13: index 9. The preview has the sides of the scale with index 4.
_DECIDES, _PREVIEW = -4, 4 / 12


class SkipVAR(Policy):
    """Decides once, after the fourth scale from the end, from two small previews of the image.

    Attributes:
        features: per image, once they are known: how much the last scale changed the gradients, and the
            share of high frequencies.
        skipped: number of scales at the end that do not run.
        conditional: number of scales at the end that run the conditional rows alone.
    """

    name = "skipvar"
    summary = "a classifier of high frequencies leaves out up to 3 last scales, or their unconditional rows"
    source = "SkipVAR, arXiv 2506.08908; code 607be0e"
    skips = True
    constants: ClassVar = constants(prune_tokens=False, classifier="skipvar_ssim_84")
    deviations: ClassVar[tuple[str, ...]] = (
        "A batch takes the most careful decision of its images; published is one image.",
        "The decision scale and the skipped ones count from the end, and the preview has the sides of the "
        "scale a third of the way through; published are indices 9, 10 to 12 and 4 of 13.",
        "Coefficients are a JSON file, not pickles; those published were fitted to Infinity-2B at 13 scales.",
        "Logits of conditional rows alone are taken as they are; published is c x + (1 - c) x, which rounds.",
        "It needs a loop that tells the code sums: InfinityPipeline, or one that calls note_codes.",
    )

    def __init__(self, options: Options, schedule: Schedule, images: int, depth: ScaleDepth) -> None:
        super().__init__(options, schedule, images, depth)
        self._classifier = load_classifier(options.classifier)
        self._at = len(schedule) + _DECIDES
        self._before: Tensor | None = None
        self._warned = False
        self.features: list[tuple[float, float]] | None = None
        self.skipped = self.conditional = 0

    def observe_codes(self, scale: int, summed: Tensor, decode: Callable[[Tensor], Tensor]) -> None:
        """Keep the code sum before the decision scale, and decide after it."""
        if scale == self._at - 1:
            self._before = summed
        elif scale == self._at and self._before is not None:
            before, after = (decode(self._preview(codes)).float() for codes in (self._before, summed))
            self._before = None
            change, share = sobel_change(before, after), high_frequency_share(after)
            self.features = list(zip(change.tolist(), share.tolist(), strict=True))
            self._decide(self.features)

    def _preview(self, summed: Tensor) -> Tensor:
        """A code sum [B, d, h, w] at the sides of an early scale."""
        small = self.schedule.sides[round(_PREVIEW * (len(self.schedule) - 1))]
        patch = summed.shape[-1] // self.schedule.sides[-1][1]
        return F.interpolate(summed, size=(small[0] * patch, small[1] * patch), mode="bilinear")

    def _decide(self, features: Sequence[tuple[float, float]]) -> None:
        decided = [self._alone(pair) for pair in features]
        self.skipped = min(skipped for skipped, _ in decided)
        if not self.skipped:
            self.conditional = min(conditional for skipped, conditional in decided if not skipped)

    def _alone(self, pair: tuple[float, float]) -> tuple[int, int]:
        """Scales that do not run, and scales of conditional rows alone, for one image."""
        skipped = self._classifier["skip"].decide(pair)
        return skipped, 0 if skipped else self._classifier["uncond"].decide(pair)

    def alone(self) -> Sequence[Hashable] | None:
        """What the classifiers say of each image; a batch takes the most careful answer."""
        return None if self.features is None else [self._alone(pair) for pair in self.features]

    def exits(self, scale: int) -> bool:
        """The last `skipped` scales."""
        if scale > max(self._at, 0) and self.features is None and not self._warned:
            self._warned = True
            warn_at_user_line(
                "toprovar: policy='skipvar' was told no code sums, so it leaves nothing out; draw with "
                "InfinityPipeline, or call note_codes on the generation after every scale"
            )
        return super().exits(scale) or scale >= len(self.schedule) - self.skipped

    def conditional_only(self, scale: int) -> bool:
        """The last `conditional` scales, and those from `guidance_until` on."""
        return super().conditional_only(scale) or scale >= len(self.schedule) - self.conditional
