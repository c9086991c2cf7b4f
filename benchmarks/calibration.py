"""How far decisions calibrated once agree with those that the criterion takes for every image online.

    python -m benchmarks.calibration --n 24 --device cpu               # 24 prompts to calibrate, 24 others
    python -m benchmarks.calibration --n 200 --batch 50 --device cuda  # on a GPU

Both sets are drawn dense with every layer's entropies measured, and what the criterion decides online is
derived for each image by itself, whatever the batch (`toprovar_fx/calibration/replay.py`). For the first
`--check` images the online generation is really run, one by one, and compared with what was derived.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections import Counter
from typing import Any

import torch

from toprovar_fx import InfinityPipeline
from toprovar_fx.backend import toprovar
from toprovar_fx.calibration.agreement import Agreement, agreement
from toprovar_fx.calibration.calibrate import draw
from toprovar_fx.calibration.calibration import Calibration
from toprovar_fx.calibration.replay import Decisions
from toprovar_fx.cli.variants import parse_variant, room_for_graphs
from toprovar_fx.runtime.report import GenerationReport
from toprovar_fx.scenes.prompts import eval_prompts

# The default criterion, the same with fine buckets, with pruning that may begin half-way, and by another map.
VARIANTS = (
    "criterion",
    "criterion:buckets=(.1,.2,.3,.4,.5,.6,.7,.8,.9)",
    "criterion:min_scale=4:beta=0.005",
    "criterion:entropy_source=dense_layer",
)
SEEDS_APART = 1_000_000
SHOWN = 8


class Shared:
    """Several criteria that are measured by the same generations."""

    def __init__(self, options: dict[str, dict[str, Any]]) -> None:
        self.each = {name: Calibration(values) for name, values in options.items()}
        first, *others = (calibration.options for calibration in self.each.values())
        measured = ("entropy_keys", "scope_of", "cfg_rows", "representative_scale", "scope_centre")
        for other in others:
            unequal = [name for name in measured if first[name] != other[name]]
            if unequal:
                raise SystemExit(f"variants differ in {unequal[0]}: expected the same, run them apart")
        self.options = {**first, "lowering": "eager"}

    def add(self, report: GenerationReport | None) -> None:
        for calibration in self.each.values():
            calibration.add(report)


def online(pipe: InfinityPipeline, options: dict[str, Any], prompt: str, seed: int) -> Decisions:
    """What an online generation of one image really decided."""
    pruned = copy.copy(pipe)
    pruned.transformer = torch.compile(
        pipe.transformer, backend=toprovar, options={**options, "lowering": "eager"}
    )
    report = pruned(prompt, seed=seed).report
    layers = report.controller.layers
    kept = {(scale, layer): count for scale, layer, count, _ in report.kept}
    # Scale 0 has one token and runs outside the gates.
    kept |= {(0, layer): 1 for layer in range(layers)}
    return Decisions(report.depth, tuple(report.roles.get(layer, 1.0) for layer in range(layers)), kept)


def shares(found: Agreement) -> dict[str, float]:
    names = ("roles", "kept", "kept_where_pruned", "pruned_or_not", "depth")
    return {name: round(getattr(found, name), 4) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=200, help="prompts compared")
    parser.add_argument(
        "--calibrate", type=int, help="other prompts that are calibrated with; as many by default"
    )
    parser.add_argument("--batch", type=int, default=1, help="images drawn together")
    parser.add_argument("--check", type=int, default=4, help="images whose online generation is really run")
    parser.add_argument("--variant", action="append", help="PRESET:key=value:...; repeatable")
    parser.add_argument("--model", default="scenes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()

    names = arguments.variant or list(VARIANTS)
    options = {name: dict(parse_variant(name).options or {}) for name in names}
    pipe = InfinityPipeline.from_pretrained(arguments.model, device=arguments.device)
    tuning = [prompt.text for prompt in eval_prompts(arguments.calibrate or arguments.n, seed=1)]
    others = [prompt.text for prompt in eval_prompts(arguments.n)]
    started = time.perf_counter()
    calibrated, compared = Shared(options), Shared(options)
    with room_for_graphs():
        draw(calibrated, pipe, tuning, seed=SEEDS_APART, batch=arguments.batch)  # type: ignore[arg-type]
        draw(compared, pipe, others, batch=arguments.batch)  # type: ignore[arg-type]
        seconds = time.perf_counter() - started
        results: dict[str, Any] = {}
        for name in names:
            profile = calibrated.each[name].joined()
            found = agreement(profile, compared.each[name].decisions, pipe.schedule)
            real = [
                online(pipe, options[name], prompt, at) for at, prompt in enumerate(others[: arguments.check])
            ]
            derived = compared.each[name].decisions[: arguments.check]
            exact = [
                shares(agreement(one, [other], pipe.schedule))
                for one, other in zip(derived, real, strict=True)
            ]
            results[name] = {
                "agreement": shares(found),
                "depth": profile.depth,
                "depths_online": Counter(str(each.depth) for each in compared.each[name].decisions),
                "layer_scope": [round(value, 3) for value in profile.scope],
                "disagreements": [
                    {"scale": at.scale, "layer": at.layer, "calibrated": at.calibrated, "online": at.online}
                    for at in found.places
                ],
                "derived_equals_online": {
                    key: round(sum(each[key] for each in exact) / len(exact), 4) for key in exact[0]
                }
                if exact
                else None,
            }
            show(name, results[name], len(others))
    print(
        json.dumps(
            {
                "benchmark": "calibration",
                "model": arguments.model,
                "device": torch.cuda.get_device_name() if arguments.device != "cpu" else "cpu",
                "torch": torch.__version__,
                "calibrated_with": len(tuning),
                "compared": len(others),
                "batch": arguments.batch,
                "checked_online": arguments.check,
                "measuring_s": round(seconds, 1),
                "variants": results,
            }
        )
    )


def show(name: str, result: dict[str, Any], images: int) -> None:
    print(f"\n{name}\n  D {result['depth']}, online {dict(result['depths_online'])} of {images}")
    for label, share in result["agreement"].items():
        print(f"  {label:<20} {share:.1%}")
    for place in result["disagreements"][:SHOWN]:
        counts = ", ".join(f"{count} in {times}" for count, times in place["online"].items())
        at = f"scale {place['scale']}, layer {place['layer']}"
        print(f"  {at}: calibrated {place['calibrated']} tokens, online {counts} of {images}")
    print(f"  derived decisions that the online generations took: {result['derived_equals_online']}")


if __name__ == "__main__":
    main()
