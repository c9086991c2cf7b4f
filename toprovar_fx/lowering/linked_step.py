"""The same as a joined step, as calls of the compiled blocks one after another.

A joined graph is compiled whole: its price grows with the layers, and every pattern of variants pays it
again. A linked step pays for each variant of a block once, whatever the layers and patterns. What it gives
up is the fusion across block borders; calls from the host cost nothing in a recorded CUDA graph.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import fx

from .joined_layers import JoinedLayer, Selection
from .joined_step import Joiner
from .region import Carried, Region
from .rest import RegionCall


def link_step(
    step: fx.GraphModule, sites: Mapping[str, int], layers: Sequence[JoinedLayer], selection: Selection
) -> fx.GraphModule:
    """The graph of `join_step`, same inputs and outputs, whose nodes call the regions of the layers."""
    return _Linker(step, sites, layers, selection).run().graph


class _Linker(Joiner):
    def __init__(
        self,
        step: fx.GraphModule,
        sites: Mapping[str, int],
        layers: Sequence[JoinedLayer],
        selection: Selection,
    ) -> None:
        super().__init__(step, sites, layers, selection)
        self._behind = self._pairs()
        self._normed: dict[int, Any] = {}

    def _pairs(self) -> dict[int, fx.Node]:
        """The call of the layer behind a layer, where the first can compute the norm of the second."""
        calls = [node for node in self.step.graph.nodes if node.target in self.sites]
        found = {}
        for before, after in pairwise(calls):
            first, second = (self.layers[self.sites[str(call.target)]] for call in (before, after))
            carried = _carried(first)
            if carried is None or _carried(second) is not carried or after.args[0] is not before:
                continue
            given = [after.args[second.select[at]] for at in carried.modulations]
            if all(isinstance(node, fx.Node) and node.op == "placeholder" for node in given):
                found[self.sites[str(before.target)]] = after
        return found

    def run_whole(self, at: int, region: Region, arguments: Sequence[Any]) -> Any:
        """The node that calls a region; where a layer like it is next to it, one norm for the two."""
        behind = self._behind.get(at)
        if behind is None and at not in self._normed:
            return self.run_region(region, arguments)
        carried = region.carried()
        assert carried is not None
        own = [arguments[position] for position in carried.modulations]
        normed = self._normed.pop(at, None)
        if normed is None:
            normed = self.run_region(carried.norm, [arguments[0], *own])
        following = own
        if behind is not None:
            select = self.layers[self.sites[str(behind.target)]].select
            following = [self.mapped[behind.args[select[position]]] for position in carried.modulations]  # type: ignore[index]
        hidden, norm = self.pair(self.run_region(carried.block, [*arguments, normed, *following]))
        if behind is not None:
            self._normed[self.sites[str(behind.target)]] = norm
        return hidden

    def run_region(self, region: Region, arguments: Sequence[Any]) -> Any:
        """The node that calls a region."""
        name = f"region_{id(region)}"
        self.modules.setdefault(name, RegionCall(region))
        return self.graph.call_module(name, tuple(arguments))

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


def _carried(layer: JoinedLayer) -> Carried | None:
    """How the block of a layer runs between layers like it, if it computes all tokens and nothing else."""
    others = layer.plain or layer.entropy or layer.restored or layer.count is not None
    return None if others or layer.region is None else layer.region.carried()
