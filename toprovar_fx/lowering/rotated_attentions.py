"""One operator for the rotation of `with_rotations` and the attention that reads its queries.

The linear layer that makes the queries, keys and values becomes an operator of ours besides, which reads its
weight while the kernel before still runs, where tokens are few.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.nn import functional as F

from .._torch_private import graph_to_read
from ..analysis.writes import between, memory_of, written
from ..ops import linear, rotated_attention  # noqa: F401 - registers the operators called here
from .patterns import Call, Hole, match
from .rotations import length_of

_ROTATED = torch.ops.toprovar.rotated_qkv.default
_ATTENTION = torch.ops.toprovar.attention.default
_EVERY = slice(None)


def with_rotated_attentions(graph: fx.GraphModule) -> fx.GraphModule:
    """A copy of a graph in which attention over a cache and the rotation before it are one.

    Args:
        graph: of `with_rotations` and `with_attentions`.

    Returns:
        The copy, or `graph` itself where there is nothing to do.
    """
    copied = fx.Graph()
    copied.output(copied.graph_copy(graph.graph, {}))
    attentions = copied.find_nodes(op="call_function", target=_ATTENTION)
    rewritten = [_rewrite(copied, node) for node in attentions]
    return graph_to_read(graph, copied) if any(rewritten) else graph


def _rewrite(graph: fx.Graph, attention: fx.Node) -> bool:
    operands: tuple[Any, ...] = attention.args
    queries, keys, values, scale, *mask = operands
    if not _is_rotated(queries) or len(queries.users) != 1 or mask not in ([], [None]):
        return False
    given = [*queries.args, *([None] * (11 - len(queries.args)))]
    if not _is_whole_cache(keys, given, 7) or not _is_whole_cache(values, given, 8):
        return False
    if _meanwhile(graph, queries, attention, given[7:9]):
        return False
    with graph.inserting_before(attention):
        made = graph.call_function(torch.ops.toprovar.rotated_attention.default, (*given, scale))
    attention.replace_all_uses_with(made)
    for node in dict.fromkeys((attention, keys, values, queries)):
        if not node.users:
            graph.erase_node(node)
    _read_ahead(graph, given[0])
    return True


def _read_ahead(graph: fx.Graph, qkv: Any) -> None:
    """Let an operator of ours compute the linear layer of the queries, keys and values."""
    found = match(Call("view", Hole("layer"), *(Hole(name) for name in "rnshd")), qkv, {})
    layer = None if found is None else found["layer"]
    if not isinstance(layer, fx.Node) or layer.target is not F.linear or layer.kwargs:
        return
    x, weight, *bias = layer.args
    if bias not in ([], [None]) or not isinstance(weight, fx.Node) or weight.op != "placeholder":
        return
    with graph.inserting_before(layer):
        made = graph.call_function(torch.ops.toprovar.linear.default, (x, weight))
    made.meta = dict(layer.meta)
    layer.replace_all_uses_with(made)
    graph.erase_node(layer)


def _meanwhile(graph: fx.Graph, queries: fx.Node, attention: fx.Node, caches: list[Any]) -> bool:
    """Whether anything is written between the two, or looks at the caches, which are written later then."""
    nodes = between(graph, queries, attention)
    others = [node for node in nodes if node not in attention.all_input_nodes]
    looks = any(memory_of(read) in caches for node in others for read in node.all_input_nodes)
    return looks or bool(written(nodes))


def _is_rotated(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target is _ROTATED


def _is_whole_cache(node: Any, given: list[Any], at: int) -> bool:
    """Whether an attention reads a cache up to the slots that were just written."""
    qkv, start = given[0], given[9]
    found = match(Call("getitem", given[at], (_EVERY, _EVERY, slice(None, Hole("end")), _EVERY)), node, {})
    if found is None:
        return False
    end = match(Call("add", Hole("start"), Hole("tokens")), found["end"], {"start": start})
    tokens = length_of(qkv.args[2])
    return end is not None and tokens is not None and length_of(end["tokens"]) == tokens
