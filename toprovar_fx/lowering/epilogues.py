"""Moves activations into the matrix products before them, where the device's library has such products.

Inductor fuses what follows a product only into products that it writes itself; those of the vendor's library
are faster on Hopper, and compute a bias and a tanh-approximated GELU as they store.
"""

from __future__ import annotations

import torch
from torch import fx
from torch.nn import functional as F

from .._torch_private import graph_to_read
from ..analysis.contexts import is_context
from ..analysis.graph_sizes import spec_of
from ..ops import linear_gelu  # noqa: F401 - registers the operator called here

_HALF = (torch.bfloat16, torch.float16)


def with_epilogues(graph: fx.GraphModule) -> fx.GraphModule:
    """A copy of a graph in which linear layers compute the GELU that is their only reader.

    Args:
        graph: for one CUDA device, weights among its inputs; others come back as they are.

    Returns:
        The copy, or `graph` itself where there is nothing to do. Under autocast that is so: it casts the
        operands of the layers that it knows.
    """
    if torch.is_autocast_enabled("cuda") or any(is_context(node) for node in graph.graph.nodes):
        return graph
    found = [node for node in graph.graph.nodes if _linear_of(node) is not None]
    if not found:
        return graph
    copied = fx.Graph()
    mapped: dict[fx.Node, fx.Node] = {}
    skipped = {_linear_of(node) for node in found}
    for node in graph.graph.nodes:
        if node.op == "output":
            copied.output(fx.map_arg(node.args[0], lambda operand: mapped[operand]))
        elif node in found:
            linear = _linear_of(node)
            assert linear is not None
            arguments = fx.map_arg(tuple(linear.args), lambda operand: mapped[operand])
            mapped[node] = copied.call_function(torch.ops.toprovar.linear_gelu.default, arguments)
        elif node not in skipped:
            mapped[node] = copied.node_copy(node, lambda operand: mapped[operand])
    return graph_to_read(graph, copied)


def _linear_of(node: fx.Node) -> fx.Node | None:
    """The linear layer that a GELU node activates, if the two can be one."""
    if node.op != "call_function" or node.target is not F.gelu or len(node.args) != 1:
        return None
    if dict(node.kwargs) != {"approximate": "tanh"} or not isinstance(node.args[0], fx.Node):
        return None
    linear = node.args[0]
    if linear.target is not F.linear or linear.kwargs or len(linear.args) != 3 or len(linear.users) != 1:
        return None
    weight, bias = linear.args[1:]
    if not all(isinstance(operand, fx.Node) and operand.op == "placeholder" for operand in (weight, bias)):
        return None
    specs = [spec_of(operand) for operand in (weight, bias)]  # type: ignore[arg-type]
    devices = {None if spec.device is None else spec.device.type for spec in specs}
    return linear if devices == {"cuda"} and {spec.dtype for spec in specs} <= set(_HALF) else None
