"""Sizes that the trace knows, as numbers: what Dynamo leaves as `x.size()` after it fixed a symbolic size."""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch import fx

from ..analysis.shapes import as_size, value_of


def fold_known_sizes(traced: fx.GraphModule) -> fx.GraphModule:
    """Replace computed sizes by the numbers, or the inputs, that they equal; drop assertions about them.

    When a process compiles two models of different widths, Dynamo first takes the width for a symbol, and the
    graph keeps `x.size()[2]` where it was fixed to a number later. Dynamo guards these numbers.

    Args:
        traced: Dynamo's graph (never changed).

    Returns:
        The graph with the same names and values, or `traced` itself where there is nothing to replace.
    """
    inputs = {
        as_size(value): node
        for node in traced.graph.nodes
        if node.op == "placeholder" and isinstance(value := value_of(node), torch.SymInt)
    }
    copies: dict[fx.Node, Any] = {}
    found = False
    graph = fx.Graph()
    for node in traced.graph.nodes:
        if _is_settled(node):
            found = True
            continue
        known = _known(value_of(node), inputs) if node.op in ("call_function", "call_method") else None
        if known is None:
            copies[node] = graph.node_copy(node, lambda operand: copies[operand])
        else:
            found = True
            copies[node] = fx.map_arg(known, lambda operand: copies[operand])
    for node in reversed(graph.nodes):
        about_sizes = isinstance(value_of(node), (torch.Size, torch.SymBool)) and node.op != "placeholder"
        if about_sizes and not node.users:
            graph.erase_node(node)
    return fx.GraphModule(traced, graph) if found else traced


def _is_settled(node: fx.Node) -> bool:
    """Whether `node` asserts what sizes always fulfil, as the trace found: Dynamo guards the rest."""
    if node.target not in (torch._check, torch.ops.aten._assert_scalar.default):
        return False
    condition = node.args[0]
    value = value_of(condition) if isinstance(condition, fx.Node) else condition
    return value is True or (isinstance(value, torch.SymBool) and value.node.expr == sympy.true)


def _known(value: object, inputs: dict[Any, fx.Node]) -> Any:
    """A size, or a tuple of sizes, as numbers and inputs of the graph; None for anything else."""
    if isinstance(value, torch.Size):
        sizes = tuple(_known(size, inputs) for size in value)
        return None if any(size is None for size in sizes) else sizes
    if isinstance(value, torch.SymInt):
        size = as_size(value)
        return int(size) if size.is_Integer else inputs.get(size)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
