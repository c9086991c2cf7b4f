"""The entropy maps of a joined step: those that it gets, and those that its layers measure."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import NamedTuple

from torch import fx

from ..criteria.restore import scatter_rows, scatter_rows_together
from .joined_layers import JoinedLayer


class _Scattered(NamedTuple):
    """What makes the map of a layer that computed K tokens: nodes [R, L], [R, K] and [R, K]."""

    known: fx.Node
    keep: fx.Node
    rows: fx.Node


class StepMaps:
    """Maps by layer.

    Args:
        graph: of the joined step.
        layers: how every layer runs.

    Attributes:
        known: the latest map of every layer that a later layer may read.
    """

    def __init__(self, graph: fx.Graph, layers: Sequence[JoinedLayer]) -> None:
        self._graph, self._layers = graph, layers
        self.known: dict[int, fx.Node] = {}
        self._measured: dict[int, fx.Node | None] = {}
        # By group of K: a scatter is a few small kernels, those of many layers together are as few.
        self._late: dict[int, dict[int, _Scattered]] = {}

    def measure(self, at: int, entropy: fx.Node, keep: fx.Node | None, hidden: fx.Node) -> None:
        """Take what layer `at` measured.

        Args:
            at: the layer.
            entropy: its entropies, [R, L], or [R, K] of the tokens that it computed.
            keep: these tokens, [R, K], or None for all.
            hidden: the layer's input, [R, L, C].
        """
        layer = self._layers[at]
        if keep is not None:
            base = None if layer.base is None else self.known[layer.base]
            if base is not None and layer.count is not None and not self._read_later(at):
                self._late.setdefault(layer.count, {})[at] = _Scattered(base, keep, entropy)
                self._measured[at] = None
                return
            length = self._graph.call_method("size", (hidden, 1))
            entropy = self._graph.call_function(scatter_rows, (base, keep, entropy, length))
        self.known[at] = self._measured[at] = entropy

    def _read_later(self, at: int) -> bool:
        """Whether a later layer of this step needs the map of layer `at`."""
        return any(at in (later.ranked_by, later.base) for later in self._layers[at + 1 :])

    def finish(self) -> dict[int, fx.Node]:
        """The maps that were measured, by layer in order, once all layers are there."""
        for layers in self._late.values():
            made = self._graph.call_function(scatter_rows_together, tuple(zip(*layers.values(), strict=True)))
            for place, at in enumerate(layers):
                self._measured[at] = self._graph.call_function(operator.getitem, (made, place))
        return {at: node for at, node in self._measured.items() if node is not None}
