"""Tables of disjoint rows, measured by several processes or cards, as one table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..errors import OptionError
from .frontier import Z95

# What rows must share to stand in one table: the prompts, and the image seeds, which follow from the run.
SHARED = ("model", "n", "runs")
# What may differ and is told: the dense images of other cards or versions are not bit-equal.
TOLD = ("device", "dtype", "torch", "toprovar_fx", "batch", "presets", "budgets")


def join_tables(tables: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """One table with the rows of all; each row keeps the change to the dense images of its own table.

    Args:
        tables: by the name that errors call them.

    Returns:
        A table; dense is the first one's, and "dense_apart" the largest difference of a dense score to it.

    Raises:
        OptionError: there is no table, tables differ in model, prompts or runs, or a row is in two of them.
    """
    if not tables:
        raise OptionError(
            "there is no table to join, expected at least one folder of `toprovar eval --table`"
        )
    (first, base), *others = tables.items()
    for name, other in others:
        for key in SHARED:
            if other[key] != base[key]:
                raise OptionError(
                    f"'{name}' has {key}={other[key]} and '{first}' {key}={base[key]}: "
                    "expected tables of the same model, prompts and runs"
                )
    joined: dict[str, Any] = {**base, "rows": {}, "left_out": {}}
    origin: dict[str, str] = {}
    for name, one in tables.items():
        for row, figures in one["rows"].items():
            if row in origin:
                raise OptionError(
                    f"the row '{row}' is in '{origin[row]}' and in '{name}', expected every row in one table"
                )
            origin[row] = name
            joined["rows"][row] = figures
        joined["left_out"] |= one.get("left_out", {})
    for key in TOLD:
        # What one table does not tell cannot be told of all.
        joined.pop(key, None)
        if all(key in one for one in tables.values()):
            said = dict.fromkeys(one[key] for one in tables.values())
            joined[key] = next(iter(said)) if len(said) == 1 else "; ".join(map(str, said))
    # What failed in one run and was measured in another is not left out.
    joined["left_out"] = {row: why for row, why in joined["left_out"].items() if row not in origin}
    joined["dense_apart"] = max(_apart(tables), *(one.get("dense_apart", 0.0) for one in tables.values()))
    return joined


def short_rows(table: Mapping[str, Any]) -> dict[str, str]:
    """The rows that a time limit cut short, with how many of the runs they have."""
    return {
        name: f"{row['runs']} of {table['runs']} runs"
        for name, row in table["rows"].items()
        if row.get("runs", table["runs"]) < table["runs"]
    }


def _apart(tables: Mapping[str, Mapping[str, Any]]) -> float:
    """Largest difference of a dense score to the first: with the same seeds, at worst that of new images."""
    scores = {name: float(one["dense"]["overall"]) for name, one in tables.items()}
    first, base = next(iter(tables.items()))
    share = scores[first]
    noise = Z95 * math.sqrt(2 * share * (1 - share) / (base["n"] * base["runs"]))
    far = max(scores, key=lambda name: abs(scores[name] - share))
    apart = abs(scores[far] - share)
    if apart > noise:
        raise OptionError(
            f"dense scores {share:.4f} in '{first}' and {scores[far]:.4f} in '{far}', expected at most "
            f"{noise:.4f} apart for the same prompts and seeds: was one drawn by another model or version?"
        )
    return apart
