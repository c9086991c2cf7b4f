"""Methods against each other at one budget: paired by prompt and image seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .frontier import paired

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Behind:
    """One method at one budget, compared with the method of the highest score there.

    Attributes:
        budget: dense over pruned FLOPs.
        name: the row.
        score: its SceneEval score.
        best: the row of the highest score.
        change: its paired distance to that row, at most 0 up to the weights of the categories.
        change_ci95: half the 95% interval of the distance.
        runs: image seeds that both have.
    """

    budget: float
    name: str
    score: float
    best: str
    change: float
    change_ci95: float
    runs: int

    @property
    def apart(self) -> bool:
        """Whether the distance is outside its interval."""
        return abs(self.change) > self.change_ci95


def behind_the_best(table: Json) -> Iterator[Behind]:
    """Every row of every budget that two methods or more were measured at, best first.

    Rows are compared only where they have the verdicts of equally many runs.
    """
    rows = table["rows"]
    for budget in sorted({row["budget"] for row in rows.values() if row["budget"] is not None}):
        found = {name: row for name, row in rows.items() if row["budget"] == budget and row.get("passes")}
        ranked = sorted(found.items(), key=lambda item: -item[1]["overall"])
        if len({row["method"] for row in found.values()}) < 2:
            continue
        best, first = ranked[0]
        for name, row in ranked:
            if row["runs"] == first["runs"]:
                change, interval = paired(_shares(row), _shares(first))
                yield Behind(budget, name, row["overall"], best, change, interval, row["runs"])


def _shares(row: Json) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([float(count) for count in row["passes"]]) / row["runs"]
