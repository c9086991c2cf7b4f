"""Moves runs of nodes of a graph into graphs of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from .._torch_private import graph_to_read, keep_source
from ..analysis.signature import external_inputs


@dataclass(frozen=True)
class Outline:
    """A run of nodes to be moved: `entry` becomes the first input."""

    name: str
    entry: fx.Node
    nodes: tuple[fx.Node, ...]


def outputs_of(nodes: Sequence[fx.Node]) -> list[fx.Node]:
    """Values computed by `nodes` that something else uses."""
    members = set(nodes)
    return [node for node in nodes if any(user not in members for user in node.users)]


def extract(outline: Outline) -> fx.GraphModule:
    """The run as a graph module; placeholders are its external inputs, one output or a tuple of them."""
    graph = fx.Graph()
    mapped: dict[fx.Node, fx.Node] = {}
    for at, source in enumerate(external_inputs(outline.entry, outline.nodes)):
        holder = graph.placeholder("hidden" if at == 0 else f"{_short(source.name)}_{at}")
        holder.meta = dict(source.meta)
        mapped[source] = holder
    for node in outline.nodes:
        mapped[node] = graph.node_copy(node, lambda operand: mapped[operand])
    leaving = [mapped[node] for node in outputs_of(outline.nodes)]
    output = graph.output(leaving[0] if len(leaving) == 1 else tuple(leaving))
    output.meta = {}
    # Constants and the graphs of higher-order operators are attributes of the module that was traced.
    return graph_to_read(outline.nodes[0].graph.owning_module or {}, graph, outline.name)


def _short(name: str) -> str:
    """Dynamo's long input names, shortened to their last parts."""
    parts = [
        part
        for part in name.strip("_").split("_")
        if part not in ("l", "self", "modules", "parameters", "buffers")
    ]
    return "in_" + ("_".join(parts[-3:]) or name)


def replace_by_calls(graph: fx.Graph, outlines: Sequence[Outline]) -> fx.Graph:
    """A copy of `graph` in which each outlined run is one `call_module` of the outline's name."""
    owner = {node: outline for outline in outlines for node in outline.nodes}
    last = {outline.nodes[-1]: outline for outline in outlines}
    copied = fx.Graph()
    mapped: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node in owner:
            if node in last:
                _call(copied, last[node], mapped)
        else:
            new = copied.node_copy(node, lambda operand: mapped[operand])
            keep_source(new, node)
            mapped[node] = new
    copied.lint()
    return copied


def _call(graph: fx.Graph, outline: Outline, mapped: dict[fx.Node, fx.Node]) -> None:
    inputs = tuple(mapped[source] for source in external_inputs(outline.entry, outline.nodes))
    call = graph.call_module(outline.name, inputs)
    leaving = outputs_of(outline.nodes)
    if len(leaving) == 1:
        call.meta = dict(leaving[0].meta)
        mapped[leaving[0]] = call
        return
    for at, node in enumerate(leaving):
        mapped[node] = graph.call_function(_getitem, (call, at))
        mapped[node].meta = dict(node.meta)


def _getitem(values: tuple[object, ...], at: int) -> object:
    return values[at]
