"""Load the pipeline that `--model` names, and the text it takes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import torch

from ..errors import OptionError, nearest
from ..models.configs import CONFIGS
from .values import check_choice, check_prompts

if TYPE_CHECKING:
    from ..loading.memory import MemoryNeed
    from ..models.text import TextFeatures
    from ..pipeline import InfinityPipeline

UNTRAINED = "untrained:"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def check_model(model: str) -> None:
    """Check the name after `untrained:`; files are checked when they are read.

    Raises:
        OptionError: there is no configuration of this name, or no name.
    """
    if not model.strip():
        raise OptionError(f"--model is '{model}', expected scenes, a path or untrained:NAME")
    if not model.startswith(UNTRAINED):
        return
    name = model.removeprefix(UNTRAINED)
    if name not in CONFIGS:
        near = nearest(name, CONFIGS)
        hint = f"; nearest: {near}" if near else ""
        raise OptionError(f"unknown model '{model}', expected one of {', '.join(CONFIGS)}{hint}")


def load(
    model: str, device: str, dtype: str | None = None, images: int = 1, *, for_prompts: bool = True
) -> InfinityPipeline:
    """Load a shipped model, a file or folder, or `untrained:NAME` with random weights, onto ``device``.

    What any but the small shipped model will need is said on standard error before it is loaded.

    Args:
        model: of the command line.
        device: of the command line.
        dtype: name out of ``DTYPES``; None is bfloat16 on CUDA, else float32.
        images: that will be drawn together, for the memory.
        for_prompts: refuse a model without text encoder.

    Raises:
        ToProVARError: the model or the file is not there, or does not fit.
    """
    from ..loading.memory import memory_needed, memory_of_named
    from ..pipeline import InfinityPipeline

    chosen = DTYPES.get(dtype) if dtype is not None else None
    if model.startswith(UNTRAINED):
        name = model.removeprefix(UNTRAINED)
        _announce(model, memory_of_named(name, device, chosen, images), for_prompts)
        return InfinityPipeline.untrained(name, device=device, dtype=chosen)
    if model not in CONFIGS:
        _announce(model, memory_needed(model, device, chosen, images), for_prompts)
    return InfinityPipeline.from_pretrained(model, device=device, dtype=chosen)


def check_dtype(dtype: str | None) -> None:
    """Check the name of a dtype.

    Raises:
        OptionError: it is none of ``DTYPES``.
    """
    if dtype is not None:
        check_choice("dtype", dtype, list(DTYPES))


def _announce(model: str, need: MemoryNeed, for_prompts: bool) -> None:
    if for_prompts and "text encoder" not in need.weights_bytes:
        raise OptionError(
            f"model '{model}' has no text encoder, expected the folder of its T5 (flan-t5-xl) beside the "
            "weights; without one only `bench` runs"
        )
    print(f"toprovar: {need}", file=sys.stderr, flush=True)


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
