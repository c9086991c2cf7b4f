"""Load the pipeline that `--model` names, and the text it takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..errors import OptionError, nearest
from .values import check_prompts

if TYPE_CHECKING:
    from ..models.text import TextFeatures
    from ..pipeline import InfinityPipeline

UNTRAINED = "untrained:"


def check_model(model: str) -> None:
    """Check the name after `untrained:`; files are checked when they are read.

    Raises:
        OptionError: there is no configuration of this name.
    """
    if not model.startswith(UNTRAINED):
        return
    from ..models.configs import CONFIGS

    name = model.removeprefix(UNTRAINED)
    if name not in CONFIGS:
        near = nearest(name, CONFIGS)
        hint = f"; nearest: {near}" if near else ""
        raise OptionError(f"unknown model '{model}', expected one of {', '.join(CONFIGS)}{hint}")


def load(model: str, device: str) -> InfinityPipeline:
    """Load a shipped model, a pipeline file, or `untrained:NAME` with random weights, onto ``device``.

    Raises:
        ToProVARError: the model or the file is not there, or does not fit.
    """
    from ..pipeline import InfinityPipeline

    if model.startswith(UNTRAINED):
        return InfinityPipeline.untrained(model.removeprefix(UNTRAINED), device=device)
    return InfinityPipeline.from_pretrained(model, device=device)


def features(pipe: InfinityPipeline, prompts: list[str], model: str) -> list[str] | TextFeatures:
    """Return what ``pipe`` takes for ``prompts``: themselves, or random features if it has no text encoder.

    For measuring time the content of the features does not matter, their number does.
    """
    if pipe.text_encoder is not None:
        check_prompts(prompts, model)
        return prompts
    from ..models.text import TextFeatures

    tokens = max(len(prompt.split()) for prompt in prompts)
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(1, tokens, pipe.config.text_channels, generator=generator)
    return TextFeatures(values.repeat(len(prompts), 1, 1), torch.full((len(prompts),), tokens))
