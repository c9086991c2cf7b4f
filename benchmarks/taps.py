"""What entropy taps and statistics cost in a whole pruned generation.

    python -m benchmarks.taps --device cpu                       # the demo model
    python -m benchmarks.taps --model infinity-2b --device cuda  # its shape with random weights

For every preset four variants keep the same number of tokens in the same places, in interleaved rounds:

- online: the preset as it is, every tap and statistic that its decisions ask for;
- told: the same, but whatever the host reads from the device it knows already (from the generation before,
  which drew the same image), so that it waits for nothing: the price of taps and statistics alone;
- ranking: the counts that `online` came to, as a profile would fix them; taps only where tokens are ranked;
- bare: the same counts, tokens ranked by their position, which costs nothing: no tap, no statistic.

The cost is the median over rounds of a variant's time over that of `bare`, less 1, with its 95% interval: on
a host that other work shares, it takes hundreds of rounds to tell 3%. Where the device waits for the host, it
follows the calls that the host makes; they are counted once, of Python's and of C functions. The last line is
JSON.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Mapping
from functools import cache
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from toprovar_fx import InfinityPipeline, Options, Schedule, ScoreContext, register_score
from toprovar_fx.backend import toprovar
from toprovar_fx.cli.loading import features
from toprovar_fx.cli.variants import parse_variant, room_for_graphs
from toprovar_fx.evaluation.timing import Timing, interleave, median_interval
from toprovar_fx.models.text import TextFeatures
from toprovar_fx.pipeline import PipelineOutput
from toprovar_fx.readback import Reading


@cache
def _positions(rows: int, length: int, device: torch.device) -> Tensor:
    return torch.arange(length, dtype=torch.float32, device=device).expand(rows, -1).contiguous()


@register_score("position", keep="low", reads_hidden=False)
def position(hidden: Tensor, entropy: Tensor | None, context: ScoreContext) -> Tensor:
    """Tokens from the top left on: a score that is there already."""
    return _positions(hidden.shape[0], hidden.shape[1], hidden.device)


PROMPT = "a red circle left of a blue square"
TARGET = 0.03


class Variant:
    """One compiled pipeline; `scales_s` is the last call without text encoder and image decoder."""

    def __init__(self, pipe: InfinityPipeline, options: Mapping[str, Any], text: Any) -> None:
        self.pipe, self.text = copy.copy(pipe), text
        self.pipe.transformer = torch.compile(pipe.transformer, backend=toprovar, options=dict(options))
        self.scales_s = 0.0

    def __call__(self) -> PipelineOutput:
        output = self.pipe(self.text, seed=1)
        self.scales_s = output.latency_ms["scales"] / 1e3
        return output


class Told(Variant):
    """A variant whose host is told what it reads, once it has read it in its first generation."""

    def __init__(self, pipe: InfinityPipeline, options: Mapping[str, Any], text: Any) -> None:
        super().__init__(pipe, options, text)
        self.read: list[Any] = []

    def __call__(self) -> PipelineOutput:
        first, asked = not self.read, iter(self.read)
        wait = Reading.tolist

        def note(reading: Reading) -> Any:
            self.read.append(wait(reading))
            return self.read[-1]

        with mock.patch.object(Reading, "tolist", note if first else lambda reading: next(asked)):
            output = super().__call__()
        if not first and any(True for _ in asked):
            raise SystemExit("told: this generation read less than the one before it, so times say nothing")
        return output


def host_calls(variant: Variant) -> int:
    """Calls of functions in one generation, as Python's profiler sees them."""
    count = 0

    def watch(frame: Any, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(watch)
    try:
        variant()
    finally:
        sys.setprofile(None)
    return count


def counts(output: PipelineOutput) -> dict[int, dict[int, float]]:
    """Keep ratios by scale and layer, as the generation came to them."""
    keep: dict[int, dict[int, float]] = {}
    for scale, layer, kept, tokens in output.report.kept:
        keep.setdefault(scale, {})[layer] = kept / tokens
    return keep


def same_counts(options: Options, output: PipelineOutput, score: str) -> dict[str, Any]:
    """Options that keep as many tokens in the same places and decide nothing online."""
    fixed = {
        "keep": counts(output),
        "budget": None,
        "depth": "off",
        "depth_scale": None,
        "scale_exit": output.report.exited_at,
        "layer_scope": "off",
        "scope_values": None,
        "score": score,
        "verify": "never",
    }
    return {**options.as_dict(), **fixed}


def measure(pipe: InfinityPipeline, preset: str, text: Any, rounds: int, device: str) -> dict[str, Any]:
    settings = Options.parse(parse_variant(preset).options)
    online = Variant(pipe, {**settings.as_dict(), "verify": "never"}, text)
    first = online()
    variants = {
        "online": online,
        "told": Told(pipe, {**settings.as_dict(), "verify": "never"}, text),
        "ranking": Variant(pipe, same_counts(settings, first, "entropy"), text),
        "bare": Variant(pipe, same_counts(settings, first, "position"), text),
    }
    for variant in variants.values():
        variant()  # what is told is read here
    outputs = {name: variant() for name, variant in variants.items()}
    unequal = [name for name, output in outputs.items() if counts(output) != counts(first)]
    if unequal:
        raise SystemExit(f"{preset}: {unequal[0]} keeps other counts than online, so times say nothing")
    scales_s: dict[str, list[float]] = {name: [] for name in variants}
    timings = interleave(
        variants,
        rounds=rounds,
        device=device,
        on_call=lambda name: scales_s[name].append(variants[name].scales_s),
    )
    taps = {name: sum(run.arm == "tapped" for run in outputs[name].report.runs) for name in variants}
    scales = {name: Timing(0, tuple(seconds[-rounds:])) for name, seconds in scales_s.items()}
    calls = {name: host_calls(variant) for name, variant in variants.items()}
    return {
        name: {
            "generation_ms": round(1e3 * timings[name].median_s, 2),
            "scales_ms": round(1e3 * scales[name].median_s, 2),
            "spread": round(timings[name].spread, 4),
            **cost("generation", timings[name], timings["bare"]),
            **cost("scales", scales[name], scales["bare"]),
            "whole_layers_tapped": taps[name],
            "host_calls": calls[name],
        }
        for name in variants
    }


def cost(of: str, timing: Timing, bare: Timing) -> dict[str, Any]:
    """Median over rounds of the time beyond `bare`'s, as a share of it, and its 95% interval."""
    paired = zip(timing.seconds, bare.seconds, strict=True)
    shares = [own / theirs - 1 for own, theirs in paired]
    interval = [round(end, 4) for end in median_interval(shares)]
    return {f"cost_of_{of}": round(statistics.median(shares), 4), f"cost_of_{of}_ci95": interval}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="scenes", help="scenes, or infinity-2b for random weights")
    parser.add_argument("--preset", action="append", help="PRESET:key=value:...; repeatable")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=1, help="images of one generation")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()

    started = time.perf_counter()
    random_weights = arguments.model != "scenes"
    if random_weights:
        schedule = Schedule.infinity()
        pipe = InfinityPipeline.untrained(arguments.model, schedule=schedule, device=arguments.device)
    else:
        pipe = InfinityPipeline.from_pretrained("scenes", device=arguments.device)
    text: list[str] | TextFeatures = features(pipe, [PROMPT] * arguments.batch, arguments.model)
    presets = arguments.preset or (["balanced"] if random_weights else ["balanced", "fast", "criterion"])
    results = {}
    with room_for_graphs():
        for preset in presets:
            results[preset] = measure(pipe, preset, text, arguments.rounds, arguments.device)
            show(preset, results[preset])
    on_cuda = torch.device(arguments.device).type == "cuda"
    print(
        json.dumps(
            {
                "benchmark": "taps",
                "model": arguments.model,
                "device": torch.cuda.get_device_name() if on_cuda else "cpu",
                "threads": torch.get_num_threads(),
                "dtype": str(pipe.transformer.dtype).removeprefix("torch."),
                "torch": torch.__version__,
                "rounds": arguments.rounds,
                "batch": arguments.batch,
                "target": TARGET,
                "total_s": round(time.perf_counter() - started, 1),
                "presets": results,
            }
        )
    )


def show(preset: str, variants: dict[str, dict[str, Any]]) -> None:
    columns = "generation ms", "scales ms", "cost of generation", "cost of scales", "layers tapped whole"
    print(f"\n{preset:<10}", *columns, "host calls", sep="  ")
    for name, row in variants.items():
        print(
            f"  {name:<8}  {row['generation_ms']:>13.1f} {row['scales_ms']:>10.1f} "
            f"{_share(row, 'generation'):>24} {_share(row, 'scales'):>24} "
            f"{row['whole_layers_tapped']:>20} {row['host_calls']:>11}"
        )


def _share(row: Mapping[str, Any], of: str) -> str:
    low, high = row[f"cost_of_{of}_ci95"]
    return f"{row[f'cost_of_{of}']:.1%} ({low:.1%} to {high:.1%})"


if __name__ == "__main__":
    main()
