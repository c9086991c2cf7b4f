"""`toprovar explain`: what each pass did where, what ran dense and why, and what each layer kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..options import Options
from ..presets import DEFAULT_PRESET
from . import figures
from .loading import check_model, load
from .progress import progress
from .values import MODEL, check_device, check_prompts, check_seed, parse_options
from .variants import Variant, room_for_graphs

if TYPE_CHECKING:
    from ..pipeline import PipelineOutput
    from ..program import DenseProgram, StepProgram

PROMPT = "a red circle left of a blue square"
# A depth that is never reached, and neither tokens nor layers to drop: every layer is tapped, none is pruned.
MEASURING = {
    "prune_scales": True,
    "prune_layers": True,
    "prune_tokens": False,
    "layer_skip_below": 0.0,
    "keep": None,
    "scale_exit": None,
    "depth": "online",
    "depth_scale": None,
    "depth_layers": "all",
    "depth_compare": "ge",
    "tau": 1.0,
    "min_scale": 1,
    "layer_scope": "online",
    "scope_values": None,
    "lowering": "eager",
}


def explain(
    prompt: str = PROMPT,
    *,
    preset: str | None = None,
    options: Sequence[str] = (),
    seed: int = 0,
    model: str = MODEL,
    device: str | None = None,
) -> dict[str, Any]:
    """Draw ``prompt`` once as the options say and once dense with every entropy measured.

    Returns:
        What `--json` prints: passes, compiled graphs, the report of the pruned generation, and role and
        entropy of every layer, measured in the dense one.

    Raises:
        ToProVARError: an input is not valid.
    """
    check_model(model)
    check_prompts([prompt], model)
    check_seed(seed)
    settings = Options.parse(parse_options(preset, options))
    device = check_device(device)
    with progress("loading", doing=model):
        dense = load(model, device)
    with progress("explaining", 2, doing="compiling and drawing") as advance, room_for_graphs():
        pruned = Variant("pruned", "toprovar", options=settings.as_dict())
        output = pruned.pipeline(dense)(prompt, seed=seed)
        compiled = _programs(settings)
        advance("measuring entropies")
        observed = {**settings.as_dict(), **MEASURING}
        measured = Variant("measured", "toprovar", options=observed).pipeline(dense)(prompt, seed=seed)
        advance()
    return {
        "command": "explain",
        "model": model,
        "device": device,
        "prompt": prompt,
        "seed": seed,
        "preset": preset or DEFAULT_PRESET,
        "passes": [_pass(record) for program in compiled for record in program.records],
        "graphs": [
            {"name": region.name, "compile_s": list(region.compile_seconds)}
            for program in compiled
            for region in program.regions
        ],
        "scales": figures.sides(output),
        "layers": _layers(output, measured),
        "report": figures.report_json(output),
    }


def _programs(options: Options) -> list[StepProgram | DenseProgram]:
    """The graphs that Dynamo handed over under these options, the larger ones first."""
    from ..program import programs

    return sorted(programs(options), key=lambda program: len(program.regions), reverse=True)


def _pass(record: Any) -> dict[str, Any]:
    return {
        "name": record.name,
        "layers": list(record.sites),
        "milliseconds": record.milliseconds,
        "fallbacks": [str(fallback) for fallback in record.fallbacks],
    }


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
