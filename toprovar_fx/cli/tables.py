"""Print results for people, on standard output."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..loading.writing import gib
from ..reporting.cells import number, share
from ..reporting.frontier_page import CATEGORIES
from .generate import speed_in_words

if TYPE_CHECKING:
    from ..calibration.profile import Profile
    from ..explanation import Explanation

NARROWEST = 140  # columns where standard output is no terminal


def show_generated(result: Mapping[str, Any]) -> None:
    """Print one line per written file."""
    for row in result["images"]:
        if "pruned" not in row:
            print(f"{row['file']}  {row['latency_ms']:.0f} ms")
            continue
        dense, pruned = row["dense"], row["pruned"]
        print(
            f"{row['file']}  dense ({row['against']}) {dense['latency_ms']:.0f} ms, "
            f"{row['preset']} {pruned['latency_ms']:.0f} ms: {speed_in_words(row['speedup'])}, "
            f"PSNR {number(row['psnr_db'], 1)} dB, SSIM {row['ssim']:.3f}"
        )


def show_evaluation(result: Mapping[str, Any]) -> None:
    """Print a row per preset."""
    presets = result["presets"]
    categories = list(next(iter(presets.values()))["categories"])
    columns = [
        "overall",
        "s.e.",
        *(CATEGORIES.get(name, name) for name in categories),
        "PSNR dB",
        "SSIM",
        "GFLOPs",
        "ms",
    ]
    rows = {
        name: [
            number(row["overall"], 3),
            number(row["overall_standard_error"], 3),
            *(number(row["categories"][category], 2) for category in categories),
            number(row["psnr_db"], 1),
            number(row["ssim"], 3),
            number(row["flops"], 1, 1e-9),
            number(row["latency_ms"], 0),
        ]
        for name, row in presets.items()
    }
    _table(f"SceneEval, {result['n']} prompts; FLOPs and time per image", columns, rows)


def show_benchmark(result: Mapping[str, Any]) -> None:
    """Print a row per variant."""
    columns = ["ms", "+-", "vs Inductor", "vs eager", "scales ms", "vs Inductor", "vs eager"]
    columns += ["first call s", "GFLOPs", "kept", "pruned", "MiB"]
    rows = {
        row["name"]: [
            number(row["median_ms"], 1),
            f"{row['spread']:.0%}",
            number(row["speedup_vs_inductor"], 2),
            number(row["speedup_vs_eager"], 2),
            number(row["scales_median_ms"], 1),
            number(row["scales_speedup_vs_inductor"], 2),
            number(row["scales_speedup_vs_eager"], 2),
            number(row["first_call_s"], 1),
            number(row["flops"], 1, 1e-9),
            share(row["kept_share"]),
            share(row["fire_rates"].get("pruned")),
            number(row["peak_memory_bytes"], 0, 2**-20),
        ]
        for row in result["variants"]
    }
    where = f"{result['device_name']}, {result['threads']} threads, torch {result['torch']}"
    _table(f"{result['model']}, batch {result['batch']}, {result['rounds']} rounds, {where}", columns, rows)
    for row in result["variants"]:
        for reason in row["fallbacks"]:
            print(f"{row['name']} ran dense: {reason}")
    for name, why in result["left_out"].items():
        print(f"{name} was left out: {why}")
    late = result["graphs_compiled_while_timing"]
    if late:
        print(f"{late} graphs were compiled while timing: the times are too long")


def show_explanation(found: Explanation, result: Mapping[str, Any]) -> None:
    """Print the compiler's report, and the dense model's entropies: a row per layer, a column per scale."""
    print(found)
    rows = {
        f"{row['layer']}": [number(row["role"], 2), *(_two_digits(value) for value in row["entropy_nats"])]
        for row in result["layers"]
    }
    if rows:
        scales = [f"{height}x{width}" for height, width in result["scales"]]
        title = "mean attention entropy in nats (dense), by layer and scale; R: 0 global, 1 detail"
        _table(title, ["R", *scales], rows)


def show_conversion(result: Mapping[str, Any]) -> None:
    """Print one line, and what to do with the folder."""
    files, written = len(result["files"]), len(result["written"])
    before = f", {files - written} of them by an earlier run" if written < files else ""
    print(f"{result['target']}  {files} files{before}, {gib(result['bytes'])}, every hash verified")
    if result["is_pipeline"]:
        print(f"load it with --model {result['target']}, or InfinityPipeline.from_pretrained")


def show_calibration(profile: Profile, result: Mapping[str, Any]) -> None:
    """Print D, the agreement of the images with it, and per layer R and the tokens kept."""
    scales = list(profile.kept)
    sides = profile.schedule.sides
    rows = {
        f"{layer}": [
            f"{role:.2f}",
            *(share(profile.kept[scale][layer] / profile.schedule.tokens[scale]) for scale in scales),
        ]
        for layer, role in enumerate(profile.scope)
    }
    depth = "not reached, nothing is pruned" if profile.depth is None else f"scale {profile.depth}"
    shares = ", ".join(f"{name} {share(value)}" for name, value in result["agreement"].items())
    _table(
        f"depth D: {depth}; of {profile.observed.images} images decide alike: {shares}",
        ["R", *(f"{sides[scale][0]}x{sides[scale][1]}" for scale in scales)],
        rows,
    )
    print(f"profile: {result['profile']}; use it with --option profile={result['profile']}")
    for path in result["plots"]:
        print(f"plot: {path}")


def _two_digits(value: float | None) -> str:
    return number(value, 2)


def _table(title: str, columns: list[str], rows: Mapping[str, list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    print(title)
    table = Table()
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    for name, cells in rows.items():
        table.add_row(name, *cells)
    Console(width=None if sys.stdout.isatty() else NARROWEST).print(table)


def show_tuned(result: Mapping[str, Any]) -> None:
    """Print the best setting on both splits."""
    for split in ("tune", "test"):
        row = result[split]
        print(
            f"{split:5s} score {row['overall']:.3f}, "
            f"{row['change']:+.3f} +- {row['change_se']:.3f} to dense, "
            f"PSNR {number(row['psnr_db'], 1)} dB, {row['flops_share']:.0%} of the FLOPs"
        )
    print(f"{result['out']}: {result['options']}")


def show_gallery(result: Mapping[str, Any]) -> None:
    """Print the folder and the number of pictures."""
    print(f"{result['out']}: gallery.json, {sum(len(row['images']) for row in result['rows'])} images")


def show_report(result: Mapping[str, Any]) -> None:
    """Print the folder and its files."""
    print(f"{result['out']}: {', '.join(result['files'])}")
