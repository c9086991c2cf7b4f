"""Puts our attention in the place of stock attention where the card has a kernel for it.

It chooses by its sizes, which change from scale to scale, between kernels of ours and of the library.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from .._torch_private import graph_to_read
from ..analysis.attention_forms import FORMS, form_of, named_arguments
from ..analysis.contexts import is_context
from ..analysis.graph_sizes import spec_of
from ..analysis.shapes import as_size, same, value_of
from ..ops import attention  # noqa: F401 - registers the operator called here
from .devices import on_hopper

_SDPA = FORMS["scaled_dot_product_attention"]
_HALF = (torch.bfloat16, torch.float16)


def with_attentions(graph: fx.GraphModule) -> fx.GraphModule:
    """A copy of a graph that calls `toprovar::attention` for every attention that it computes.

    Those without dropout, and with no mask or one that is a number per key.

    Args:
        graph: for one CUDA device; for others than Hopper cards it comes back as it is.

    Returns:
        The copy, or `graph` itself where there is nothing to do. Under autocast that is so: it casts the
        operands of the layers that it knows.
    """
    if torch.is_autocast_enabled("cuda") or any(is_context(node) for node in graph.graph.nodes):
        return graph
    found = {node: call for node in graph.graph.nodes if (call := _plain_call(node)) is not None}
    if not found or not on_hopper(graph.graph):
        return graph
    copied = fx.Graph()
    mapped: dict[fx.Node, fx.Node] = {}
    for node in graph.graph.nodes:
        if node.op == "output":
            copied.output(fx.map_arg(node.args[0], lambda operand: mapped[operand]))
        elif node in found:
            arguments = fx.map_arg(found[node], lambda operand: mapped[operand])
            made = mapped[node] = copied.call_function(torch.ops.toprovar.attention.default, arguments)
            made.meta = dict(node.meta)
        else:
            mapped[node] = copied.node_copy(node, lambda operand: mapped[operand])
    return graph_to_read(graph, copied)


def _plain_call(node: fx.Node) -> tuple[fx.Node | float, ...] | None:
    """Queries, keys, values, scale and any mask of an attention in half precision; None where it is more."""
    if form_of(node) is not _SDPA:
        return None
    given = named_arguments(node, _SDPA)
    operands = [given.pop(name, None) for name in _SDPA.parameters[:3]]
    scale, grouped = given.pop(_SDPA.scale, None), given.pop(_SDPA.grouped, False)
    mask = given.pop(_SDPA.mask, None)
    neutral: dict[str, Any] = {_SDPA.dropout: 0, _SDPA.causal: False}
    if any(name not in neutral or value != neutral[name] for name, value in given.items()):
        return None
    if not all(isinstance(operand, fx.Node) for operand in operands) or not isinstance(grouped, bool):
        return None
    query, key, value = operands
    queries, attended = value_of(query), value_of(node)  # type: ignore[arg-type]
    if not (isinstance(queries, torch.Tensor) and isinstance(attended, torch.Tensor)):
        return None
    if attended.dtype not in _HALF or not queries.dim() == attended.dim() == 4:
        return None
    scale = 1 / math.sqrt(queries.shape[3]) if scale is None and isinstance(queries.shape[3], int) else scale
    # Stock attention broadcasts its operands; the operator does so with keys and values alone.
    sizes = zip(queries.shape[:2], attended.shape[:2], strict=True)
    if not isinstance(scale, (int, float)) or not all(same(as_size(a), as_size(b)) for a, b in sizes):
        return None
    if mask is None:
        return query, key, value, float(scale)  # type: ignore[return-value]
    return (query, key, value, float(scale), mask) if _is_of_keys(mask) else None  # type: ignore[return-value]


def _is_of_keys(mask: object) -> bool:
    """Whether a mask [B or 1, 1, 1, Lk] is added to the logits of all heads and queries alike."""
    if not isinstance(mask, fx.Node):
        return False
    if mask.op == "placeholder":
        # What a pass made an input has a spec alone.
        spec = spec_of(mask)
        shape, dtype = spec.shape, spec.dtype
    else:
        value = value_of(mask)
        if not isinstance(value, torch.Tensor):
            return False
        shape, dtype = tuple(map(as_size, value.shape)), value.dtype
    if shape is None or len(shape) != 4 or dtype is None or not dtype.is_floating_point:
        return False
    return shape[1] == shape[2] == 1
