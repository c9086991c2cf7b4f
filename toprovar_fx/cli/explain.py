"""`toprovar explain`: what each pass did where, what ran dense and why, and what each layer kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..calibration.measuring import measuring
from ..explanation import Explanation, explaining
from ..options import Options
from ..presets import DEFAULT_PRESET
from . import arguments as take
from . import figures
from .loading import check_dtype, check_model, load
from .output import check_file
from .progress import progress
from .values import MODEL, check_device, check_path, check_prompts, check_seed, parse_options
from .variants import Variant, room_for_graphs

if TYPE_CHECKING:
    from ..pipeline import PipelineOutput

PROMPT = "a red circle left of a blue square"


def explain(
    prompt: take.Prompt = PROMPT,
    preset: take.Preset = None,
    options: take.Settings = None,
    seed: take.Seed = 0,
    model: take.Model = MODEL,
    device: take.Device = None,
    dtype: take.Dtype = None,
    html: take.Html = None,
) -> tuple[Explanation, dict[str, Any]]:
    """Draw ``prompt`` once as the options say and once dense with every entropy measured.

    Returns:
        The report of the compiler, and what `--json` prints: that report as JSON, and role, entropy and kept
        tokens of every layer, entropies measured in the dense generation.

    Raises:
        ToProVARError: an input is not valid.
    """
    check_model(model)
    check_prompts([prompt], model)
    check_seed(seed)
    settings = Options.parse(parse_options(preset, options or ()))
    device = check_device(device)
    check_dtype(dtype)
    if html is not None:
        check_path("--html", html)
        check_file(Path(html))
    with progress("loading", doing=model):
        dense = load(model, device, dtype)
    with progress("explaining", 2, doing="compiling and drawing") as advance, room_for_graphs():
        with explaining(model) as found:
            pruned = Variant("pruned", "toprovar", options=settings.as_dict())
            output = pruned.pipeline(dense)(prompt, seed=seed)
        advance("measuring entropies")
        observed = {**measuring(settings).as_dict(), "lowering": "eager"}
        measured = Variant("measured", "toprovar", options=observed).pipeline(dense)(prompt, seed=seed)
        advance()
    if html is not None:
        found.to_html(html)
    result = {
        "command": "explain",
        "model": model,
        "device": device,
        "prompt": prompt,
        "seed": seed,
        "preset": preset or DEFAULT_PRESET,
        "scales": figures.sides(output),
        "layers": _layers(output, measured),
        "explanation": found.to_json(),
    }
    return found, result


def _layers(output: PipelineOutput, measured: PipelineOutput) -> list[dict[str, Any]]:
    """Per layer: role R, and by scale the mean entropy and the kept tokens; None where there is none."""
    roles, entropies = figures.roles(measured), figures.entropies(measured)
    used, kept = figures.roles(output), figures.kept_by_place(output)
    scales = range(len(figures.sides(output)))
    return [
        {
            "layer": layer,
            "role": used.get(layer, roles.get(layer)),
            "entropy_nats": [entropies.get((scale, layer)) for scale in scales],
            "kept_share": [kept.get((scale, layer)) for scale in scales],
        }
        for layer in sorted({layer for _, layer in kept} | set(roles))
    ]
