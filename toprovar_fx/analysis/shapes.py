"""Shapes of traced values as sympy expressions, so that static and symbolic traces compare alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import sympy
import torch
from torch import fx

from .reasons import Reason, Unsupported

# sympy ships no types: the alias documents, `Any` checks nothing.
Size: TypeAlias = Any


def as_size(value: object) -> Size:
    """An int or SymInt as a sympy expression."""
    if isinstance(value, torch.SymInt):
        return value.node.expr
    if isinstance(value, int):
        return sympy.Integer(value)
    raise TypeError(f"{value!r} is not a size")


def as_traced(size: torch.SymInt) -> int:
    """The value that a SymInt had when it was traced."""
    return int(size.node.hint)


def value_of(node: fx.Node) -> object:
    """The fake value that Dynamo recorded for `node`, or None."""
    return node.meta.get("example_value", node.meta.get("val"))


def is_tensor(argument: object) -> bool:
    """Whether `argument` is a node that holds one tensor."""
    return isinstance(argument, fx.Node) and isinstance(value_of(argument), torch.Tensor)


def shape_of(node: fx.Node) -> tuple[Size, ...]:
    """The shape of a tensor-valued node."""
    value = value_of(node)
    if not isinstance(value, torch.Tensor):
        raise Unsupported(Reason.UNKNOWN_OPERATOR, node, "the trace recorded no shape")
    return tuple(as_size(size) for size in value.shape)


def dtype_of(node: fx.Node) -> torch.dtype | None:
    """The element type of a tensor-valued node, or None for anything else."""
    value = value_of(node)
    return value.dtype if isinstance(value, torch.Tensor) else None


def size_of(argument: object) -> Size | None:
    """The integer that an argument stands for (an int or a SymInt-valued node), or None."""
    if isinstance(argument, bool):
        return None
    if isinstance(argument, int):
        return sympy.Integer(argument)
    if isinstance(argument, fx.Node):
        value = value_of(argument)
        if isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool):
            return as_size(value)
    return None


def product(sizes: Sequence[Size]) -> Size:
    """The product of sizes, expanded so that equal products compare equal."""
    return sympy.expand(math.prod(sizes, start=sympy.Integer(1)))


def same(left: Size, right: Size) -> bool:
    """Whether two sizes are equal for every value of their symbols."""
    return sympy.expand(left - right) == 0
