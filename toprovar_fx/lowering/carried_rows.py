"""Pruned blocks that are given the rows they compute and hand them on to a block that keeps the same tokens.

One map often ranks the tokens of many layers. Blocks of one keep set, one after another, need not write their
rows into the hidden state and gather them again, and each can compute the norm that begins the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from .._torch_private import graph_to_read
from ..analysis.graph_sizes import spec_of
from ..analysis.operators import operator_name
from ..analysis.writes import written
from ..input_specs import InputSpec, tensor_spec
from .carried_norms import copied_with_operands, placeholder
from .devices import on_hopper
from .patterns import Call, Hole, match
from .residual_forms import Norm, norms_of, update_of

_EVERY = slice(None)
_ROWS = Call(
    "gather",
    Hole("hidden"),
    1,
    Call("expand", Call("getitem", Hole("keep"), (_EVERY, _EVERY, None)), -1, -1, Hole("width")),
)
# What may be asked of the hidden state beside its rows: it is the same before and after.
_ASKED = frozenset({"size", "getattr"})


@dataclass(frozen=True)
class CarriedRows:
    """A pruned block in this form; its inputs are those of the block that writes rows in place, and more.

    Attributes:
        first: inputs are the hidden state [R, L, C], the keep set [R, K] and those of `modulations`; returns
            the rows [R, K, C] and the norm that begins the block.
        middle: further inputs are rows, norm, and those of `modulations` for the block that follows; returns
            rows and the norm that begins that block.
        last: further inputs are rows and norm; returns the hidden state, whose rows were written.
        keep: position of the keep set among the block's inputs.
        modulations: positions among the block's inputs.
    """

    first: fx.GraphModule
    middle: fx.GraphModule
    last: fx.GraphModule
    keep: int
    modulations: tuple[int, ...]


@dataclass(frozen=True)
class _Parts:
    """The nodes of a block that writes rows in place."""

    hidden: fx.Node
    keep: fx.Node
    rows: fx.Node
    norm: Norm
    added: fx.Node
    put: fx.Node
    modulations: tuple[fx.Node, ...]


def with_carried_rows(graph: fx.GraphModule) -> CarriedRows | None:
    """The form of a block's graph in which rows come and go without the hidden state.

    Args:
        graph: of `with_rows_in_place`.

    Returns:
        None where the graph is for other devices than Hopper cards, or has no norm of its rows that inputs
        modulate, or no linear layer as the last addend of its rows, or reads more of the hidden state.
    """
    parts = _read(graph) if on_hopper(graph.graph) else None
    if parts is None:
        return None
    holders = list(graph.graph.find_nodes(op="placeholder"))
    places = tuple(holders.index(node) for node in parts.modulations)
    made = _first(graph, parts), _middle(graph, parts), _last(graph, parts)
    return CarriedRows(*made, holders.index(parts.keep), places)


def _read(graph: fx.GraphModule) -> _Parts | None:
    hidden: fx.Node = next(iter(graph.graph.nodes))
    put: Any = next(node for node in reversed(graph.graph.nodes) if node.op == "output").args[0]
    if not isinstance(put, fx.Node) or put.target != "index_put_" or put.args[0] is not hidden:
        return None
    added: Any = put.args[2]
    gathers = [node for node in hidden.users if node.target is torch.gather]
    found = match(_ROWS, gathers[0], {"hidden": hidden}) if len(gathers) == 1 else None
    if found is None or not isinstance(added, fx.Node) or len(added.users) != 1:
        return None
    (rows,), keep, update = gathers, found["keep"], update_of(added)
    norms = [] if update is None else list(norms_of(rows, update.channels))
    asked = all(node in (rows, put) or operator_name(node) in _ASKED for node in hidden.users)
    if update is None or len(norms) != 1 or found["width"] != update.channels.width or not asked:
        return None
    (norm,) = norms
    given = tuple(dict.fromkeys(addend.node for addend in (*norm.scale, *norm.shift)))
    if not all(isinstance(node, fx.Node) and node.op == "placeholder" for node in (keep, *given)):
        return None
    alike = spec_of(hidden).dtype == update.channels.dtype
    if not alike or {hidden, keep, *given} & written(node for node in graph.graph.nodes if node is not put):
        return None
    return _Parts(hidden, keep, rows, norm, added, put, given)


def _first(graph: fx.GraphModule, parts: _Parts) -> fx.GraphModule:
    copied = fx.Graph()
    given = (parts.hidden, parts.keep, *parts.modulations)
    mapped = {node: copied.node_copy(node) for node in given}
    results = [copied_with_operands(copied, node, mapped) for node in (parts.rows, parts.norm.result)]
    copied.output(tuple(results))
    return graph_to_read(graph, copied)


def _middle(graph: fx.GraphModule, parts: _Parts) -> fx.GraphModule:
    copied, mapped = _begun(graph, parts)
    following = {node: placeholder(copied, f"next_{node.name}", spec_of(node)) for node in parts.modulations}
    _copy(graph, copied, mapped, parts, parts.added)
    added = mapped[parts.added]
    norm = copied_with_operands(copied, parts.norm.result, {parts.rows: added, **following})
    copied.output((added, norm))
    return graph_to_read(graph, copied)


def _last(graph: fx.GraphModule, parts: _Parts) -> fx.GraphModule:
    copied, mapped = _begun(graph, parts)
    _copy(graph, copied, mapped, parts, parts.put)
    copied.output(mapped[parts.put])
    return graph_to_read(graph, copied)


def _begun(graph: fx.GraphModule, parts: _Parts) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    """A graph with the block's inputs, then rows and norm."""
    copied = fx.Graph()
    mapped = {node: copied.node_copy(node) for node in graph.graph.find_nodes(op="placeholder")}
    spec = _spec_of_rows(parts)
    mapped[parts.rows] = placeholder(copied, "rows", spec)
    mapped[parts.norm.result] = placeholder(copied, "normed", spec)
    return copied, mapped


def _copy(
    graph: fx.GraphModule, copied: fx.Graph, mapped: dict[fx.Node, fx.Node], parts: _Parts, last: fx.Node
) -> None:
    """The nodes up to `last`, but for those of the rows and their norm."""
    for node in graph.graph.nodes:
        if node.op != "placeholder" and node not in parts.norm.nodes and node is not parts.rows:
            mapped[node] = copied.node_copy(node, mapped.__getitem__)
        if node is last:
            return


def _spec_of_rows(parts: _Parts) -> InputSpec:
    hidden, keep = spec_of(parts.hidden), spec_of(parts.keep)
    assert hidden.shape is not None and keep.shape is not None
    assert hidden.dtype is not None and hidden.device is not None
    return tensor_spec((*keep.shape, hidden.shape[2]), hidden.dtype, hidden.device)
