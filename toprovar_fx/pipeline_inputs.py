"""Checks of what a caller gives the pipeline, before any work is done."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from .errors import OptionError, PromptError
from .models.text import TextFeatures


def count_images(prompts: str | Sequence[str] | TextFeatures) -> int:
    """Return the number of images that prompts or features ask for.

    Raises:
        PromptError: none, a prompt that is no string, or features of impossible shape or lengths.
    """
    if isinstance(prompts, TextFeatures):
        if prompts.features.ndim != 3:
            raise PromptError(
                f"text features of {prompts.features.ndim} dimensions: expected [B, T, channels]"
            )
        lengths, longest = prompts.lengths.tolist(), prompts.features.shape[1]
        if longest and not all(1 <= length <= longest for length in lengths):
            raise PromptError(f"lengths of {lengths}: expected 1 .. {longest}")
        return len(prompts.features)
    given = [prompts] if isinstance(prompts, str) else list(prompts)
    if not given:
        raise PromptError("no prompts: expected at least one")
    for prompt in given:
        if not isinstance(prompt, str):
            raise PromptError(f"prompt {prompt!r}: expected a string")
    return len(given)


def checked_number(name: str, value: float, largest: float) -> float:
    """Return ``value`` as a float.

    Raises:
        OptionError: it is no finite number in ``0 .. largest``.
    """
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not 0 <= value <= largest
        or value == math.inf
    ):
        limit = "a number of at least 0" if largest == math.inf else f"a number in 0 .. {largest:g}"
        raise OptionError(f"{name}={value!r}: expected {limit}")
    return float(value)


def track_scales(scales: Iterable[int], progress: bool) -> Iterable[int]:
    """Iterate over scales, with a progress bar if wanted.

    Raises:
        OptionError: a bar is wanted and ``rich`` is not installed.
    """
    if not progress:
        return scales
    try:
        from rich.progress import track
    except ImportError:
        raise OptionError("progress=True needs rich: pip install rich, or leave progress off") from None
    return track(scales, description="scales")
