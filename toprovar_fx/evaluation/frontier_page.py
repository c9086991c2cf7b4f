"""The frontier as Markdown, as a plot and as one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from html import escape
from typing import Any

from .frontier_join import short_rows

CATEGORIES = {
    "single_object": "single",
    "two_objects": "two",
    "counting": "count",
    "colors": "colour",
    "position": "position",
    "color_attribution": "binding",
}
SETTINGS = ("model", "device", "torch", "n", "runs", "command")
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;font-variant-numeric:tabular-nums}"
    "td,th{padding:.25rem .6rem;text-align:right;border-bottom:1px solid #8884}"
    "td:first-child,th:first-child{text-align:left}img{max-width:100%}"
    "@media(prefers-color-scheme:dark){body{background:#111;color:#ddd}}"
)


def table(result: Mapping[str, Any]) -> list[list[str]]:
    """Head and rows as text, dense first, then by FLOPs."""
    head = ["", "score", "change (95%)", *CATEGORIES.values(), "PSNR dB", "SSIM", "FID", "FLOPs", "ms"]
    dense = _cells("dense", result["dense"])
    ranked = sorted(result["rows"].items(), key=lambda item: -item[1]["flops_share"])
    return [head, dense, *(_cells(name, row) for name, row in ranked)]


def as_markdown(result: Mapping[str, Any]) -> str:
    """The table for `docs/results.md`."""
    head, *rows = table(result)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def as_page(result: Mapping[str, Any]) -> str:
    """One HTML page: settings, the plot, the table, what was left out."""
    head, *rows = table(result)
    settings = ", ".join(f"{name} {result[name]}" for name in SETTINGS)
    missing = result["left_out"] | short_rows(result)
    left = "".join(f"<li>{escape(name)}: {escape(why)}</li>" for name, why in missing.items())
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Quality and cost</title>',
            f"<style>{STYLE}</style></head><body>",
            f"<h1>Quality and cost</h1><p>{escape(settings)}</p>",
            f'<img alt="Score change against FLOPs" src="data:image/png;base64,{_encoded(result)}">',
            f"<table><thead>{_row(head, 'th')}</thead><tbody>",
            *(_row(cells, "td") for cells in rows),
            "</tbody></table>",
            f"<h2>Left out or cut short</h2><ul>{left}</ul>" if left else "",
            "</body></html>",
        ]
    )


def plot(result: Mapping[str, Any]) -> bytes:
    """Change of the score against the share of FLOPs, a line per method, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color="grey", linewidth=0.8)
    methods = dict.fromkeys(row["method"] for row in result["rows"].values())
    for method in methods:
        rows = [row for row in result["rows"].values() if row["method"] == method]
        rows.sort(key=lambda row: row["flops_share"])
        axes.errorbar(
            [100 * row["flops_share"] for row in rows],
            [row["change"] for row in rows],
            yerr=[row["change_ci95"] for row in rows],
            marker="o",
            capsize=3,
            label=method,
        )
    axes.set_xlabel("FLOPs of the transformer, % of dense")
    axes.set_ylabel("change of the SceneEval score to dense")
    axes.grid(alpha=0.3)
    if methods:
        axes.legend()
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
        _number(row.get("latency_ms"), 0),
    ]


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _row(cells: list[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _encoded(result: Mapping[str, Any]) -> str:
    return base64.b64encode(plot(result)).decode()
