"""What the trace of a scale step says of its sizes at other scales."""

from __future__ import annotations

from collections.abc import Mapping

import sympy
from torch import fx

from ..analysis.facts import BlockFacts
from ..analysis.graph_sizes import spec_of, traced_sizes
from ..analysis.shapes import shape_of, size_of
from ..errors import OptionError
from ..input_specs import TOKENS
from ..schedules import Schedule
from .generation import StepGraphs
from .other_scales import at_other_scales
from .scale_sizes import ScaleSizes


class TracedStep:
    """Sizes of a step's inputs, as traced and at every scale.

    Args:
        graph: the step as Dynamo traced it.
        facts: of one of its blocks.

    Attributes:
        tokens: the token count where it is a constant, so that the step is that of one scale; else None.
        rows: batch rows R.
        length: what stands for L among the sizes; `TOKENS` where the count is a constant.
    """

    def __init__(self, graph: fx.Graph, facts: BlockFacts) -> None:
        self._graph = graph
        self.rows, self.length = (spec_of(facts.hidden).shape or ())[:2]
        slots = {shape_of(write.cache)[write.axis] for write in facts.writes}
        self.tokens: int | None = None
        self._start = 0
        if self.length.is_Integer:
            self.tokens, self._start = int(self.length), _traced_start(graph, facts)
            self.length = TOKENS
            slots.discard(sympy.Integer(self._start + self.tokens))
        # The others grow with the scales.
        self._slots = {size for size in slots if size.is_Integer or size.is_Symbol}

    def at_any_scale(self, graphs: StepGraphs) -> StepGraphs:
        """The step's graphs with a price at every scale."""
        return graphs if self.tokens is None else at_other_scales(graphs, self.tokens, self._start)

    def counted(self, sizes: Mapping[sympy.Symbol, int]) -> dict[sympy.Symbol, int]:
        """Sizes read off a call, the token count among them."""
        return dict(sizes) if self.tokens is None else {**sizes, TOKENS: self.tokens}

    def follow(self, schedule: Schedule, scale: int, sizes: Mapping[sympy.Symbol, int]) -> ScaleSizes:
        """Sizes at every scale, told from those at `scale`."""
        return ScaleSizes(schedule, [(scale, sizes)], {self.length}, {self.rows, *self._slots})

    def at_scales(self, schedule: Schedule, rows: int | None) -> ScaleSizes:
        """Sizes at every scale, told from those of the trace.

        Args:
            schedule: the scales.
            rows: batch rows R; by default those of the trace.

        Raises:
            OptionError: a schedule or batch that the traced step cannot run.
        """
        traced = self.counted(traced_sizes(self._graph))
        if rows is not None and self.rows in traced:
            traced[self.rows] = rows
        elif rows is not None and self.rows != rows:
            raise OptionError(
                f"rows={rows}: expected {self.rows}, the batch rows that the step was traced for"
            )
        needed = schedule.ends[-1]
        for slots in (traced.get(slots, slots) for slots in self._slots):
            if slots < needed:
                raise OptionError(
                    f"a schedule of {needed} tokens: expected at most {slots}, the traced cache's"
                )
        length = traced.get(self.length)
        seen = next((scale for scale, count in enumerate(schedule.tokens) if count == length), 0)
        return self.follow(schedule, seen, traced)


def _traced_start(graph: fx.Graph, facts: BlockFacts) -> int:
    """The first cache row that a layer wrote when the step was traced; 0 without a cache."""
    start = size_of(facts.writes[0].start) if facts.writes else None
    return 0 if start is None else int(start.xreplace(traced_sizes(graph)))
