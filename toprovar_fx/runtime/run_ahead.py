"""Runs a scale as the image before did, while the device still measures how it is to be run.

D and K follow from what the device measures: the host would wait for it, and it then for the host. They are
nearly always those of the image before. A step that is recorded may run twice: what the first run wrote to
the caches lies in rows that the second writes as well, or that nobody reads.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..analysis.repeatable import obstacle_to_repeating
from .controller import Controller
from .footing import Standing
from .step_decision import SiteArms
from .step_plan import Plans, StepPlan
from .step_run import Ran, StepRuns

# So many images in a row have to agree before the next is expected to.
_IN_A_ROW = 3
# Beyond, a wrong guess costs a device more than waiting does: half a millisecond of an H200.
_MOST_FLOPS = 2e11


@dataclass
class Guesses:
    """How the scales of the images before stood, by what is known of a scale without waiting."""

    _held: dict[Hashable, tuple[Standing, int]] = field(default_factory=dict)

    def expected(self, place: Hashable) -> Standing | None:
        """How a scale stands if it does as the last ones did; None where these did not agree."""
        standing, times = self._held.get(place, (None, 0))
        return standing if times >= _IN_A_ROW else None

    def learn(self, place: Hashable, standing: Standing) -> None:
        """Take down how a scale stood."""
        before, times = self._held.get(place, (None, 0))
        self._held[place] = standing, times + 1 if standing == before else 1


class RunAhead:
    """Finds out how the scales of one step stand.

    Args:
        sites: the layers.
        plans: the plans that are known, by standing and sizes.
        runs: runs them.
    """

    def __init__(self, sites: list[SiteArms], plans: Plans, runs: StepRuns) -> None:
        self._sites, self._plans, self._runs = sites, plans, runs
        self._guesses = Guesses()
        self._may: bool | None = None

    def stand(
        self, controller: Controller, arguments: tuple[Any, ...], hidden: Tensor, sizes: Hashable
    ) -> tuple[Standing | None, Ran | None]:
        """How the scale that is about to run stands, and what was run on the guess that it did so.

        Args:
            controller: of the generation.
            arguments: of the step.
            hidden: a tensor of the shape, dtype and device of the hidden state.
            sizes: of the trace.
        """
        footing = controller.footing
        if not footing.waits:
            return footing.standing(hidden), None
        place = footing.place, sizes
        guess, ran = self._guesses.expected(place), None
        plan = None if guess is None else self._plans.find((guess, sizes))
        if guess is not None and plan is not None and self._worth_it(plan):
            ran = self._run(plan, guess, controller, arguments, hidden)
        standing = footing.standing(hidden)
        if standing is not None:
            self._guesses.learn(place, standing)
        if ran is not None and standing != guess:
            controller.ledger.run_twice.append(controller.scale)
            ran = None
        return standing, ran

    def _run(
        self,
        plan: StepPlan,
        guess: Standing,
        controller: Controller,
        arguments: tuple[Any, ...],
        hidden: Tensor,
    ) -> Ran:
        found: list[Ran] = []
        controller.footing.suppose(
            guess, hidden, lambda: found.append(self._runs(plan, controller, arguments, hidden))
        )
        return found[0]

    def _worth_it(self, plan: StepPlan) -> bool:
        """Whether a plan may run in vain, and costs little if it does."""
        if not self._runs.replays(plan) or plan.chosen or plan.account.flops > _MOST_FLOPS:
            return False
        gates = [one.site.gather for one in plan.decisions if one.arm == "pruned"]
        if any(gate is not None and gate.check.due(gate.pruned) for gate in gates):
            return False
        if self._may is None:
            # Whatever runs second must not read what the first run wrote.
            graphs = [arms.dense.region.graph.graph for arms in self._sites if arms.dense is not None]
            whole = len(graphs) == len(self._sites)
            self._may = whole and not any(obstacle_to_repeating(graph) for graph in graphs)
        return self._may
