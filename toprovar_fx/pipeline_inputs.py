"""Checks of what a caller gives the pipeline, before any work is done."""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .errors import OptionError, PromptError
from .models.configs import InfinityConfig
from .models.text import TextContext, TextFeatures


def count_images(prompts: str | Sequence[str] | TextFeatures) -> int:
    """Return the number of images that prompts or features ask for.

    Raises:
        PromptError: none, a prompt that is no string, or features of impossible shape or lengths.
    """
    if isinstance(prompts, TextFeatures):
        return _count_rows(prompts)
    if not isinstance(prompts, Collection) or isinstance(prompts, bytes):
        # An iterator would be used up by counting.
        raise PromptError(f"prompts {prompts!r}: expected a string, a sequence of strings or TextFeatures")
    given = [prompts] if isinstance(prompts, str) else list(prompts)
    if not given:
        raise PromptError("no prompts: expected at least one")
    for prompt in given:
        if not isinstance(prompt, str):
            raise PromptError(f"prompt {prompt!r}: expected a string")
    return len(given)


def _count_rows(text: TextFeatures) -> int:
    for name, value in (("features", text.features), ("lengths", text.lengths)):
        if not isinstance(value, Tensor):
            raise PromptError(f"text {name} of type {type(value).__name__}: expected a tensor")
    features, lengths = text.features, text.lengths
    if features.ndim != 3 or not len(features):
        shape = f"{list(features.shape)}, of {features.ndim} dimensions"
        raise PromptError(f"text features {shape}: expected [B, T, channels], B at least 1")
    if not features.is_floating_point():
        raise PromptError(f"text features of {features.dtype}: expected floating-point numbers")
    if lengths.ndim != 1 or lengths.is_floating_point() or lengths.dtype == torch.bool:
        kind = f"{lengths.dtype} {list(lengths.shape)}"
        raise PromptError(f"lengths of {kind}: expected whole numbers, [{len(features)}]")
    longest = features.shape[1]
    if longest and not all(1 <= length <= longest for length in lengths.tolist()):
        raise PromptError(f"lengths of {lengths.tolist()}: expected 1 .. {longest}")
    return len(features)


def checked_number(name: str, value: float, largest: float) -> float:
    """Return ``value`` as a float.

    Raises:
        OptionError: it is no finite number in ``0 .. largest``.
    """
    if (
        isinstance(value, bool)
        or not isinstance(value, numbers.Real)
        or not 0 <= value <= largest
        or value == math.inf
    ):
        limit = "a finite number of at least 0" if largest == math.inf else f"a number in 0 .. {largest:g}"
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


def text_context(transformer: Any, text: TextFeatures, guided: bool) -> TextContext:
    """Prepare the text of ``B`` images, with guidance followed by ``B`` unconditional rows.

    Raises:
        PromptError: as ``checked_features``.
    """
    features, lengths = checked_features(text, transformer.config, transformer.device, transformer.dtype)
    if guided:
        dropped = torch.ones_like(lengths, dtype=torch.bool)
        features = torch.cat((features, transformer.unconditional(features, dropped)))
        lengths = lengths.repeat(2)
    context: TextContext = transformer.prepare_text(features, lengths)
    return context


def checked_features(
    text: TextFeatures, config: InfinityConfig, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Check the features and pad them to a multiple of ``text_multiple`` tokens.

    Raises:
        PromptError: they are not ``[B, T, text_channels]`` of at most ``text_maxlen`` tokens.
    """
    images, tokens, channels = text.features.shape
    if channels != config.text_channels or not 1 <= tokens <= config.text_maxlen:
        raise PromptError(
            f"text features of {tokens} tokens x {channels} channels: "
            f"expected 1 .. {config.text_maxlen} tokens x {config.text_channels}"
        )
    if text.lengths.shape != (images,):
        raise PromptError(f"lengths of shape {tuple(text.lengths.shape)}: expected ({images},)")
    padded = min(-(-tokens // config.text_multiple) * config.text_multiple, config.text_maxlen)
    features = torch.nn.functional.pad(text.features.to(device, dtype), (0, 0, 0, padded - tokens))
    return features, text.lengths.to(device)
