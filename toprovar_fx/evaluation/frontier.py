"""The quality-cost frontier: presets and policies as they are and at equal budgets, over image seeds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .study import PairedStudy

if TYPE_CHECKING:
    from ..pipeline import InfinityPipeline

# Two-sided 95% of a normal distribution.
Z95 = 1.96


@dataclass(frozen=True)
class Entry:
    """One row of the table.

    Attributes:
        name: what readers see.
        method: the policy or preset, the same for all its budgets.
        budget: dense FLOPs over pruned FLOPs that was asked for; None at the defaults.
        options: the backend's.
    """

    name: str
    method: str
    budget: float | None
    options: Mapping[str, object]


@dataclass
class Tally:
    """What the runs of one entry gave, one item per run."""

    passed: list[list[bool]]
    rows: list[Mapping[str, Any]]


class Frontier:
    """Measures entries run by run, so that a study that is cut short has whole runs of all entries.

    Args:
        pipe: a pipeline whose transformer is not compiled.
        entries: the rows.
        n: prompts, of the split "test".
        batch: images drawn together.
        pool: the judges.
    """

    def __init__(
        self, pipe: InfinityPipeline, entries: Sequence[Entry], n: int, batch: int, pool: ProcessPoolExecutor
    ) -> None:
        self.entries = list(entries)
        self._pipe, self._n, self._batch, self._pool = pipe, n, batch, pool
        self._dense = Tally([], [])
        self._tallies = {entry.name: Tally([], []) for entry in entries}
        self.left_out: dict[str, str] = {}

    def run(
        self, index: int, until: float = math.inf, told: Callable[[str], None] = lambda text: None
    ) -> bool:
        """Draw all entries with the image seeds of one run.

        Args:
            index: of the run.
            until: `time.monotonic()` after which no further entry is begun.
            told: called with the name of every finished entry.

        Returns:
            Whether the run is whole.
        """
        from ..errors import ToProVARError

        study = PairedStudy(self._pipe, self._n, "test", self._batch, self._pool, run=index, frechet=True)
        self._dense.passed.append(study.dense_scores)
        self._dense.rows.append(study.baseline)
        told("dense")
        for entry in self.entries:
            if time.monotonic() > until:
                return False
            try:
                row = study.score(entry.options)
            except ToProVARError as error:
                # A budget that a policy cannot reach is a finding, not the end of the table.
                self.left_out[entry.name] = str(error)
                told(entry.name)
                continue
            self._tallies[entry.name].passed.append(row.pop("passed"))
            self._tallies[entry.name].rows.append(row)
            told(entry.name)
        return True

    def result(self) -> dict[str, Any]:
        """The table so far: means over the runs, 95% intervals over prompts and runs."""
        rows = {}
        for entry in self.entries:
            tally = self._tallies[entry.name]
            if tally.rows:
                rows[entry.name] = {
                    "method": entry.method,
                    "budget": entry.budget,
                    "options": {name: str(value) for name, value in entry.options.items()},
                    **_means(tally.rows),
                    **_change(tally.passed, self._dense.passed),
                }
        return {
            "n": self._n,
            "runs": len(self._dense.rows),
            "dense": _means(self._dense.rows) | {"flops_share": 1.0},
            "rows": rows,
            "left_out": self.left_out,
        }


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = ("overall", "psnr_db", "ssim", "frechet", "flops_share", "gflop_per_image")
    found: dict[str, Any] = {"runs": len(rows)}
    for name in names:
        values = [row[name] for row in rows if row.get(name) is not None]
        found[name] = float(np.mean(values)) if values else None
    found["categories"] = {
        name: float(np.mean([row["categories"][name] for row in rows])) for name in rows[0]["categories"]
    }
    return found


def _change(passed: Sequence[Sequence[bool]], dense: Sequence[Sequence[bool]]) -> dict[str, float]:
    """The paired change and its 95% interval; the runs of one prompt are not independent: prompts are."""
    changes = np.array(passed, float) - np.array(dense[: len(passed)], float)
    by_prompt = changes.mean(0)
    error = float(by_prompt.std(ddof=1) / math.sqrt(len(by_prompt))) if len(by_prompt) > 1 else 0.0
    return {"change": float(changes.mean()), "change_ci95": Z95 * error}
