"""Runs a scale step as few calls: one, or one more wherever K follows from a layer that runs first."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import sympy
from torch import fx

from ..analysis.graph_sizes import spec_of
from ..lowering.region import Region
from ..options import Options
from .controller import Controller
from .cuda_recorder import graph_memory
from .step_cut import StepCut, cut_step
from .whole_step import Hints, WholeStep

if TYPE_CHECKING:
    from ..passes.step import Step


class StepParts:
    """A rewritten step, or a tail of it, with the parts that it was cut in so far.

    Args:
        step: the step after the passes.
        make: what runs a step, or a part, as one call.
    """

    def __init__(self, step: Step, make: Callable[[Step], WholeStep]) -> None:
        self._step, self._make = step, make
        self._whole = make(step)
        self._cuts: dict[int, tuple[StepCut, WholeStep, StepParts] | None] = {}

    @classmethod
    def of(cls, step: Step, options: Options, lowering: str, hints: Hints) -> StepParts:
        """Those of a step whose parts share their recordings' memory; arguments as for `WholeStep`.

        Raises:
            GraphError: recordings are required, and the device has none.
        """
        first = next(node for node in step.graph.graph.nodes if node.target == step.sites[0].name)
        assert isinstance(first.args[0], fx.Node)
        memory = graph_memory(options, spec_of(first.args[0]).device)
        return cls(step, lambda part: WholeStep(part, options, lowering, hints, memory))

    @property
    def regions(self) -> list[Region]:
        """Every joined graph that was compiled or is about to be."""
        cuts = [cut for cut in self._cuts.values() if cut is not None]
        return [
            *self._whole.regions,
            *(region for _, head, tail in cuts for part in (head, tail) for region in part.regions),
        ]

    def run(
        self, controller: Controller, arguments: tuple[Any, ...], sizes: dict[sympy.Symbol, int]
    ) -> tuple[Any, ...] | None:
        """As `WholeStep.run`, in as many calls as K asks for; where there are several, never None."""
        end = controller.part_from(self._step.sites[0].layer).stop
        found = None
        if end <= self._step.sites[-1].layer and not self._whole.refuses:
            found = self._cut(end)
        if found is None:
            return self._whole.run(controller, arguments, sizes)
        cut, head, tail = found
        own = cut.taken[0](arguments)
        crossing = head.run(controller, own, sizes)
        if crossing is None:
            crossing = cut.head.graph(*own)
        given = *cut.taken[1](arguments), *crossing
        others = tail.run(controller, given, sizes)
        if others is None:
            others = cut.tail.graph(*given)
        return cut.results(crossing, others)

    def _cut(self, layer: int) -> tuple[StepCut, WholeStep, StepParts] | None:
        if layer not in self._cuts:
            cut = cut_step(self._step, layer)
            parts = None if cut is None else (cut, self._make(cut.head), StepParts(cut.tail, self._make))
            self._cuts[layer] = parts
        return self._cuts[layer]
