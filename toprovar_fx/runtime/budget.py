"""Meets a budget of FLOPs: before every scale, keep counts for what is left of it.

What earlier scales really cost is read off the ledger, so whatever the plan could not foresee (a layer
without a map to rank by, a graph that failed its check) is made up for at the scales that follow.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import sympy

from ..cost.budget import Counts, Place, Unreachable, solve_counts
from ..cost.expressions import Cost
from ..cost.generation import WHOLE, ScalePlan, StepGraphs, price_scales
from ..cost.scale_sizes import Observed, ScaleSizes
from ..errors import OptionError
from ..options import Options
from ..policies.layer_plan import FEWEST_TOKENS
from ..schedules import Schedule
from .ledger import Ledger
from .taps import ranking_layer, ranking_taps

log = logging.getLogger(__name__)

_MOST_KNOWN = 256


@dataclass(frozen=True)
class BudgetQuestion:
    """What a generation knows before a scale.

    Attributes:
        options: the settings; `budget` is set.
        schedule, images, layers: S scales, B, and the number of layers of the model.
        scale: the scale that is about to run.
        exit: first scale that is not run; S if all are.
        measures_scope: the scale at which every layer is tapped for R, or None.
        may_prune: whether the options let a layer be pruned at a scale.
        retention: relative weight of a layer at a scale when tokens are shared out, at least 0.
        dropped: cache rows that each layer has left out so far.
        rows_share: share of the dense model's batch rows that run at a scale.
        ledger: what was run.
    """

    options: Options
    schedule: Schedule
    images: int
    layers: int
    scale: int
    exit: int
    measures_scope: int | None
    may_prune: Callable[[int, int], bool]
    retention: Callable[[int, int], float]
    dropped: Mapping[int, int]
    ledger: Ledger
    rows_share: Callable[[int], float]


class StepBudget:
    """Solves the budget for one rewritten step; answers are kept for generations that ask the same.

    Args:
        step: the graphs of the step.
        rows, length: symbols of the batch rows and of the token count; rows may be a number.
    """

    def __init__(self, step: StepGraphs, rows: sympy.Expr, length: sympy.Expr) -> None:
        self._step, self._rows, self._length = step, rows, length
        self._known: dict[object, dict[tuple[int, int], int]] = {}

    def solve(self, ask: BudgetQuestion, observed: Observed) -> Counts:
        """K by (scale, layer) for the scale that is about to run and all later ones.

        Args:
            ask: the state of the generation.
            observed: sizes of the step at this scale, last, and at earlier ones.

        Raises:
            OptionError: before anything was pruned, a budget that cannot be met.
        """
        at_scale = ScaleSizes(ask.schedule, observed, {self._length}, {self._rows})
        spent, spent_dense = _spent(ask.ledger)
        places = [place for place in self._places(ask) if self._ready(ask, place)]
        shares = tuple(ask.rows_share(scale) for scale in range(ask.scale, len(ask.schedule)))
        state = ask.schedule, ask.images, ask.scale, ask.exit, spent, spent_dense, shares
        key = state, tuple(places), tuple(at_scale.at(ask.scale).items()), tuple(ask.dropped.items())
        if key not in self._known:
            price = partial(
                price_scales,
                self._step,
                tokens=ask.schedule.tokens,
                sizes_at=at_scale.at,
                images=ask.images,
            )
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[key] = _solve(ask, places, price, spent, spent_dense)
        return self._known[key]

    def _places(self, ask: BudgetQuestion) -> list[Place]:
        options = ask.options
        found = []
        for scale in range(ask.scale, ask.exit):
            tokens = ask.schedule.tokens[scale]
            least = min(tokens, max(FEWEST_TOKENS, math.ceil(options.min_keep * tokens - 1e-6)))
            for layer in self._step.layers:
                if ask.may_prune(scale, layer):
                    kept = max(ask.retention(scale, layer), 1 / tokens)
                    found.append(Place(scale, layer, tokens, kept, least))
        return found

    def _ready(self, ask: BudgetQuestion, place: Place) -> bool:
        """Whether what pruning needs will be there when the place's turn comes."""
        options, ledger = ask.options, ask.ledger
        if self._step.layers[place.layer].pruned is None and options.layer_skip_below == 0:
            return False
        if options.restore == "cache" and place.scale == ask.scale:
            whole = any(run.layer == place.layer and run.kept == run.tokens for run in ledger.runs)
            if not whole:
                return False
        if options.score != "entropy" or options.entropy_source == "same_layer":
            return True
        ranked_by = place.layer if options.ranking_depth is None else ranking_layer(options, ask.layers)
        if any(layer == ranked_by for _, layer in ledger.maps):
            return True
        if options.entropy_source == "previous_scale":
            return place.scale > ask.scale
        first_is_dense = not ask.may_prune(place.scale, 0)
        return place.layer > 0 and (options.entropy_source == "previous_layer" or first_is_dense)


def _spent(ledger: Ledger) -> tuple[int, int]:
    """FLOPs of the scales that ran: as run, and dense."""
    factor = ledger.rows_factor
    other = [(factor(scale), region.flops(sizes)) for scale, region, sizes in ledger.other]
    ran = sum(run.region.flops(run.sizes) for run in ledger.runs if run.region and run.sizes is not None)
    dense = sum(factor(run.scale) * run.dense.flops(run.dense_sizes) for run in ledger.runs)
    return ran + sum(flops for _, flops in other), dense + sum(rows * flops for rows, flops in other)


def _solve(
    ask: BudgetQuestion, places: list[Place], price: Callable[..., list[Cost]], spent: int, spent_dense: int
) -> dict[tuple[int, int], int]:
    factor = ask.options.budget
    assert factor is not None
    ahead = range(ask.scale, len(ask.schedule))
    # Prices are for the rows of this scale, and FLOPs are in proportion to the rows.
    now = ask.rows_share(ask.scale)
    dense = spent_dense + round(_flops(price(scales=ahead, plan=lambda scale: WHOLE)) / now)

    def total(counts: Counts) -> int:
        plan = {scale: _plan(ask, scale, counts) for scale in range(ask.scale, ask.exit)}
        scales = range(ask.scale, ask.exit)
        costs = price(scales=scales, plan=plan.__getitem__, dropped=ask.dropped)
        shares = (ask.rows_share(scale) / now for scale in scales)
        return spent + math.ceil(sum(cost.flops * share for cost, share in zip(costs, shares, strict=True)))

    limit = math.floor(dense / factor)
    try:
        last_first = ask.options.budget_order == "last_scales"
        return solve_counts(places, total, limit, ask.options.layer_skip_below, last_first)
    except Unreachable as most:
        if all(run.kept == run.tokens for run in ask.ledger.runs):
            raise _unreachable(ask.options, dense / most.least) from None
        log.warning("budget=%gx cannot be met any more: %.2fx is the most", factor, dense / most.least)
        return dict(most.counts)


def _plan(ask: BudgetQuestion, scale: int, counts: Counts) -> ScalePlan:
    """The layers that are pruned and those that are tapped at a scale, if `counts` are kept."""
    tokens = ask.schedule.tokens
    kept = {layer: count for (at, layer), count in counts.items() if at == scale}
    if scale == ask.measures_scope:
        return ScalePlan(kept, frozenset(range(ask.layers)))

    def prunes(layer: int) -> bool:
        return kept.get(layer, tokens[scale]) < tokens[scale]

    def may_prune_next(layer: int) -> bool:
        return scale + 1 < ask.exit and ask.may_prune(scale + 1, layer)

    return ScalePlan(kept, ranking_taps(ask.options, scale, ask.layers, prunes, may_prune_next))


def _flops(costs: Sequence[Cost]) -> int:
    return sum(cost.flops for cost in costs)


def _unreachable(options: Options, most: float) -> OptionError:
    named = ("min_scale", "min_keep", "protected_layers_first", "protected_layers_last", "scale_exit")
    settings = ", ".join(f"{name}={getattr(options, name)!r}" for name in named)
    nearest = math.floor(most * 100) / 100
    return OptionError(
        f"budget='{options.budget:g}x': at most {nearest:g}x is reachable with {settings}; "
        f"nearest valid: '{nearest:g}x'"
    )
