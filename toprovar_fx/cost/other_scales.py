"""Prices of scales whose graphs are not known yet, told from the graph of one scale.

A graph with a constant token count holds for its own scale alone. What it costs follows a law all the same:
operators on rows cost in proportion to the rows, attention in proportion to queries times keys,

    cost = a L + b K + (c K + d L) (offset + L)        [K = 0 in a graph that computes all tokens]

and a, b, c, d are told by four prices of the graph at its own L. What a block computes of the sample alone
(its modulation) counts with the rows, so the law is a forecast, exact only for the scale that it is made from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import sympy

from ..lowering.sizes import KEPT, OFFSET, TOKENS
from .expressions import Cost, Sizes
from .generation import Priced, StepGraphs

Values = dict[sympy.Symbol, int]


@dataclass(frozen=True)
class AtOtherScales:
    """The price of a graph of one token count at any: `TOKENS` among the sizes says at which.

    Attributes:
        graph: what is priced.
        length: its own L.
        start: first cache row of its scale.
        of_rows: whether the graph computes K rows and nothing of the others, whatever L is.
    """

    graph: Priced
    length: int
    start: int
    of_rows: bool = False

    def cost(self, sizes: Sizes) -> Cost:
        """FLOPs and bytes of one call."""
        values = dict(sizes)
        wanted = values.pop(TOKENS, self.length)
        if wanted == self.length or self.of_rows:
            return self.graph.cost(tuple(values.items()))
        kept, offset = values.get(KEPT, 0), values.get(OFFSET, 0)
        rows, queries, per_query, per_token = self._law(values)
        parts = [
            a * wanted + b * kept + (c * kept + d * wanted) * (offset + wanted)
            for a, b, c, d in zip(rows, queries, per_query, per_token, strict=True)
        ]
        return Cost(*(max(0, round(part)) for part in parts))

    def _law(self, values: Values) -> tuple[tuple[float, ...], ...]:
        """a, b, c and d, each for the three fields of a cost."""
        count, step = max(1, self.length // 2), min(1, self.start)

        def price(kept: int, offset: int) -> Cost:
            given = {**values, KEPT: kept, OFFSET: offset}
            return self.graph.cost(tuple(given.items()))

        lower, upper = self.start - step, self.start
        corners = [price(kept, offset) for kept in (count, count + 1) for offset in (lower, upper)]
        found = [_solve(*each, count, lower, step, self.length) for each in zip(*corners, strict=True)]
        return tuple(zip(*found, strict=True))


def _solve(
    low: int, low_more: int, high: int, high_more: int, count: int, offset: int, step: int, length: int
) -> tuple[float, float, float, float]:
    """The law from prices at K and K + 1 (`high`), each at an offset and `step` rows on (`more`)."""
    slope, next_slope = ((low_more - low) / step, (high_more - high) / step) if step else (0.0, 0.0)
    per_query = next_slope - slope
    per_token = (slope - per_query * count) / length
    keys = offset + length
    queries = (high - low) - per_query * keys
    rows = (low - queries * count - (per_query * count + per_token * length) * keys) / length
    return rows, queries, per_query, per_token


def at_other_scales(step: StepGraphs, length: int, start: int) -> StepGraphs:
    """The graphs of a step of one token count, priced at every scale.

    Args:
        step: the graphs.
        length: their L.
        start: first cache row of their scale.
    """

    def priced(graph: Priced | None, of_rows: bool = False) -> AtOtherScales | None:
        return None if graph is None else AtOtherScales(graph, length, start, of_rows)

    layers = {}
    for layer, graphs in step.layers.items():
        some = not graphs.keeps_rows
        layers[layer] = replace(
            graphs,
            dense=AtOtherScales(graphs.dense, length, start),
            tapped=priced(graphs.tapped),
            pruned=priced(graphs.pruned, some),
            pruned_tapped=priced(graphs.pruned_tapped, some),
        )
    others = [AtOtherScales(graph, length, start) for graph in step.others]
    return StepGraphs(layers, others)
