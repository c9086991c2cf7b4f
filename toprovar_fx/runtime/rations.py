"""Keep counts of one generation that has a budget of FLOPs: solved anew before every scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import sympy

from ..cost.budget import Counts
from ..options import Options
from .budget import BudgetQuestion, StepBudget
from .deciders import Deciders
from .ledger import Ledger

if TYPE_CHECKING:
    from .generation import Generation


class Rations:
    """What the budget leaves every layer.

    Args:
        options: the settings; `budget` is set.
        generation: the scale that runs, and whether there are unconditional rows.
        deciders: the policy, D and R.
        dropped: cache rows that each layer has left out so far; grows as the generation runs.
        ledger: what was run.
    """

    def __init__(
        self,
        options: Options,
        generation: Generation,
        deciders: Deciders,
        dropped: Mapping[int, int],
        ledger: Ledger,
    ) -> None:
        self._options, self._generation, self._deciders = options, generation, deciders
        self._dropped, self._ledger = dropped, ledger
        self._counts: dict[int, Counts] = {}
        self._sizes: list[tuple[int, Mapping[sympy.Symbol, int]]] = []

    def solve(self, budget: StepBudget, sizes: Mapping[sympy.Symbol, int]) -> None:
        """Solve the budget for the scale that is about to run, once its step and sizes are known.

        Raises:
            OptionError: a budget that cannot be met.
        """
        scale = self._generation.scale
        if scale in self._counts:
            return
        self._sizes.append((scale, sizes))
        first_call = not self._counts
        self._counts[scale] = {}
        if first_call or any(self.allows(scale, layer) for layer in range(self._deciders.layers)):
            self._counts[scale] = budget.solve(self._question(), self._sizes)

    def ratio(self, layer: int) -> float | None:
        """The share of its tokens that `layer` may keep at the scale that runs; None where all are kept."""
        scale = self._generation.scale
        count = self._counts.get(scale, {}).get((scale, layer))
        return None if count is None else count / self._generation.schedule.tokens[scale]

    def allows(self, scale: int, layer: int) -> bool:
        """Whether tokens of `layer` may be dropped at `scale`; a budget does not wait for a depth online."""
        fixed = self._options.depth == "fixed" and self._options.prune_scales
        depth, policy = self._deciders.depth, self._deciders.policy
        beyond = depth.beyond(scale) if fixed else scale >= depth.first
        return beyond and scale > 0 and policy.is_open(layer) and not policy.exits(scale)

    def _question(self) -> BudgetQuestion:
        policy, scope = self._deciders.policy, self._deciders.scope
        scales = len(self._generation.schedule)
        exits = (scale for scale in range(scales) if policy.exits(scale))
        return BudgetQuestion(
            options=self._options,
            schedule=self._generation.schedule,
            images=self._generation.images,
            layers=self._deciders.layers,
            scale=self._generation.scale,
            exit=next(exits, scales),
            measures_scope=scope.mapped_at,
            may_prune=self.allows,
            retention=lambda at, layer: policy.retention(at, layer, scope.detail(layer)),
            dropped=self._dropped,
            ledger=self._ledger,
            rows_share=self._rows_share,
        )

    def _rows_share(self, scale: int) -> float:
        """Share of the dense model's rows that run at a scale."""
        return 0.5 if self._generation.guided and self._deciders.policy.conditional_only(scale) else 1.0
