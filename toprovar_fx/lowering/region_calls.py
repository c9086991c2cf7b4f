"""The nodes of a graph that call regions, for rewrites that let one call hand something on to the next."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

from .region import Region

# (region, a call, the call behind it) -> positions among the arguments, or None.
Needs = Callable[[Region, fx.Node, fx.Node], Sequence[int] | None]


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

    def pairs(self, needs: Needs) -> dict[fx.Node, fx.Node]:
        """The call behind a call of the same region, which begins with the first one's result.

        Args:
            needs: given a region and two such calls, the positions of what the first would have to know of
                the second's arguments; None where the two are no pair.
        """
        found: dict[fx.Node, fx.Node] = {}
        for after, region in self.regions.items():
            before = after.args[0] if after.args else None
            if not isinstance(before, fx.Node) or before in found or self.regions.get(before) is not region:
                continue
            positions = needs(region, before, after)
            if positions is not None and self._known(arguments_at(after, positions), before):
                found[before] = after
        return found

    def _known(self, nodes: Sequence[fx.Node], call: fx.Node) -> bool:
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
