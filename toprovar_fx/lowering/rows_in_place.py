"""Pruned blocks that write the rows they computed into the hidden state they were given, and copy nothing."""

from __future__ import annotations

import torch
from torch import fx

from .._torch_private import graph_to_read


def with_rows_in_place(graph: fx.GraphModule) -> fx.GraphModule | None:
    """A copy of a pruned block's graph that changes its first input instead of copying it.

    Args:
        graph: its first input is the hidden state [R, L, C]; its (first) result that state with the rows of a
            keep set [R, K] replaced by what the block computed, `scatter(hidden, 1, keep, rows)`.

    Returns:
        The copy; its (first) result is the first input itself. None where the graph ends otherwise, as it
        does where tokens that are not computed get an update.
    """
    nodes = list(graph.graph.nodes)
    scatter, output = nodes[-2], nodes[-1]
    hidden = nodes[0]
    keep = _keep_set(scatter, hidden)
    results = output.args[0] if isinstance(output.args[0], tuple) else (output.args[0],)
    if keep is None or results[0] is not scatter or hidden in results[1:]:
        return None
    copied = fx.Graph()
    mapped: dict[fx.Node, fx.Node] = {}
    for node in nodes[:-2]:
        mapped[node] = copied.node_copy(node, lambda operand: mapped[operand])
    rows = copied.call_method("size", (mapped[hidden], 0))
    device = copied.call_function(getattr, (mapped[hidden], "device"))
    row = copied.call_function(torch.arange, (rows,), {"device": device})
    row = copied.call_method("unsqueeze", (row, 1))
    mapped[scatter] = copied.call_method(
        "index_put_",
        (mapped[hidden], (row, mapped[keep]), mapped[scatter.args[3]]),  # type: ignore[index]
    )
    copied.output(fx.map_arg(output.args[0], lambda operand: mapped[operand]))
    return graph_to_read(graph, copied)


def _keep_set(scatter: fx.Node, hidden: fx.Node) -> fx.Node | None:
    """The keep set [R, K] by which the rows of all channels are put into `hidden`, or None."""
    if scatter.target is not torch.scatter or scatter.args[:2] != (hidden, 1) or len(scatter.users) != 1:
        return None
    expanded = scatter.args[2]
    if not isinstance(expanded, fx.Node) or expanded.target != "expand" or expanded.args[1:3] != (-1, -1):
        return None
    column = expanded.args[0]
    if not isinstance(column, fx.Node) or column.target != "unsqueeze" or column.args[1:] != (-1,):
        return None
    return column.args[0] if isinstance(column.args[0], fx.Node) else None
