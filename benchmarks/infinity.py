"""Infinity with random weights: eager, Inductor, and this backend dense and pruned, in one process.

    python -m benchmarks.infinity --model 2b --out infinity-2b.jsonl
    python -m benchmarks.infinity --model 8b --variants lossless,50-10,25-5 --seconds 600
    python -m benchmarks.infinity --model 2b --batch 1,2,4,8 --variants lossless,25-5
    python -m benchmarks.infinity --model 2b --cache shared --variants lossless,25-5
    python -m benchmarks.infinity --model 2b --upstream PATH --fastvar PATH/Infinity
    python -m benchmarks.infinity --tiny --lowering eager       # a look on any machine

Measured are the scale steps (`transformer`) and the whole loop with sampling (`total`); text encoder and
image decoder are not part of either. What prunes also runs dense, by the same program (`toprovar_fx.dense`).
Explicit budgets: from side 32 on, every fourth layer keeps the first share of its tokens and the others the
second. Every row is written to `--out` as soon as it is there; no row starts after `--seconds`. The last line
printed is all of it as JSON.
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import get_args

import torch

from benchmarks.infinity_measure import Measured, measure
from benchmarks.infinity_roof import Roof, measure_roof
from benchmarks.infinity_upstream import UpstreamTransformer
from benchmarks.infinity_variants import MODELS, Problem, transformers
from toprovar_fx.models.cache import DEFAULT_LAYOUT
from toprovar_fx.models.cache_layout import CacheLayout

# Rows that need a clone: the option with its path, and whether its blocks are compiled, which takes longest.
CLONES = {
    "upstream": ("upstream", False),
    "fastvar": ("fastvar", False),
    "upstream-compiled": ("upstream", True),
}
DEFAULT = "eager,inductor,inductor-reduce-overhead,lossless,50-10,25-5,criterion"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 if a variant failed."""
    arguments = parse(argv)
    started = time.perf_counter()
    torch._dynamo.config.recompile_limit = 64
    dtype = getattr(torch, arguments.dtype)
    problem = Problem(arguments.model, arguments.device, dtype, layout=arguments.cache)
    made = transformers(problem, arguments.lowering)
    clones = [name for name in CLONES if getattr(arguments, CLONES[name][0]) is not None]
    unknown = [name for name in arguments.variants if name not in made]
    if unknown:
        raise SystemExit(f"--variants {','.join(unknown)}: expected some of {', '.join(made)}")
    for name in clones:
        option, compiled = CLONES[name]
        made[name] = partial(theirs, problem, getattr(arguments, option), compiled)
    # Clones come last, at all batch sizes.
    order = [*product(arguments.batch, arguments.variants), *product(arguments.batch, clones)]
    roof = measure_roof(problem.dtype) if arguments.device == "cuda" else None
    rows: list[Measured] = []
    failed: dict[str, str] = {}
    print(heading(arguments, roof), flush=True)
    for images, variant in order:
        spent = time.perf_counter() - started
        if spent > arguments.seconds:
            failed[f"{variant}, batch {images}"] = f"not run: {spent:.0f} s were spent"
            continue
        if variant in clones:
            problem.release()  # our model gives way to theirs, before memory is counted
        try:
            row = measure(problem, variant, made[variant], images, arguments.rounds, roof, arguments.warm)
        except Exception as error:
            traceback.print_exc()
            failed[f"{variant}, batch {images}"] = f"{type(error).__name__}: {error}"[:500]
            continue
        rows.append(row)
        print(line(row), flush=True)
        if arguments.out:
            with arguments.out.open("a") as file:
                file.write(json.dumps(asdict(row)) + "\n")
    print(table(rows, problem))
    for name, why in failed.items():
        print(f"{name}: {why}")
    if arguments.plot and rows:
        plot(rows, problem, arguments.plot)
    device = torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu"
    result = {
        "torch": torch.__version__,
        "device": device,
        "cache": arguments.cache,
        "gemm_flops_per_s": None if roof is None else roof.flops_per_s,
        "copy_bytes_per_s": None if roof is None else roof.bytes_per_s,
        "seconds": time.perf_counter() - started,
        "rows": [asdict(row) for row in rows],
        "failed": failed,
    }
    print(json.dumps(result))
    return int(any(not why.startswith("not run") for why in failed.values()))


def theirs(problem: Problem, clone: Path, compiled: bool) -> UpstreamTransformer:
    """The model of a clone, in place of ours."""
    return UpstreamTransformer(clone, problem.name, problem.device, compiled)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=[*MODELS], default="2b")
    parser.add_argument("--tiny", action="store_true", help="the model 'tiny' on a CPU, one round")
    parser.add_argument("--variants", default=DEFAULT, type=lambda text: text.split(","))
    parser.add_argument("--batch", default=[1], type=lambda text: [int(part) for part in text.split(",")])
    parser.add_argument("--rounds", default=5, type=int, help="generations that are measured")
    parser.add_argument("--seconds", default=3600.0, type=float, help="no variant starts after this time")
    parser.add_argument("--warm", action="store_true", help="compile again, with what is cached on disk")
    parser.add_argument("--lowering", choices=["inductor", "eager"], default="inductor")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--device", choices=["cuda", "cpu"])
    parser.add_argument(
        "--cache", choices=get_args(CacheLayout), default=DEFAULT_LAYOUT, help="layout of keys and values"
    )
    parser.add_argument("--upstream", type=Path, help="clone of FoundationVision/Infinity to measure too")
    parser.add_argument("--fastvar", type=Path, help="folder Infinity of a clone of FastVAR to measure too")
    parser.add_argument("--out", type=Path, help="file to append a JSON line per row to")
    parser.add_argument("--plot", type=Path, help="picture of the time by scale")
    arguments = parser.parse_args(argv)
    if arguments.tiny:
        arguments.model, arguments.device, arguments.rounds = "tiny", "cpu", 1
    arguments.device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    arguments.dtype = arguments.dtype or ("bfloat16" if arguments.device == "cuda" else "float32")
    return arguments


def heading(arguments: argparse.Namespace, roof: Roof | None) -> str:
    """What is measured, in a line, and the head of the rows."""
    device = torch.cuda.get_device_name() if arguments.device == "cuda" else "CPU"
    rate = ""
    if roof is not None:
        rate = f", GEMM {roof.flops_per_s / 1e12:.0f} TFLOP/s, copies {roof.bytes_per_s / 1e12:.2f} TB/s"
    names = ("variant", "batch", "transformer ms", "total ms", "host ms", "compile s", "GiB", "kernels")
    head = f"{names[0]:26}" + "".join(f"{name:>15}" for name in names[1:]) + f"{'launches':>10}{'roof':>7}"
    what = f"{arguments.model}, {arguments.dtype}, {arguments.cache} caches"
    return f"Infinity {what}, {device}{rate}, torch {torch.__version__}\n{head}"


def line(row: Measured) -> str:
    """One row."""

    def cell(value: float | None, digits: int = 1) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    values = (row.images, row.transformer_ms, row.total_ms, row.host_ms, row.compile_s, row.peak_gib)
    cells = [str(values[0]), *(cell(value) for value in values[1:])]
    share = "-" if row.roofline_share is None else f"{row.roofline_share:.0%}"
    text = f"{row.variant:26}" + "".join(f"{value:>15}" for value in cells)
    text += f"{row.kernels or '-':>15}{row.launches or '-':>10}{share:>7}  {row.kept}"
    notes = row.notes
    if row.dense_first_s is not None and row.dense_ms is not None:
        notes = [*notes, f"dense, same program: {row.dense_first_s:.1f} s at first, {row.dense_ms:.1f} ms"]
    return "\n".join([text, *(f"    {note}" for note in notes)])


def table(rows: Sequence[Measured], problem: Problem) -> str:
    """Milliseconds of the transformer by scale, and those that the roofline asks for."""
    sides = [f"{height}x{width}" for height, width in problem.schedule.sides]
    lines = [f"{'ms by side':26}{'batch':>6}" + "".join(f"{side:>8}" for side in sides)]
    for row in rows:
        lines.append(f"{row.variant:26}{row.images:>6}" + "".join(f"{ms:>8.2f}" for ms in row.step_ms))
        if row.floor_step_ms is not None:
            lines.append(f"{'  roofline':32}" + "".join(f"{ms:>8.2f}" for ms in row.floor_step_ms))
    base = next((row for row in rows if row.variant == "eager"), None)
    for row in rows:
        if base is not None and row is not base and row.images == base.images:
            lines.append(f"{row.variant}: {base.transformer_ms / row.transformer_ms:.2f}x of eager")
    return "\n".join(lines)


def plot(rows: Sequence[Measured], problem: Problem, path: Path) -> None:
    """Draw the time by scale."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        axes.plot(row.step_ms, marker="o", label=f"{row.variant}, batch {row.images}")
    axes.set_xticks(range(len(problem.schedule)), [str(side[0]) for side in problem.schedule.sides])
    axes.set(xlabel="side of the scale in tokens", ylabel="transformer, ms", yscale="log")
    axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    raise SystemExit(main())
