"""`toprovar bench`: eager, Inductor and this backend's presets in one interleaved run of one process."""

from __future__ import annotations

import math
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from .. import __version__
from ..errors import OptionError, ToProVARError
from ..evaluation import timing
from ..evaluation.memory import peak_bytes
from . import arguments as take
from . import figures
from .loading import check_dtype, check_model, features, load
from .progress import progress
from .side_by_side import groups_of, side_by_side
from .values import (
    MODEL,
    check_count,
    check_device,
    check_prompts,
    check_seconds,
    check_seed,
    parse_budgets,
)
from .variants import DEFAULT_VARIANTS, CompiledGraphs, Variant, parse_variants, room_for_graphs

if TYPE_CHECKING:
    from ..models.text import TextFeatures
    from ..pipeline import InfinityPipeline, PipelineOutput

PROMPT = "a red circle left of a blue square"
VARIANTS = ",".join(DEFAULT_VARIANTS)
WARMUP = 1
# What is timed is timed within one.
Turn = Callable[[], AbstractContextManager[None]]


def bench(
    variants: take.Variants = VARIANTS,
    budgets: take.Budgets = "1.5x,2x,3x,4x",
    rounds: take.Repeats = 5,
    batch: take.Batch = 1,
    seed: take.Seed = 0,
    seconds: take.BenchSeconds = None,
    processes: take.BenchProcesses = 1,
    model: take.Model = MODEL,
    device: take.Device = None,
    dtype: take.Dtype = None,
) -> dict[str, Any]:
    """Time whole generations of every variant and return what `--json` prints.

    Raises:
        ToProVARError: an input is not valid.
    """
    chosen = parse_variants(variants, parse_budgets(budgets))
    check_model(model)
    check_prompts([PROMPT], model)
    check_seed(seed, batch)
    check_count("batch", batch)
    check_count("repeats", rounds)
    check_count("processes", processes)
    check_seconds(seconds)
    until = time.monotonic() + seconds if seconds else math.inf
    device = check_device(device)
    check_dtype(dtype)
    run = _Run(model, device, dtype, batch, seed, rounds, until)
    groups = groups_of(chosen, processes)
    measured = run(chosen) if len(groups) == 1 else side_by_side(run, groups)
    if not measured["variants"]:
        raise OptionError("; ".join(f"{name}: {why}" for name, why in measured["left_out"].items()))
    options = {variant.name: variant.options or {} for variant in chosen}
    measured["variants"].sort(key=lambda row: list(options).index(row["name"]))
    for row in measured["variants"]:
        # A report finds the same options in the tables of quality.
        row["options"] = {name: str(value) for name, value in options[row["name"]].items()}
    return {
        "command": "bench",
        "model": model,
        "device": device,
        "device_name": torch.cuda.get_device_name(device)
        if device != "cpu"
        else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "toprovar_fx": __version__,
        "prompt": PROMPT,
        "seed": seed,
        "batch": batch,
        "processes": len(groups),
        **measured,
    }


@dataclass(frozen=True)
class _Run:
    """Loads the model and measures some variants of it."""

    model: str
    device: str
    dtype: str | None
    batch: int
    seed: int
    rounds: int
    until: float

    def __call__(self, chosen: Sequence[Variant], turn: Turn = nullcontext) -> dict[str, Any]:
        with progress("loading", doing=self.model):
            dense = load(self.model, self.device, self.dtype, self.batch, for_prompts=False)
        measured = measure(
            {variant.name: variant.pipeline(dense) for variant in chosen},
            features(dense, [PROMPT] * self.batch, self.model),
            seed=self.seed,
            rounds=self.rounds,
            device=self.device,
            until=self.until,
            turn=turn,
        )
        kind = str(next(dense.transformer.parameters()).dtype).removeprefix("torch.")
        return {"dtype": kind, **measured}


def measure(
    pipes: Mapping[str, InfinityPipeline],
    text: list[str] | TextFeatures,
    *,
    seed: int,
    rounds: int,
    device: str,
    until: float = math.inf,
    turn: Turn = nullcontext,
) -> dict[str, Any]:
    """Time ``pipe(text)`` of every pipeline, interleaved; return a row per variant and what went wrong.

    Variants that raise an error of the package in their first call, such as a budget that a policy cannot
    reach, are left out, with the error. When `until` has passed on the clock `time.monotonic`, no further
    variant is compiled and no further round begins: what there is, is reported. What follows the compilations
    happens within `turn()`.
    ``graphs_compiled_while_timing`` must be 0 for the times to mean anything. A row's ``scales_`` figures are
    of the loop over the scales alone: without text encoder and image decoder, which are the same for all.
    """
    latest: dict[str, PipelineOutput] = {}
    outputs: dict[str, list[PipelineOutput]] = {name: [] for name in pipes}

    def call(name: str) -> Callable[[], None]:
        return lambda: latest.update({name: pipes[name](text, seed=seed)})

    graphs: list[int] = []
    compiled_graphs = CompiledGraphs()

    def on_call(name: str) -> None:
        graphs.append(compiled_graphs())
        outputs[name].append(latest[name])
        advance(name)

    total = timing.calls(len(pipes), rounds, WARMUP) + 2 * len(pipes)
    peaks: dict[str, int | None] = {}
    first_s: dict[str, float] = {}
    left_out: dict[str, str] = {}
    with (
        room_for_graphs(len(pipes)),
        progress("benchmarking", total, doing="the first call of each compiles") as advance,
    ):
        for name in pipes:
            if first_s and time.monotonic() > until:
                left_out[name] = "not run: the time of --seconds had passed"
                continue
            try:
                first_s[name] = timing.timed(call(name), device)
            except ToProVARError as error:
                left_out[name] = str(error)
            advance(name)
        if not first_s:
            with turn():
                return {"rounds": 0, "graphs_compiled_while_timing": 0, "left_out": left_out, "variants": []}
        pipes = {name: pipe for name, pipe in pipes.items() if name in first_s}
        with turn():
            times = timing.interleave(
                {name: call(name) for name in pipes},
                rounds=rounds,
                device=device,
                warmup=WARMUP,
                on_call=on_call,
                until=until,
            )
            done = len(next(iter(times.values())).seconds)
            times = {name: replace(own, first_call_s=first_s[name]) for name, own in times.items()}
            timed = {name: drawn[-done:] for name, drawn in outputs.items()}
            for name in pipes:
                peaks[name] = peak_bytes(call(name), device)
                advance(f"memory of {name}")
    before_timing = graphs[len(pipes) * (1 + WARMUP) - 1]
    scales = {
        name: timing.Timing(own.first_call_s, tuple(_scales_s(output) for output in timed[name]))
        for name, own in times.items()
    }
    return {
        "rounds": done,
        "graphs_compiled_while_timing": graphs[-1] - before_timing,
        "left_out": left_out,
        "variants": [_row(name, times, scales, timed[name], peaks[name]) for name in pipes],
    }


def _scales_s(output: PipelineOutput) -> float:
    return figures.parts_ms(output)["scales"] / 1000


def _over(name: str, baseline: str, times: Mapping[str, timing.Timing]) -> float | None:
    return times[name].speedup_over(times[baseline]) if baseline in times else None


def _row(
    name: str,
    times: Mapping[str, timing.Timing],
    scales: Mapping[str, timing.Timing],
    outputs: list[PipelineOutput],
    peak: int | None,
) -> dict[str, Any]:
    own = times[name]
    parts = [figures.parts_ms(output) for output in outputs]
    return {
        "name": name,
        "median_ms": own.median_s * 1000,
        "spread": own.spread,
        "parts_median_ms": {part: statistics.median(values[part] for values in parts) for part in parts[-1]},
        "speedup_vs_inductor": _over(name, "inductor", times),
        "speedup_vs_eager": _over(name, "eager", times),
        "scales_median_ms": scales[name].median_s * 1000,
        "scales_speedup_vs_inductor": _over(name, "inductor", scales),
        "scales_speedup_vs_eager": _over(name, "eager", scales),
        "first_call_s": own.first_call_s,
        "compile_s": own.compile_s,
        "peak_memory_bytes": peak,
        "flops": figures.flops(outputs[-1]),
        "kept_share": figures.kept_share(outputs[-1]),
        "fire_rates": figures.fire_rates(outputs[-1]),
        "pruned_layers_share_by_scale": figures.pruned_layers(outputs[-1]),
        "fallbacks": figures.fallbacks(outputs[-1]),
        "seconds": list(own.seconds),
    }
