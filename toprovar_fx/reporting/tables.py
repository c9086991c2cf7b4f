"""The tables of a report, as heads and rows of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .cells import number, share

Json = Mapping[str, Any]
Rows = list[list[str]]


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


def ablations(found: Json) -> Iterator[tuple[str, list[str], Rows]]:
    """A table per group of rows, whose names are "group: row"."""
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
            ]
        )
    for group, rows in groups.items():
        yield group, ["", "score", "change (95%)", "PSNR dB", "SSIM", "FLOPs"], rows


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
