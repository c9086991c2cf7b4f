"""Lowered graphs as modules: those that a step calls, and the parts of it outside its blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx, nn

from ..cost.expressions import Sizes
from .region import Region


class RegionCall(nn.Module):
    """A lowered graph as a module."""

    def __init__(self, region: Region) -> None:
        super().__init__()
        self.region = region

    def forward(self, *arguments: Any) -> Any:
        """Run the graph."""
        return self.region(*arguments)


class RegionModule(nn.Module):
    """A lowered graph whose calls somebody counts.

    Args:
        region: the graph.
        seen: told the region and its sizes at every call.
    """

    def __init__(self, region: Region, seen: Callable[[Region, Sizes], None]) -> None:
        super().__init__()
        self.region, self.seen = region, seen

    def forward(self, *arguments: Any) -> Any:
        """Run the graph."""
        self.seen(self.region, self.region.sizes(arguments))
        return self.region(*arguments)


def lower_calls(
    step: fx.GraphModule,
    lower: Callable[[str, fx.GraphModule], Region],
    wrap: Callable[[Region], nn.Module],
) -> list[Region]:
    """Put lowered graphs in the place of the graphs that a step calls; one that has several names, once.

    Args:
        step: changed in place; of the modules that it calls those that are no graphs stay.
        lower: makes the region of a graph, given the first name that it is called by.
        wrap: makes the module that calls a region, for every name.

    Returns:
        The region of every name, in the order of the calls.
    """
    known: dict[int, Region] = {}
    found = []
    # By the calls: of a module with several names `named_children` tells the first.
    for name in dict.fromkeys(str(node.target) for node in step.graph.nodes if node.op == "call_module"):
        graph = step.get_submodule(name)
        if isinstance(graph, fx.GraphModule):
            if id(graph) not in known:
                known[id(graph)] = lower(name, graph)
            found.append(known[id(graph)])
            setattr(step, name, wrap(found[-1]))
    return found
