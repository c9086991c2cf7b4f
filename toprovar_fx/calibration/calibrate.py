"""`calibrate(pipe, prompts)`: dense generations of a pipeline, and the profile that follows from them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from .._torch_private import recompile_limit, uncompiled
from ..errors import PromptError
from ..models.text import TextFeatures
from ..options import Options
from .calibration import Calibration
from .profile import Profile

if TYPE_CHECKING:
    from ..pipeline import InfinityPipeline, PipelineOutput

# Two traces serve a generation; the model may have been compiled in other ways before.
_RECOMPILE_LIMIT = 64


def calibrate(
    pipe: InfinityPipeline,
    prompts: Sequence[str] | TextFeatures,
    *,
    options: Mapping[str, object] | Options | None = None,
    seed: int = 0,
    batch: int = 1,
) -> Profile:
    """Draw prompts dense, measure every layer's entropies, and return the profile.

    Args:
        pipe: the pipeline; it is not changed. A compiled transformer is taken as the model that it wraps.
        prompts: what to draw, or text features.
        options: the criterion to calibrate, by default the preset "criterion".
        seed: image i uses ``seed + i``.
        batch: images that are drawn together; decisions are made per image.

    Raises:
        PromptError: no prompt, or one that cannot be encoded.
        OptionError: an invalid option, or one that leaves nothing to calibrate.
        ProfileError: the transformer's scale step cannot be measured.
    """
    calibration = Calibration(options)
    draw(calibration, pipe, prompts, seed=seed, batch=batch)
    return calibration.profile()


def draw(
    calibration: Calibration,
    pipe: InfinityPipeline,
    prompts: Sequence[str] | TextFeatures,
    *,
    seed: int = 0,
    batch: int = 1,
    on_batch: Callable[[PipelineOutput], object] | None = None,
) -> None:
    """Draw prompts as `calibrate` does and add every generation to ``calibration``.

    Args:
        calibration: takes the generations.
        pipe: see `calibrate`.
        prompts: see `calibrate`.
        seed: see `calibrate`.
        batch: see `calibrate`.
        on_batch: told the output of every generation.
    """
    from ..backend import toprovar

    measured = copy.copy(pipe)
    dense = uncompiled(pipe.transformer)
    measured.transformer = torch.compile(dense, backend=toprovar, options=calibration.options)
    with recompile_limit(_RECOMPILE_LIMIT):
        for start, part in _batches(prompts, batch):
            output = measured(part, seed=seed + start)
            calibration.add(output.report)
            if on_batch is not None:
                on_batch(output)


def _batches(prompts: Sequence[str] | TextFeatures, batch: int) -> list[tuple[int, list[str] | TextFeatures]]:
    """Parts of at most ``batch`` prompts, with the index of the first of each."""
    if isinstance(prompts, TextFeatures):
        total = len(prompts.features)
    else:
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        total = len(prompts)
    if not total:
        raise PromptError("no prompts to calibrate with: expected at least one")
    parts: list[tuple[int, list[str] | TextFeatures]] = []
    for start in range(0, total, batch):
        these = slice(start, start + batch)
        if isinstance(prompts, TextFeatures):
            parts.append((start, TextFeatures(prompts.features[these], prompts.lengths[these])))
        else:
            parts.append((start, prompts[these]))
    return parts
