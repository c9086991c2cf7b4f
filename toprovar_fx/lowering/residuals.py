"""One operator for a linear layer, the residual that it updates, and the norm that follows.

It deals products of few rows out to more programs than the library does, because the kernel that adds the
residual can add up their sums as well. Inductor would have to choose when it compiles, once for all sizes.
"""

from __future__ import annotations

import operator
from typing import NamedTuple

import torch
from torch import fx

from .._torch_private import graph_to_read
from ..analysis.contexts import is_context
from ..analysis.writes import between, memory_of, written
from ..ops import linear_add  # noqa: F401 - registers the operators called here
from .devices import on_hopper
from .patterns import Call, Hole, match
from .residual_forms import Addends, Norm, Update, norms_of, update_of

_ROW = Call("unsqueeze", Call("arange", Call("size", Hole("hidden"), 0), device=Hole("device")), 1)
_ROWS = Call("index_put_", Hole("hidden"), (_ROW, Hole("keep")), Hole("rows"))


def with_residuals(graph: fx.GraphModule) -> fx.GraphModule:
    """A copy of a graph that calls `toprovar::linear_add...` where linear layers update a residual.

    Args:
        graph: for one CUDA device, weights among its inputs; for others than Hopper cards it comes back as it
            is.

    Returns:
        The copy, or `graph` itself where there is nothing to do. Under autocast that is so: it casts the
        operands of the layers that it knows.
    """
    if torch.is_autocast_enabled("cuda") or any(is_context(node) for node in graph.graph.nodes):
        return graph
    if not on_hopper(graph.graph):
        return graph
    copied = fx.Graph()
    copied.output(copied.graph_copy(graph.graph, {}))
    rewritten = [_rewrite(copied, node) for node in list(copied.nodes)]
    return graph_to_read(graph, copied) if any(rewritten) else graph


def _rewrite(graph: fx.Graph, add: fx.Node) -> bool:
    update = update_of(add)
    if update is None or written(between(graph, update.linear, add)):
        return False
    operands = update.linear.args[0], *update.linear.args[1:3], *([None] * (3 - len(update.linear.args)))
    rows = _rows_of(add)
    if rows is not None and _may_write(graph, rows, add, update):
        with graph.inserting_before(rows.node):
            given = *operands, update.residual, _built(graph, update.gate), rows.hidden, rows.keep
            graph.call_function(torch.ops.toprovar.linear_add_rows.default, given)
        _replace(graph, {rows.node: rows.hidden}, (*update.nodes, rows.node))
        return True
    norm = next((found for found in norms_of(add, update.channels) if _may_move(graph, found, add)), None)
    with graph.inserting_before(add):
        given = *operands, update.residual, _built(graph, update.gate)
        if norm is None:
            made = graph.call_function(torch.ops.toprovar.linear_add.default, given)
            _replace(graph, {add: made}, update.nodes)
            return True
        modulation = _built(graph, norm.scale), _built(graph, norm.shift), norm.one, norm.eps
        both = graph.call_function(torch.ops.toprovar.linear_add_norm.default, (*given, *modulation))
        made, normed = (graph.call_function(operator.getitem, (both, at)) for at in range(2))
    _replace(graph, {norm.result: normed, add: made}, (*update.nodes, *norm.nodes))
    return True


class _Rows(NamedTuple):
    """A node that writes rows of a hidden state in place, and which."""

    node: fx.Node
    hidden: fx.Node
    keep: fx.Node


def _rows_of(add: fx.Node) -> _Rows | None:
    """Where a sum goes, if that is to rows of a hidden state and nowhere else."""
    (put,) = add.users if len(add.users) == 1 else (None,)
    found = None if put is None else match(_ROWS, put, {})
    if put is None or found is None or found["rows"] is not add or not isinstance(found["keep"], fx.Node):
        return None
    return _Rows(put, found["hidden"], found["keep"])


def _may_write(graph: fx.Graph, rows: _Rows, add: fx.Node, update: Update) -> bool:
    """Whether rows can be written while others are computed: nothing that is still read lies among them."""
    read = [update.residual, *update.linear.all_input_nodes, *(addend.node for addend in update.gate)]
    shared = any(memory_of(node) is memory_of(rows.hidden) for node in (*read, rows.keep))
    return not shared and not written(between(graph, add, rows.node))


def _may_move(graph: fx.Graph, norm: Norm, add: fx.Node) -> bool:
    """Whether a norm can be computed where the sum is."""
    place = {node: at for at, node in enumerate(graph.nodes)}
    known = all(place[addend.node] < place[add] for addend in (*norm.scale, *norm.shift))
    return known and not written(between(graph, add, norm.result))


def _built(graph: fx.Graph, addends: Addends) -> list[fx.Node]:
    return [addend.built(graph) for addend in addends]


def _replace(graph: fx.Graph, made: dict[fx.Node, fx.Node], nodes: tuple[fx.Node, ...]) -> None:
    """Let others read what was made, and drop what made it before."""
    for before, after in made.items():
        before.replace_all_uses_with(after)
    place = {node: at for at, node in enumerate(graph.nodes)}
    for node in sorted(nodes, key=place.__getitem__, reverse=True):
        graph.erase_node(node)
