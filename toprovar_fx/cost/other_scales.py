"""Prices of scales whose graphs are not known yet, told from the graph of one scale.

A graph with a constant token count holds for its own scale alone. What it costs follows a law all the same:
operators on rows cost in proportion to the rows, attention in proportion to queries times keys,

    cost = a L + b K + (c K + d L) (offset + L)        [K = 0 in a graph that computes all tokens]

and a, b, c, d are told by four prices of the graph at its own L; where pruned tokens leave no keys, those are
offset + K, and L does not matter. It is a forecast: what a block computes of
the sample alone, such as its modulation, counts with the rows, and so does attention without a cache.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import sympy

from ..input_specs import KEPT, OFFSET, TOKENS
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
        of_rows: whether the graph computes K rows and nothing of the others, keys included.
    """

    graph: Priced
    length: int
    start: int
    of_rows: bool = False

    def cost(self, sizes: Sizes) -> Cost:
        """FLOPs and bytes of one call; a forecast where `TOKENS` is not the graph's own count."""
        values = dict(sizes)
        wanted = values.pop(TOKENS, self.length)
        kept, offset = values.get(KEPT, 0), values.get(OFFSET, 0)
        # Without a cache, where the scale begins at 0, its rows are all there is.
        fits = self.start == 0 or offset + kept <= self.start + self.length
        if wanted == self.length or (self.of_rows and fits):
            return self.graph.cost(tuple(values.items()))
        length, keys = (0, offset + kept) if self.of_rows else (wanted, offset + wanted)
        parts = [a * length + b * kept + (c * kept + d * length) * keys for a, b, c, d in self._law(values)]
        return Cost(*(max(0, round(part)) for part in parts))

    def _law(self, values: Values) -> list[tuple[float, float, float, float]]:
        """a, b, c and d for each of the three fields of a cost."""
        count, step = max(1, self.length // 2), min(1, self.start)

        def price(kept: int, offset: int) -> Cost:
            given = {**values, KEPT: kept, OFFSET: offset}
            return self.graph.cost(tuple(given.items()))

        def solve(few: int, few_later: int, more: int, more_later: int) -> tuple[float, float, float, float]:
            slope, keys = (few_later - few) / max(step, 1), self.start - step + self.length
            if self.of_rows:
                c = slope / count
                return 0.0, few / count - c * (self.start - step + count), c, 0.0
            c = (more_later - more) / max(step, 1) - slope
            d = (slope - c * count) / self.length
            b = more - few - c * keys
            return (few - b * count - (c * count + d * self.length) * keys) / self.length, b, c, d

        offsets = self.start - step, self.start
        corners = [price(kept, offset) for kept in (count, count + 1) for offset in offsets]
        return [solve(*each) for each in zip(*corners, strict=True)]


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
