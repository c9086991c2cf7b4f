"""The quality-cost frontier: presets and policies as they are and at equal budgets, over image seeds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import OptionError, ToProVARError
from .frontier_store import DENSE, Line, RowStore, fingerprint
from .study import RUNS_APART, PairedStudy, Waiting

if TYPE_CHECKING:
    from torch import Tensor

    from ..pipeline import InfinityPipeline

# Two-sided 95% of a normal distribution.
Z95 = 1.96
# A budget that is missed by more is not kept.
TOLERANCE = 0.02
MEANS = ("overall", "match", "psnr_db", "ssim", "frechet", "flops_share", "gflop_per_image", "seconds")


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

    def described(self) -> dict[str, Any]:
        """What a table says of the row besides its figures."""
        told = {name: str(value) for name, value in self.options.items()}
        key = fingerprint(self.options)
        return {"method": self.method, "budget": self.budget, "options": told, "fingerprint": key}


class Frontier:
    """Measures entries run by run, so that a study that is cut short has whole runs of all entries.

    Args:
        pipe: a pipeline whose transformer is not compiled.
        entries: the rows.
        n: prompts, of the split "test".
        batch: images drawn together.
        pool: the judges.
        store: rows that were measured before are not measured again.

    Raises:
        OptionError: a row of the store has the name of an entry and other options.
    """

    def __init__(
        self,
        pipe: InfinityPipeline,
        entries: Sequence[Entry],
        n: int,
        batch: int,
        pool: ProcessPoolExecutor,
        store: RowStore,
    ) -> None:
        self.entries, self.store = list(entries), store
        self._pipe, self._n, self._batch, self._pool = pipe, n, batch, pool
        self._real: Tensor | None = None
        for entry in entries:
            key = fingerprint(entry.options)
            lines = [line for line in store.rows(entry.name).values() if "left_out" not in line]
            if any(line["fingerprint"] != key for line in lines):
                raise OptionError(
                    f"'{entry.name}' was measured with other options before (a file that it names, or a "
                    "preset, has changed): expected another folder"
                )

    def pending(self, index: int) -> list[Entry]:
        """The entries that one run still lacks; what was left out is tried again only with other options."""
        lines = {entry.name: self.store.get(index, entry.name) for entry in self.entries}
        return [
            entry
            for entry in self.entries
            if (line := lines[entry.name]) is None or line["fingerprint"] != fingerprint(entry.options)
        ]

    def run(
        self, index: int, until: float = math.inf, told: Callable[[str], None] = lambda text: None
    ) -> bool:
        """Draw the pending entries with the image seeds of one run.

        Args:
            index: of the run.
            until: `time.monotonic()` after which no further entry is begun.
            told: called with the name of every finished entry.

        Returns:
            Whether the run is whole.
        """
        pending = self.pending(index)
        if not pending:
            return True
        # The first dense row is drawn in any case: there is no table without it.
        if time.monotonic() > until and self.store.rows(DENSE):
            return False
        frechet = True if self._real is None else self._real
        study = PairedStudy(self._pipe, self._n, "test", self._batch, self._pool, run=index, frechet=frechet)
        self._real = study.real
        if self.store.get(index, DENSE) is None:
            self.store.add(index, DENSE, {**study.baseline, "passed": _packed(study.dense_scores)})
        told(DENSE)
        judged: tuple[Entry, Waiting] | None = None
        for entry in pending:
            if time.monotonic() > until:
                break
            try:
                row = study.start(entry.options)
            except ToProVARError as error:
                # A budget that a policy cannot reach is a finding, not the end of the table.
                self.store.add(index, entry.name, {**entry.described(), "left_out": str(error)})
                told(entry.name)
                continue
            # The judges work on one entry while the next is drawn.
            if judged is not None:
                self._keep(index, study, *judged, told)
            judged = entry, row
        if judged is not None:
            self._keep(index, study, *judged, told)
        return not self.pending(index)

    def _keep(
        self, index: int, study: PairedStudy, entry: Entry, row: Waiting, told: Callable[[str], None]
    ) -> None:
        found = study.finish(row)
        if entry.budget is not None and found["flops_share"] > (1 + TOLERANCE) / entry.budget:
            spent = f"took {found['flops_share']:.0%} of the FLOPs: the method does not keep this budget"
            self.store.add(index, entry.name, {**entry.described(), "left_out": spent})
            told(entry.name)
            return
        figures = {name: found.get(name) for name in (*MEANS, "categories", "fire_rates")}
        passed = {"passed": _packed(found["passed"]), "dense_passed": _packed(study.dense_scores)}
        self.store.add(index, entry.name, {**entry.described(), **figures, **passed})
        told(entry.name)

    def result(self) -> dict[str, Any]:
        """The table so far, of all rows in the store: means over the runs, 95% intervals over prompts."""
        dense = list(self.store.rows(DENSE).values())
        rows, left_out = {}, {}
        swept: dict[str, set[float]] = {}
        for name in self.store.names():
            if name == DENSE:
                continue
            lines = self.store.rows(name)
            first = next(iter(lines.values()))
            swept.setdefault(first["method"], set()).update({first["budget"]} - {None})
            drawn = [line for line in lines.values() if "left_out" not in line]
            if drawn:
                about = {key: drawn[0][key] for key in ("method", "budget", "options")}
                rows[name] = {**about, **_means(drawn), **_change(drawn), "passes": _passes(drawn)}
            else:
                left_out[name] = first["left_out"]
        return {
            "presets": " ".join(f"@{method}" if budgets else method for method, budgets in swept.items()),
            "budgets": ",".join(f"{budget:g}x" for budget in sorted(set().union(*swept.values()))),
            "n": self._n,
            "runs": len(dense),
            "image_seeds": f"{RUNS_APART} r + i for image i of run r, r below {len(dense)}",
            "dense": _means(dense) | {"flops_share": 1.0, "passes": _passes(dense)},
            "rows": rows,
            "left_out": left_out,
        }


def _packed(passed: Sequence[bool]) -> str:
    return "".join("01"[one] for one in passed)


def _verdicts(lines: Sequence[Line], key: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Verdicts [runs, prompts] as 0 and 1."""
    return np.array([[float(one) for one in line[key]] for line in lines])


def _passes(lines: Sequence[Line]) -> str:
    """For every prompt a digit: in how many of the runs it was fulfilled."""
    return "".join(f"{int(count)}" for count in _verdicts(lines, "passed").sum(0))


def _means(lines: Sequence[Line]) -> dict[str, Any]:
    found: dict[str, Any] = {"runs": len(lines)}
    for name in MEANS:
        values = [line[name] for line in lines if line.get(name) is not None]
        found[name] = float(np.mean(values)) if values else None
    found["categories"] = {
        name: float(np.mean([line["categories"][name] for line in lines])) for name in lines[0]["categories"]
    }
    return found


def _change(lines: Sequence[Line]) -> dict[str, float]:
    """The paired change to dense, with its interval."""
    change, interval = paired(_verdicts(lines, "passed").mean(0), _verdicts(lines, "dense_passed").mean(0))
    return {"change": change, "change_ci95": interval}


def paired(
    own: np.ndarray[Any, np.dtype[np.float64]], other: np.ndarray[Any, np.dtype[np.float64]]
) -> tuple[float, float]:
    """Mean difference of two rows and half its 95% interval.

    Args:
        own: share of the runs in which every prompt was fulfilled, ``[prompts]``. The runs of one prompt are
            not independent; prompts are.
        other: the same of the other row.
    """
    changes = own - other
    error = float(changes.std(ddof=1) / math.sqrt(len(changes))) if len(changes) > 1 else 0.0
    return float(changes.mean()), Z95 * error
