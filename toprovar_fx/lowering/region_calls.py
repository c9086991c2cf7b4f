"""The nodes of a graph that call regions, for rewrites that let one call hand something on to the next."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

from .region import Region


class RegionCalls:
    """The calls of a graph, as it is at first.

    Args:
        graph: of a step.
        region_of: the region that a node calls, or None for other nodes.
        name_of: the name by which the graph's module calls a region.

    Attributes:
        graph: as given; changed in place by who adds calls.
        region_of: as given, for nodes that were added as well.
        regions: by the nodes that called them at first, in order.
    """

    def __init__(
        self, graph: fx.Graph, region_of: Callable[[fx.Node], Region | None], name_of: Callable[[Region], str]
    ) -> None:
        self.graph, self.region_of, self._name_of = graph, region_of, name_of
        self._place = {node: at for at, node in enumerate(graph.nodes)}
        self.regions = {node: region for node in graph.nodes if (region := region_of(node)) is not None}

    def before(self, node: fx.Node) -> fx.Node | None:
        """The call of the same region whose result is the first argument of a call."""
        given = node.args[0] if node.args else None
        same = isinstance(given, fx.Node) and self.regions.get(given) is self.regions[node]
        return given if same else None  # type: ignore[return-value]

    def known(self, nodes: Sequence[fx.Node], call: fx.Node) -> bool:
        """Whether these are computed before a call."""
        return all(self._place[node] < self._place[call] for node in nodes)

    def call(self, region: Region, *arguments: Any) -> fx.Node:
        """Add a call of a region."""
        return self.graph.call_module(self._name_of(region), arguments)

    def call_for_two(self, region: Region, *arguments: Any) -> tuple[fx.Node, fx.Node]:
        """Add a call of a region that returns a pair, and take that apart."""
        both = self.call(region, *arguments)
        first, second = (self.graph.call_function(operator.getitem, (both, at)) for at in range(2))
        return first, second


def arguments_at(call: fx.Node, positions: Sequence[int]) -> list[fx.Node]:
    """The arguments of a call at these positions."""
    return [call.args[position] for position in positions]  # type: ignore[misc]
