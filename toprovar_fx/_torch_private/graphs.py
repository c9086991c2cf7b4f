"""Copies of FX graphs, inputs that are added to one, and `torch.cond` as a node of one."""

from __future__ import annotations

import torch
from torch import fx

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


def keep_source(new: fx.Node, old: fx.Node) -> None:
    """Note at a copied input where Dynamo took it from."""
    if hasattr(old, "_dynamo_source"):
        new._dynamo_source = old._dynamo_source
