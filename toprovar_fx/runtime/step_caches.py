"""The caches among the inputs and results of a rewritten step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import sympy
from torch import fx

from ..analysis.shapes import Size, size_of
from .short_caches import ShortCaches, may_be_caches, refuse_short_caches

if TYPE_CHECKING:
    from ..passes.step import Step


class StepCaches:
    """Which input of a step is the cache of which layer: all of them are noted, and checked, at once.

    Caches that grow are made anew in every step; the next one gets what this one returns.

    Args:
        step: the step after the passes.
    """

    def __init__(self, step: Step) -> None:
        self._readers, self._made = _cache_places(step)
        self._starts = _starts(step)
        # By the values of the symbols: (first row, layers). A generation asks at every scale.
        self._known_starts: dict[tuple[tuple[sympy.Symbol, int], ...], list[tuple[int, list[int]]]] = {}
        self._no_weights: list[int] | None = None

    def begin(self, caches: ShortCaches, sizes: Mapping[sympy.Symbol, int]) -> None:
        """Note in `caches` where each layer is about to write, by the values of the trace's size symbols.

        Raises:
            GraphError: see `ShortCaches.begin`.
        """
        key = tuple(sizes.items())
        if key not in self._known_starts:
            values = {symbol: sympy.Integer(value) for symbol, value in key}
            self._known_starts[key] = [
                (int(start.xreplace(values)), layers) for start, layers in self._starts.items()
            ]
        for start, layers in self._known_starts[key]:
            caches.begin(layers, start)

    def hold(self, caches: ShortCaches, arguments: tuple[Any, ...], results: Sequence[Any]) -> None:
        """Note in `caches` those of all layers, as their gates do where a step runs by blocks."""
        held: dict[int, list[Any]] = {}
        for places, values in ((self._readers, arguments), (self._made, results)):
            for at, layers in places.items():
                for layer in layers:
                    held.setdefault(layer, []).append(values[at])
        for layer, given in held.items():
            caches.hold(layer, given)

    def refuse_short(
        self, own: ShortCaches, others: Iterable[ShortCaches], arguments: tuple[Any, ...]
    ) -> None:
        """Refuse to run the step on caches that lack rows, unless each is its layer's own.

        Args:
            own: the caches of the step's model.
            others: those of all models of the generation that lack rows.
            arguments: of the step.

        Raises:
            GraphError: see `refuse_short_caches`.
        """
        if self._no_weights is None:
            # Dynamo compiles anew where a parameter becomes another kind of tensor.
            self._no_weights = may_be_caches(arguments)
        refuse_short_caches(own, others, self._readers, arguments, self._no_weights)


_Places = dict[int, set[int]]


def _cache_places(step: Step) -> tuple[_Places, _Places]:
    """Positions of the step's inputs and results that are caches of layers with gates, and those layers."""
    graph = step.graph.graph
    position = {node: at for at, node in enumerate(n for n in graph.nodes if n.op == "placeholder")}
    leaving = {node: at for at, node in enumerate(graph.output_node().args[0])}  # type: ignore[arg-type]
    calls = {node.target: node for node in graph.nodes if node.op == "call_module"}
    given: _Places = {}
    made: _Places = {}
    for site in step.sites:
        if site.block.facts is None:
            continue
        inputs = [node for node in site.block.graph.graph.nodes if node.op == "placeholder"]
        for write in site.block.facts.writes:
            cache = calls[site.name].args[inputs.index(write.cache)]
            while cache.op != "placeholder":
                if cache in leaving:
                    made.setdefault(leaving[cache], set()).add(site.layer)
                cache = cache.args[0]
            given.setdefault(position[cache], set()).add(site.layer)
    return given, made


def _starts(step: Step) -> dict[Size, list[int]]:
    """First cache rows of a scale as traced, in the symbols of the trace, and the layers that write there."""
    calls = {node.target: node for node in step.graph.graph.nodes if node.op == "call_module"}
    found: dict[Size, list[int]] = {}
    for site in step.sites:
        if site.block.facts is None or not site.block.facts.writes:
            continue
        start: object = site.block.facts.writes[0].start
        if isinstance(start, fx.Node):
            inputs = [node for node in site.block.graph.graph.nodes if node.op == "placeholder"]
            start = calls[site.name].args[inputs.index(start)]
        size = size_of(start)
        if size is not None:
            found.setdefault(size, []).append(site.layer)
    return found
