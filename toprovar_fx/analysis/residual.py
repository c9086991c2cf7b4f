"""Sums of the residual stream: which values are the stream plus updates."""

from __future__ import annotations

from torch import fx

from .operators import operator_name
from .shapes import dtype_of

SUMS = frozenset({"add", "iadd", "add_"})
_CASTS = frozenset({"to", "type", "type_as", "float", "double", "half", "bfloat16"})
_NORMS = frozenset({"layer_norm", "rms_norm"})


def ends_with_sum(node: fx.Node, entry: fx.Node) -> bool:
    """Whether a value is a sum in the type of `entry`, or a sum in another type cast back to it."""
    if dtype_of(node) != dtype_of(entry):
        return False
    if operator_name(node) in _CASTS:
        return dtype_of(node.all_input_nodes[0]) != dtype_of(entry)
    return operator_name(node) in SUMS


def carries(node: fx.Node, entry: fx.Node) -> bool:
    """Whether a value is `entry` plus updates.

    A chain of sums leads back to it, in whatever precision and, in post-norm blocks, through norms.
    """
    if node is entry:
        return True
    name = operator_name(node)
    if name in _CASTS | _NORMS and isinstance(node.args[0], fx.Node):
        return carries(node.args[0], entry)
    return name in SUMS and any(carries(operand, entry) for operand in node.all_input_nodes)
