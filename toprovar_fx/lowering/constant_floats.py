"""Numbers of the model, such as a norm's epsilon, as the constants that they are.

`torch.compile(dynamic=True)` hands every Python float over as a tensor that the graph reads: no analysis
could tell them from numbers that depend on the tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from .._torch_private import depends_on_sizes, hint_of


def with_constant_floats(graph: fx.GraphModule) -> fx.GraphModule:
    """A copy of a traced graph in which floats that do not depend on sizes are the constants of this trace.

    Nothing guards their values until `hold_floats`.

    Args:
        graph: Dynamo's graph, with its values in `example_value`.

    Returns:
        The copy, with the same inputs; `graph` itself where it has no such float.
    """
    constants = {node: hint_of(value) for node, value in _own_floats(graph).items()}
    if not constants:
        return graph
    copied = fx.Graph()
    mapped: dict[fx.Node, Any] = {}
    for node in graph.graph.nodes:
        if node.op == "output":
            found = copied.output(fx.map_arg(node.args[0], mapped.__getitem__))
            found.meta = dict(node.meta)
            continue
        if node.op == "placeholder" or node not in constants:
            mapped[node] = copied.node_copy(node, mapped.__getitem__)
        if node in constants:
            mapped[node] = constants[node]
    return fx.GraphModule(graph, copied)


def hold_floats(graph: fx.GraphModule) -> None:
    """Ask Dynamo for the values of the floats that became constants: it guards on what it answers."""
    for value in _own_floats(graph).values():
        float(value)


def _own_floats(graph: fx.GraphModule) -> dict[fx.Node, torch.SymFloat]:
    values = {node: node.meta.get("example_value") for node in graph.graph.nodes}
    return {
        node: value
        for node, value in values.items()
        if isinstance(value, torch.SymFloat) and not depends_on_sizes(value)
    }
