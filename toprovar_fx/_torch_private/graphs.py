"""Copies of FX graphs, inputs that are added to one, code that waits for a call, `torch.cond` as a node."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx, nn
from torch.fx._lazy_graph_module import _LazyGraphModule

# (pred, true branch, false branch, operands): the node that Dynamo makes of `torch.cond`.
cond = torch.ops.higher_order.cond


def clone_graph(graph: fx.GraphModule) -> fx.GraphModule:
    """A copy whose nodes carry no values of another tracing session."""
    copied = fx.Graph()
    output = copied.graph_copy(graph.graph, {})
    if isinstance(output, tuple):
        copied.output(tuple(output))
    else:
        copied.output((output,))
    for node in copied.nodes:
        for name in ("example_value", "val", "toprovar_spec", "grapharg"):
            node.meta.pop(name, None)
    return fx.GraphModule(graph, copied)


def add_inputs(graph: fx.GraphModule, count: int) -> None:
    """Add inputs that nobody reads behind the others."""
    holders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    behind = holders[-1] if holders else graph.graph._root
    for at in range(count):
        with graph.graph.inserting_after(behind):
            behind = graph.graph.placeholder(f"size_{at}")
    graph.recompile()


def graph_to_read(
    attributes: nn.Module | Mapping[str, object], graph: fx.Graph, name: str = "GraphModule"
) -> fx.GraphModule:
    """A graph module whose Python code is written when it is called: most are read alone.

    The code of a step of 32 layers takes longer to write than the step to copy.

    Args:
        attributes: what the graph's nodes may name, or the module that has it; what they do not name is left.
        graph: becomes the module's own.
        name: of the class that the code is written for.
    """
    root = attributes if isinstance(attributes, nn.Module) else dict(attributes)
    return _LazyGraphModule(root, graph, class_name=name)


def keep_source(new: fx.Node, old: fx.Node) -> None:
    """Note at a copied input where Dynamo took it from."""
    if hasattr(old, "_dynamo_source"):
        new._dynamo_source = old._dynamo_source
