"""The same as a joined step, as calls of the compiled blocks one after another.

A joined graph is compiled whole: its price grows with the layers, and every pattern of variants pays it
again. A linked step pays for each variant of a block once, whatever the layers and patterns. What it gives
up is the fusion across block borders; calls from the host cost nothing in a recorded CUDA graph.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx

from .hand_on_norms import hand_on_norms
from .hand_on_rows import hand_on_rows
from .joined_layers import JoinedLayer, Selection
from .joined_step import Joiner
from .region import Region
from .region_calls import RegionCalls
from .rest import RegionCall


def link_step(
    step: fx.GraphModule, sites: Mapping[str, int], layers: Sequence[JoinedLayer], selection: Selection
) -> fx.GraphModule:
    """The graph of `join_step`, same inputs and outputs, whose nodes call the regions of the layers."""
    return _Linker(step, sites, layers, selection).run().graph


class _Linker(Joiner):
    def run_region(self, region: Region, arguments: Sequence[Any]) -> Any:
        """The node that calls a region."""
        return self.graph.call_module(self._name_of(region), tuple(arguments))

    def finish(self) -> None:
        """Let blocks hand on what those behind them begin with."""
        for hand_on in (hand_on_norms, hand_on_rows):
            hand_on(RegionCalls(self.graph, self._region_of, self._name_of))

    def _name_of(self, region: Region) -> str:
        name = f"region_{id(region)}"
        self.modules.setdefault(name, RegionCall(region))
        return name

    def _region_of(self, node: fx.Node) -> Region | None:
        module = self.modules.get(str(node.target)) if node.op == "call_module" else None
        return module.region if isinstance(module, RegionCall) else None

    def run_pruned(self, region: Region, arguments: Sequence[Any], spare: bool) -> Any:
        """The node that calls a region that writes its rows into the hidden state, or into a copy of it."""
        in_place = region.rows_in_place()
        if in_place is None:
            return self.run_region(region, arguments)
        hidden, *others = arguments
        own = hidden if spare else self.graph.call_method("clone", (hidden,))
        return self.run_region(in_place, [own, *others])

    def pair(self, results: Any) -> tuple[Any, Any]:
        """Nodes that take the results of a call apart."""
        first, second = (self.graph.call_function(operator.getitem, (results, at)) for at in range(2))
        return first, second
