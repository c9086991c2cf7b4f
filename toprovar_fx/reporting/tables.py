"""The tables of a report, as heads and rows of text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..evaluation.frontier_latency import device_label, same_options
from ..evaluation.frontier_peers import behind_the_best
from .cells import number, share

Json = Mapping[str, Any]
Rows = list[list[str]]


def peers(table: Json) -> tuple[list[str], Rows]:
    """Methods at equal budgets, each against the one of the highest score."""
    rows = [
        [
            f"{one.budget:g}x",
            one.name,
            number(one.score, 3),
            "the best" if one.name == one.best else f"{one.change:+.3f} ± {one.change_ci95:.3f}",
            "" if one.name == one.best else ("behind" if one.apart else "within the interval"),
            str(one.runs),
        ]
        for one in behind_the_best(table)
    ]
    return ["budget", "", "score", "to the best (95%)", "", "runs"], rows


def bench(found: Json) -> tuple[list[str], Rows]:
    """Latency and memory of the variants of one `toprovar bench`."""
    head = ["variant", "ms", "spread", "over Inductor", "scales ms", "scales over Inductor"]
    head += ["first call s", "GFLOPs", "tokens kept", "peak MiB"]
    rows = [
        [
            row["name"],
            number(row["median_ms"], 1),
            share(row["spread"]),
            number(row["speedup_vs_inductor"], 2),
            number(row["scales_median_ms"], 1),
            number(row["scales_speedup_vs_inductor"], 2),
            number(row["first_call_s"], 1),
            number(row["flops"], 1, 1e-9),
            share(row["kept_share"]),
            number(row["peak_memory_bytes"], 0, 2**-20),
        ]
        for row in found["variants"]
    ]
    return head, rows


def ablations(found: Json, benches: Sequence[Json] = ()) -> Iterator[tuple[str, list[str], Rows]]:
    """A table per group of rows, named "group: row", with times where a bench has the same options."""
    timed = {device_label(one): one["variants"] for one in benches}
    timed = {device: rows for device, rows in timed.items() if _shared(rows, found["rows"].values())}
    head = ["", "score", "change (95%)", "PSNR dB", "SSIM", "FLOPs", *(f"ms, {device}" for device in timed)]
    groups: dict[str, Rows] = {}
    for key, row in found["rows"].items():
        group, _, name = key.partition(": ")
        groups.setdefault(group, []).append(
            [
                name or group,
                number(row["overall"], 3),
                f"{row['change']:+.3f} ± {1.96 * row['change_se']:.3f}",
                "equal" if row["psnr_db"] is None else number(row["psnr_db"], 1),
                number(row["ssim"], 3),
                share(row["flops_share"]),
                *(number(_shared(variants, [row]), 1) for variants in timed.values()),
            ]
        )
    for group, rows in groups.items():
        yield group, head, rows


def _shared(variants: Iterable[Json], rows: Iterable[Json]) -> float | None:
    """The time of the first variant that ran with the options of one of the rows, in ms."""
    pairs = ((variant, row) for row in rows for variant in variants)
    return next((variant["median_ms"] for variant, row in pairs if same_options(variant, row)), None)


def tuned(found: Json) -> tuple[list[str], Rows]:
    """The best setting of one `toprovar tune` on both splits, and how many were tried."""
    rows = [
        [
            split,
            number(row["overall"], 3),
            f"{row['change']:+.3f} ± {1.96 * row['change_se']:.3f}",
            number(row["psnr_db"], 1),
            share(row["flops_share"]),
        ]
        for split, row in (("tune", found["tune"]), ("test", found["test"]))
    ]
    return [f"best of {len(found['tried'])}", "score", "change (95%)", "PSNR dB", "FLOPs"], rows


def classifiers(found: Json) -> tuple[list[str], Rows]:
    """How good the classifiers of one `benchmarks.skip_classifier` are."""
    rows = [
        [
            stage,
            part,
            str(figures["samples"]),
            share(figures["accuracy"]),
            share(figures["most_common"]),
            share(figures["leaves_out_too_much"]),
        ]
        for stage in ("skip", "uncond")
        for part, figures in (("fitted", found[stage]["fitted"]), ("held out", found[stage]["held_out"]))
    ]
    return ["stage", "prompts", "number", "accuracy", "most common", "too much"], rows


def kernels(found: Json) -> tuple[list[str], Rows]:
    """Time of attention with entropy over the fastest stock attention, by shape, and its errors."""
    results = found["results"]
    shapes = [f"{one['heads']} heads, {one['queries']} x {one['keys']}" for one in results]
    rows = []
    for name, mean in found["means"].items():
        wrong = [one["deviation"][name] for one in results if name in one["deviation"]]
        errors = [f"{max(values):.0e}" for values in zip(*wrong, strict=True)] or ["-", "-"]
        ratios = [
            number(one["us"][name] / one["fastest_us"], 3) if name in one["us"] else "-" for one in results
        ]
        rows.append([name, number(mean, 3), *errors, *ratios])
    return ["", "mean", "output error", "entropy error, nats", *shapes], rows


def taps(found: Json) -> tuple[list[str], Rows]:
    """What taps and statistics cost in a whole generation, by preset."""
    head = ["preset", "taps", "generation ms", "scales ms", "cost", "cost in the scales", "layers tapped"]
    rows = [
        [
            preset,
            name,
            number(row["generation_ms"], 1),
            number(row["scales_ms"], 1),
            f"{row['cost_of_generation']:.1%}",
            f"{row['cost_of_scales']:.1%}",
            str(row["whole_layers_tapped"]),
        ]
        for preset, variants in found["presets"].items()
        for name, row in variants.items()
    ]
    return head, rows
