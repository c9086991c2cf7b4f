"""The frontier as text cells, as Markdown and as a plot."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

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


def table(result: Mapping[str, Any]) -> list[list[str]]:
    """Head and rows as text, dense first, then by FLOPs."""
    head = ["", "score", "change (95%)", *CATEGORIES.values(), "PSNR dB", "SSIM", "FID", "FLOPs"]
    dense = _cells("dense", result["dense"])
    ranked = sorted(result["rows"].items(), key=lambda item: -item[1]["flops_share"])
    return [head, dense, *(_cells(name, row) for name, row in ranked)]


def as_markdown(result: Mapping[str, Any]) -> str:
    """The table for `docs/results.md`."""
    head, *rows = table(result)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def plot(result: Mapping[str, Any]) -> bytes:
    """Change of the score against the share of FLOPs, a line per method, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.5), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color="grey", linewidth=0.8)
    methods = dict.fromkeys(row["method"] for row in result["rows"].values())
    for at, method in enumerate(methods):
        rows = [row for row in result["rows"].values() if row["method"] == method]
        rows.sort(key=lambda row: row["flops_share"])
        axes.errorbar(
            [100 * row["flops_share"] for row in rows],
            [row["change"] for row in rows],
            yerr=[row["change_ci95"] for row in rows],
            marker=MARKERS[at % len(MARKERS)],
            markersize=5,
            capsize=3,
            label=method,
        )
    axes.set_xlabel("FLOPs of the transformer, % of dense")
    axes.set_ylabel("change of the SceneEval score to dense")
    axes.grid(alpha=0.3)
    if methods:
        # Beside the axes, where it hides no point however many methods there are.
        figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    written = io.BytesIO()
    figure.savefig(written, format="png")
    return written.getvalue()


def _cells(name: str, row: Mapping[str, Any]) -> list[str]:
    change = f"{row['change']:+.3f} ± {row['change_ci95']:.3f}" if "change" in row else "-"
    return [
        name,
        f"{row['overall']:.3f}",
        change,
        *(f"{row['categories'][category]:.2f}" for category in CATEGORIES),
        _number(row.get("psnr_db"), 1),
        _number(row.get("ssim"), 3),
        _number(row.get("frechet"), 4),
        f"{row['flops_share']:.0%}",
    ]


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
