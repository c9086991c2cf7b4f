"""The frontier as text cells, as Markdown and as plots."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

from ..evaluation.frontier_latency import devices
from .cells import number

CATEGORIES = {
    "single_object": "single",
    "two_objects": "two",
    "counting": "count",
    "colors": "colour",
    "position": "position",
    "color_attribution": "binding",
}
# Lines of one method share colour and marker; the two cycles repeat together only after 70 methods.
MARKERS = "osD^vPX"

Json = Mapping[str, Any]


def table(result: Json) -> list[list[str]]:
    """Head and rows as text, dense first, then by FLOPs; two columns for every device that was timed on."""
    timed = devices(result)
    head = ["", "score", "change (95%)", *CATEGORIES.values(), "match", "PSNR dB", "SSIM", "FID", "FLOPs"]
    head += [f"{what}, {device}" for device in timed for what in ("ms", "peak MiB")]
    ranked = sorted(result["rows"].items(), key=lambda item: -item[1]["flops_share"])
    return [head, *(_cells(name, row, timed) for name, row in [("dense", result["dense"]), *ranked])]


def as_markdown(result: Json) -> str:
    """The table for `docs/results.md`."""
    head, *rows = table(result)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def plot(result: Json) -> bytes:
    """Change of the score against the share of FLOPs, a line per method, as PNG."""
    return _plot(result, lambda row: 100 * row["flops_share"], "FLOPs of the transformer, % of dense")


def latency_plot(result: Json, device: str) -> bytes:
    """Change of the score against the time on one device, a line per method, as PNG."""

    def time_ms(row: Json) -> float | None:
        timed = row.get("latency", {}).get(device)
        return None if timed is None else float(timed["median_ms"])

    return _plot(result, time_ms, f"ms per generation, {device}")


def _plot(result: Json, cost: Callable[[Json], float | None], label: str) -> bytes:
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.5), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color="grey", linewidth=0.8)
    methods = list(dict.fromkeys(row["method"] for row in result["rows"].values()))
    colours = matplotlib.colormaps["tab10" if len(methods) <= 10 else "tab20"].colors  # type: ignore[attr-defined]
    for at, method in enumerate(methods):
        rows = [row for row in result["rows"].values() if row["method"] == method]
        points = sorted(
            (spent, row["change"], row["change_ci95"]) for row in rows if (spent := cost(row)) is not None
        )
        if not points:
            continue
        axes.errorbar(
            [spent for spent, _, _ in points],
            [change for _, change, _ in points],
            yerr=[interval for _, _, interval in points],
            color=colours[at % len(colours)],
            marker=MARKERS[at % len(MARKERS)],
            markersize=5,
            capsize=3,
            label=method,
        )
    spent = cost(result["dense"])
    if spent is not None:
        axes.plot([spent], [0], color="black", marker="*", markersize=11, linestyle="none", label="dense")
    axes.set_xlabel(label)
    axes.set_ylabel("change of the SceneEval score to dense")
    axes.grid(alpha=0.3)
    if methods:
        # Beside the axes, where it hides no point however many methods there are.
        figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    written = io.BytesIO()
    figure.savefig(written, format="png")
    return written.getvalue()


def _cells(name: str, row: Json, timed: list[str]) -> list[str]:
    change = f"{row['change']:+.3f} ± {row['change_ci95']:.3f}" if "change" in row else "-"
    cells = [
        name,
        f"{row['overall']:.3f}",
        change,
        # A few prompts need not have one of every category.
        *(number(row["categories"].get(category), 2) for category in CATEGORIES),
        number(row.get("match"), 3),
        number(row.get("psnr_db"), 1),
        number(row.get("ssim"), 3),
        number(row.get("frechet"), 4),
        f"{row['flops_share']:.0%}",
    ]
    for device in timed:
        found = row.get("latency", {}).get(device, {})
        cells += [number(found.get("median_ms"), 1), number(found.get("peak_memory_bytes"), 0, 2**-20)]
    return cells
