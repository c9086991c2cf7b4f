"""The table of docs/passes.md, made from what the passes declare."""

from __future__ import annotations

from ..options import Options
from ..presets import PRESETS
from .pipeline import BUILT_IN


def passes_table() -> str:
    """Return a Markdown table: a row per built-in pass, in the order in which they run."""
    rows = [
        "| Pass | Rewrites | Requires | Ensures | Price | When active | Presets |",
        "|---|---|---|---|---|---|---|",
    ]
    for declared in BUILT_IN:
        requires = ", ".join(f"`{name}`" for name in declared.requires) or "a graph from Dynamo"
        active = [f"`{name}`" for name in PRESETS if declared.active(Options(preset=name))]
        presets = "all" if len(active) == len(PRESETS) else ", ".join(active) or "none"
        cells = (declared.rewrites, requires, declared.ensures, declared.price, declared.when, presets)
        rows.append(" | ".join([f"| `{declared.name}`", *cells]) + " |")
    return "\n".join(rows) + "\n"
