"""Joins the blocks of a scale step, each in its chosen variant, into one graph: one call per scale.

What differs between layers by number alone (cache offset, kept tokens K) is an input per *group* of layers
that share it, so that one compilation serves all scales whose layers group alike.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from .._torch_private import graph_to_read
from ..analysis.graph_sizes import spec_of
from ..input_specs import IMAGES, InputSpec, group_count, group_offset, tensor_spec
from ..ops import select_tokens  # noqa: F401 - registers the operators called here
from .joined_layers import Extra, JoinedLayer, JoinedStep, SelectedKeep, Selection, ranked_from_before
from .region import Region
from .rest import RegionModule
from .step_maps import StepMaps


def join_step(
    step: fx.GraphModule, sites: Mapping[str, int], layers: Sequence[JoinedLayer], selection: Selection
) -> JoinedStep:
    """Build the joined graph.

    Args:
        step: the graph that calls the blocks.
        sites: layer by the name of the submodule that runs it.
        layers: how every layer runs, from the first of the model to the last of the step.
        selection: how tokens are selected from maps.
    """
    return Joiner(step, sites, layers, selection).run()


class _Selected(NamedTuple):
    """A keep set [R, K]: its node, which of the selections it is of, and its place there."""

    keep: fx.Node
    selection: int
    place: int | None


class Joiner:
    """Builds one joined graph; arguments as for `join_step`."""

    def __init__(
        self,
        step: fx.GraphModule,
        sites: Mapping[str, int],
        layers: Sequence[JoinedLayer],
        selection: Selection,
    ) -> None:
        self.step, self.sites, self.layers, self.selection = step, sites, layers, selection
        self.graph = fx.Graph()
        self.mapped: dict[fx.Node, Any] = {}
        self.extra: dict[Extra, fx.Node] = {}
        self.maps = StepMaps(self.graph, layers)
        self.updates: dict[int, fx.Node] = {}
        self.together = ranked_from_before(layers)
        self.selected: dict[tuple[fx.Node, int], _Selected] = {}
        self.selections: list[fx.Node] = []
        self.keeps: list[SelectedKeep] = []
        self.modules: dict[str, Any] = {
            name: child
            for name, child in step.named_children()
            if isinstance(child, fx.GraphModule) and name not in sites
        }

    def run(self) -> JoinedStep:
        """Copy the step, with the layers in their variants."""
        for node in self.step.graph.nodes:
            if node.op == "placeholder":
                holder = self.mapped[node] = self.graph.placeholder(str(node.target))
                holder.meta = {"toprovar_spec": spec_of(node)}
        for extra in self._needed():
            self.extra[extra] = self.graph.placeholder(f"{extra.kind}_{extra.at}")
            self.extra[extra].meta = {"toprovar_spec": self._spec(extra)}
            if extra.kind == "map":
                self.maps.known[extra.at] = self.extra[extra]
        results: tuple[Any, ...] = ()
        for node in self.step.graph.nodes:
            if node.op == "output":
                found = fx.map_arg(node.args[0], self._map)
                results = found if isinstance(found, tuple) else (found,)
            elif node.op == "call_module":
                self.mapped[node] = self._inline(node)
            elif node.op != "placeholder":
                self.mapped[node] = self.graph.node_copy(node, self._map)
        measured = self.maps.finish()
        self.graph.output((*results, *measured.values(), *self.updates.values(), *self.selections))
        self.finish()
        self.graph.lint()
        module = graph_to_read(self.modules, self.graph, "JoinedStep")
        layers = tuple(measured), tuple(self.updates)
        return JoinedStep(module, tuple(self.extra), len(results), *layers, tuple(self.keeps))

    def _map(self, operand: fx.Node) -> Any:
        return self.mapped[operand]

    def _needed(self) -> list[Extra]:
        """The added inputs; a map that an earlier layer of this scale measures is none."""
        found: dict[Extra, None] = {}
        fresh: set[int] = set()
        for at, layer in enumerate(self.layers):
            if layer.offset is not None:
                found[Extra("offset", layer.offset)] = None
            if layer.ranked_by is not None or layer.by_frequency:
                assert layer.count is not None
                found[Extra("count", layer.count)] = None
                found[Extra("images", 0)] = None
            if layer.keep_given:
                found[Extra("keep", at)] = None
            for ranking in (layer.ranked_by, layer.base):
                if ranking is not None and ranking not in fresh:
                    found[Extra("map", ranking)] = None
            if layer.restored:
                found[Extra("restored", at)] = None
            if layer.entropy:
                fresh.add(at)
        # Updates and maps last: they may be passed as one.
        return sorted(found, key=lambda extra: (extra.kind == "map", extra.kind == "restored"))

    def _spec(self, extra: Extra) -> InputSpec:
        hidden = self._hidden()
        assert hidden.shape is not None and hidden.dtype is not None and hidden.device is not None
        if extra.kind == "offset":
            return InputSpec(value=group_offset(extra.at))
        if extra.kind == "count":
            return InputSpec(value=group_count(extra.at))
        if extra.kind == "images":
            return InputSpec(value=IMAGES)
        if extra.kind == "keep":
            count = self.layers[extra.at].count
            assert count is not None
            return tensor_spec((hidden.shape[0], group_count(count)), torch.int64, hidden.device)
        if extra.kind == "map":
            return tensor_spec(hidden.shape[:2], torch.float32, hidden.device)
        return tensor_spec(hidden.shape, hidden.dtype, hidden.device)

    def _hidden(self) -> InputSpec:
        """The hidden state that enters the first block."""
        first = next(node for node in self.step.graph.nodes if node.target in self.sites)
        return spec_of(first.args[0])  # type: ignore[arg-type]

    def _inline(self, call: fx.Node) -> Any:
        inputs = [fx.map_arg(argument, self._map) for argument in call.args]
        if call.target in self.sites:
            return self._layer(self.sites[str(call.target)], inputs, self._is_spare(call.args[0]))
        module: nn.Module = self.step.get_submodule(str(call.target))
        if isinstance(module, RegionModule):
            return self.run_region(module.region, inputs)
        assert isinstance(module, fx.GraphModule)
        return self.copy(module, inputs)

    def pair(self, results: Any) -> tuple[Any, Any]:
        """The two results of a region apart."""
        first, second = results
        return first, second

    def run_region(self, region: Region, arguments: Sequence[Any]) -> Any:
        """The nodes that compute what a region returns: those of its graph."""
        return self.copy(region.graph, arguments)

    def finish(self) -> None:
        """What is done with the nodes once all are there."""

    def run_pruned(self, region: Region, arguments: Sequence[Any], spare: bool) -> Any:
        """As `run_region`, for a block that computes some rows; `spare`: nobody else needs the others."""
        return self.run_region(region, arguments)

    def _is_spare(self, hidden: Any) -> bool:
        """Whether a block is the only reader of what another one made."""
        made = isinstance(hidden, fx.Node) and hidden.op == "call_module" and hidden.target in self.sites
        return made and len(hidden.users) == 1 and not self.layers[self.sites[str(hidden.target)]].plain

    def _layer(self, at: int, inputs: list[Any], spare: bool) -> Any:
        layer, hidden = self.layers[at], inputs[0]
        restored = self.extra[Extra("restored", at)] if layer.restored else None
        if layer.region is None:
            if restored is None:
                # Not the node itself: what follows may write to it in place.
                return self.graph.call_method("clone", (hidden,))
            return self.graph.call_function(torch.add, (hidden, restored))
        arguments = [inputs[position] for position in layer.select]
        if layer.offset is not None:
            arguments.append(self.extra[Extra("offset", layer.offset)])
        keep = None
        if layer.count is not None:
            keep = self._keep(at, layer, hidden)
            arguments.append(keep)
            arguments += [] if restored is None else [restored]
        if keep is None:
            result = self.run_region(layer.region, arguments)
        else:
            result = self.run_pruned(layer.region, arguments, spare and not layer.update)
        if layer.entropy:
            result, entropy = self.pair(result)
            self.maps.measure(at, entropy, keep, hidden)
        if layer.update:
            self.updates[at] = self.graph.call_function(torch.sub, (result, hidden))
        return result

    def _keep(self, at: int, layer: JoinedLayer, hidden: fx.Node) -> fx.Node:
        if layer.keep_given:
            return self.extra[Extra("keep", at)]
        assert layer.count is not None
        if layer.ranked_by is None:
            assert self.selection.frequency is not None
            ranking = self.run_region(self.selection.frequency, (hidden,))
        else:
            ranking = self.maps.known[layer.ranked_by]
        if (ranking, layer.count) not in self.selected:
            self._select(ranking, layer.count)
        found = self.selected[ranking, layer.count]
        self.keeps.append(SelectedKeep(at, found.selection, found.place))
        return found.keep

    def _select(self, ranking: fx.Node, group: int) -> None:
        """Select the tokens that a map ranks; with it those of all maps that are there from the start."""
        count, images = self.extra[Extra("count", group)], self.extra[Extra("images", 0)]
        how = count, images, self.selection.rule, self.selection.keep_low
        known = [self.extra[Extra("map", layer)] for layer in self.together.get(group, ())]
        at = len(self.selections)
        if ranking not in known or len(known) == 1:
            keep = self.graph.call_function(torch.ops.toprovar.select_tokens.default, (ranking, *how))
            self.selections.append(keep)
            self.selected[ranking, group] = _Selected(keep, at, None)
            return
        several = torch.ops.toprovar.select_tokens_by_layer.default
        self.selections.append(self.graph.call_function(several, (known, *how)))
        for place, each in enumerate(known):
            keep = self.graph.call_function(operator.getitem, (self.selections[-1], place))
            self.selected[each, group] = _Selected(keep, at, place)

    def _fetch(self, graph: fx.GraphModule, name: str) -> fx.Node:
        """What a graph has as an attribute, under a name of its own in the joined one."""
        value = operator.attrgetter(name)(graph)
        own = f"{name.replace('.', '_')}_{id(value)}"
        self.modules[own] = value
        return self.graph.get_attr(own)

    def copy(self, graph: fx.GraphModule, arguments: Sequence[Any]) -> Any:
        """The nodes of another graph; what it returns."""
        holders = [node for node in graph.graph.nodes if node.op == "placeholder"]
        own: dict[fx.Node, Any] = dict(zip(holders, arguments, strict=True))
        for node in graph.graph.nodes:
            if node.op == "output":
                return fx.map_arg(node.args[0], lambda operand: own[operand])
            if node.op == "get_attr":
                own[node] = self._fetch(graph, str(node.target))
            elif node.op != "placeholder":
                own[node] = self.graph.node_copy(node, lambda operand: own[operand])
        raise AssertionError("a graph without an output")
