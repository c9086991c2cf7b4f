"""The structure of a run of nodes, names aside: where it is equal, one compiled graph serves both."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import fx

from .shapes import value_of


def external_inputs(entry: fx.Node, nodes: Sequence[fx.Node]) -> list[fx.Node]:
    """Values that `nodes` use but do not compute, `entry` first, then in order of first use."""
    members = set(nodes)
    found = [entry]
    for node in nodes:
        for operand in node.all_input_nodes:
            if operand not in members and operand not in found:
                found.append(operand)
    return found


def signature(entry: fx.Node, nodes: Sequence[fx.Node]) -> Hashable:
    """Operators, constants, wiring and input kinds of a run of nodes."""
    inputs = external_inputs(entry, nodes)
    number = {node: at for at, node in enumerate([*inputs, *nodes])}

    def key(value: object) -> Hashable:
        if isinstance(value, fx.Node):
            return ("node", number[value])
        if isinstance(value, (tuple, list)):
            return (type(value).__name__, tuple(key(entry) for entry in value))
        if isinstance(value, slice):
            return ("slice", key(value.start), key(value.stop), key(value.step))
        if isinstance(value, dict):
            return ("dict", tuple((name, key(entry)) for name, entry in sorted(value.items())))
        return (type(value).__name__, value if isinstance(value, Hashable) else repr(value))

    body = tuple((node.op, node.target, key(node.args), key(node.kwargs)) for node in nodes)
    return tuple(_kind(node) for node in inputs), body


def _kind(node: fx.Node) -> Hashable:
    value = value_of(node)
    if isinstance(value, torch.Tensor):
        return "tensor", str(value.dtype), str(value.device), tuple(str(size) for size in value.shape)
    return type(value).__name__, str(value)
