"""What a generation keeps on the device while graphs decide, and how it is read back at its end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from ..analysis.reasons import Fallback, Reason
from ..criteria.saliency import scale_weight
from ..criteria.selection import round_to_bucket
from ..errors import GraphError
from ..options import Options
from ..policies.layer_plan import FEWEST_TOKENS
from ..schedules import Schedule
from .deciders import Deciders
from .ledger import Ledger, Run
from .on_device import DepthOnDevice, ScopeOnDevice

# What the graph of a layer says it did.
WHOLE, PRUNED, SKIPPED, NOT_PAST = range(4)


@dataclass(frozen=True)
class Counts:
    """What may be kept of L tokens.

    Attributes:
        kept: K.
        serves: the largest wanted count that K serves; -1: the layer runs whole or not at all.
    """

    kept: int
    serves: int


@dataclass(frozen=True)
class BranchedRun:
    """One layer that decided itself.

    Attributes:
        at: its place among the runs of the ledger.
        branch: int64 [], what it did.
        runs: what is written down for each.
        keep: [R, K] of use where it pruned, or None.
    """

    at: int
    branch: Tensor
    runs: Mapping[int, Run]
    keep: Tensor | None


def begin_branching(
    options: Options, schedule: Schedule, images: int, deciders: Deciders, ledger: Ledger
) -> Branching | None:
    """Let the layers of a generation decide themselves, from its first scale on.

    Args:
        options: the settings.
        schedule: the scales.
        images: B.
        deciders: get a D and an R that stay on the device.
        ledger: gets the reason if the host has to decide.

    Returns:
        The state of such a generation, or None where the schedule does not let them decide.

    Raises:
        GraphError: the schedule does not let them, with `strict`.
    """
    depth = DepthOnDevice(options, len(schedule), images, ledger)
    measured_at = deciders.scope.measured_at
    if measured_at > depth.first:
        detail = f"R is measured at scale {measured_at}, where layers may be pruned already"
        fallback = Fallback(Reason.GATE_ON_HOST, detail=detail)
        if options.strict:
            raise GraphError(str(fallback))
        if fallback not in ledger.fallbacks:
            ledger.fallbacks.append(fallback)
        return None
    depth.adopt(deciders.layers)
    scope = ScopeOnDevice(options, schedule, ledger)
    deciders.replace(depth, scope)
    return Branching(options, schedule, images, depth, scope, ledger)


class Branching:
    """State of one controller whose layers decide themselves.

    Args:
        options: the settings.
        schedule, images: the scales and B.
        depth, scope: D and R as tensors.
        ledger: what was run.
    """

    def __init__(
        self,
        options: Options,
        schedule: Schedule,
        images: int,
        depth: DepthOnDevice,
        scope: ScopeOnDevice,
        ledger: Ledger,
    ) -> None:
        self.options, self._schedule, self._images = options, schedule, images
        self.depth, self.scope, self._ledger = depth, scope, ledger
        self._missing: dict[int, Tensor] = {}
        self._runs: list[BranchedRun] = []

    def refuse_host(self, scale: int) -> NoReturn:
        """Refuse a step whose layers the host would have to decide about.

        Raises:
            GraphError: always.
        """
        raise GraphError(
            f"scale {scale} runs in another graph than the scales before, whose layers decided "
            "themselves: expected one graph for all of them; nearest valid: gate='host'"
        )

    def counts(self, length: int) -> Counts:
        """K of a layer of `length` tokens that is neither whole nor skipped."""
        options = self.options
        kept = round_to_bucket(0, length, options.buckets, 0)
        wanted = max(math.ceil(options.min_keep * length - 1e-6), 0)
        allowed = max(kept, FEWEST_TOKENS) < length and wanted <= kept
        return Counts(max(kept, FEWEST_TOKENS), kept) if allowed else Counts(FEWEST_TOKENS, -1)

    def filled(self, layer: int, start: int, device: torch.device) -> Tensor:
        """Rows in the cache of a layer, int64 []; `start` as the model counts them."""
        missing = self._missing.get(layer)
        return torch.full((), start, device=device) if missing is None else start - missing

    def best_rho(self, rows: int, device: torch.device) -> Tensor:
        """The extreme of rho that is compared with tau, float32 [B], or [R] where every row decides."""
        return self.depth.best_rho(rows if self.options.cfg_rows == "per_row" else self._images, device)

    def rate(self, scale: int, layer: int, device: torch.device) -> Tensor:
        """The factor phi R of a layer, float64 []."""
        return self.scope.detail_on_device(layer, device) * scale_weight(scale, len(self._schedule))

    def took(
        self, layer: int, missing: Tensor, branch: Tensor, runs: Mapping[int, Run], keep: Tensor | None
    ) -> Tensor:
        """Account for a layer that decided; returns whether it ran whole, bool []."""
        known = self._missing.get(layer)
        self._missing[layer] = missing if known is None else known + missing
        self._runs.append(BranchedRun(len(self._ledger.runs), branch, runs, keep))
        self._ledger.runs.append(runs[WHOLE])
        return (branch == WHOLE) | (branch == NOT_PAST)

    def settle(self) -> None:
        """Read back what was decided, all layers at once, and write it into the ledger."""
        branches = torch.stack([run.branch for run in self._runs]).tolist() if self._runs else []
        for known, branch in zip(self._runs, branches, strict=True):
            run = self._ledger.runs[known.at] = known.runs[branch]
            self._ledger.answer("GraphGate", run.layer, branch in (PRUNED, SKIPPED))
            if branch == PRUNED and known.keep is not None:
                self._ledger.chosen[run.scale, run.layer] = known.keep
        self._runs = []
