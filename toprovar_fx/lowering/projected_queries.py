"""One operator for an attention and the linear layer that makes its queries.

Of few queries the layer is summed in parts, which the kernel of the attention adds up as it reads them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.nn import functional as F

from .._torch_private import graph_to_read
from ..analysis.graph_sizes import spec_of
from ..analysis.writes import between, written
from ..ops import projected_attention  # noqa: F401 - registers the operator called here
from .patterns import Call, Found, Hole, match

_SIZES = (Hole("rows"), Hole("tokens"), Hole("heads"), Hole("width"))
_PROJECTED = Hole("linear", Call("linear", Hole("x"), Hole("weight"), Hole("bias")))
_QUERIES = Call("transpose", Hole("seen", Call("view", _PROJECTED, *_SIZES)), 1, 2)


def with_projected_queries(graph: fx.GraphModule) -> fx.GraphModule:
    """A copy of a graph in which attentions of `with_attentions` compute the queries that only they read.

    Args:
        graph: weights among its inputs.

    Returns:
        The copy, or `graph` itself where there is nothing to do.
    """
    target = torch.ops.toprovar.attention.default
    found = {
        node: holes
        for node in graph.graph.find_nodes(op="call_function", target=target)
        if (holes := _projection(graph.graph, node)) is not None
    }
    if not found:
        return graph
    dropped = {holes[name] for holes in found.values() for name in ("queries", "seen", "linear")}
    copied = fx.Graph()
    mapped: dict[fx.Node, fx.Node] = {}

    def map_node(operand: fx.Node) -> fx.Node:
        return mapped[operand]

    for node in graph.graph.nodes:
        if node.op == "output":
            copied.output(fx.map_arg(node.args[0], map_node))
        elif node in found:
            names = ("x", "weight", "bias", "rows", "tokens", "heads")
            given = (*(found[node][name] for name in names), *node.args[1:])
            arguments = fx.map_arg(given, map_node)
            made = copied.call_function(torch.ops.toprovar.projected_attention.default, arguments)
            made.meta = dict(node.meta)
            mapped[node] = made
        elif node not in dropped:
            mapped[node] = copied.node_copy(node, map_node)
    return graph_to_read(graph, copied)


def _projection(graph: fx.Graph, attention: fx.Node) -> Found | None:
    """What makes the queries of an attention, if nobody else reads it and nothing is written meanwhile."""
    queries = attention.args[0]
    holes = match(_QUERIES, queries, {})
    if holes is None or not isinstance(queries, fx.Node):
        return None
    chain = {"queries": queries, "seen": holes["seen"], "linear": holes["linear"]}
    alone = all(len(node.users) == 1 for node in chain.values())
    weight, bias = holes["weight"], holes["bias"]
    inputs = all(_is_input(node) for node in (weight, bias) if node is not None)
    if not alone or not inputs or holes["linear"].target is not F.linear:
        return None
    shape, heads, width = spec_of(weight).shape, holes["heads"], holes["width"]
    whole = isinstance(heads, int) and isinstance(width, int) and shape is not None
    if not whole or shape[0] != heads * width:  # type: ignore[index]
        return None
    return None if written(between(graph, holes["linear"], attention)) else {**holes, **chain}


def _is_input(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "placeholder"
