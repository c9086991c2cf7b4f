"""`toprovar explain`: what each pass did where, what ran dense and why, and what each layer kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..presets import DEFAULT_PRESET
from . import figures
from .loading import check_model, load
from .progress import progress
from .values import MODEL, check_device, check_prompts, check_seed, parse_options
from .variants import Variant

PROMPT = "a red circle left of a blue square"


def explain(
    prompt: str = PROMPT,
    *,
    preset: str | None = None,
    options: Sequence[str] = (),
    seed: int = 0,
    model: str = MODEL,
    device: str | None = None,
) -> tuple[dict[str, Any], str]:
    """Draw ``prompt`` once and return the report as what `--json` prints, and as text.

    Raises:
        ToProVARError: an input is not valid.
    """
    check_model(model)
    check_prompts([prompt], model)
    check_seed(seed)
    settings = parse_options(preset, options)
    device = check_device(device)
    with progress("loading", doing=model):
        dense = load(model, device)
    with progress("drawing", doing="compiling first"):
        output = Variant(preset or DEFAULT_PRESET, "toprovar", options=settings).pipeline(dense)(
            prompt, seed=seed
        )
    report = figures.report_json(output)
    result = {"command": "explain", "model": model, "device": device, "prompt": prompt, "seed": seed}
    return {**result, "preset": preset or DEFAULT_PRESET, "report": report}, figures.report_text(output)
