"""Tensors of integers 0, d, 2 d, ... by how they are computed, whatever the sizes."""

from __future__ import annotations

import sympy
import torch
from torch import fx

from .operators import argument, operator_name
from .shapes import Size, dtype_of, size_of
from .writes import memory_of, written

# Operators that leave every element where it is, and change its type or place at most.
CASTS = frozenset(
    [
        "to",
        "type",
        "contiguous",
        "clone",
        "half",
        "bfloat16",
        "float",
        "detach",
        "cuda",
        "cpu",
        "int",
        "long",
        "int32",
    ]
)


def progression(node: object) -> tuple[Size, Size] | None:
    """(n, d) where a value is 0, d, 2 d, ... (n - 1) d by how it is computed, or None."""
    if not isinstance(node, fx.Node) or not _holds_integers(node):
        return None
    if memory_of(node) in written(node.graph.nodes):
        return None
    name = operator_name(node)
    if name in CASTS and node.args:
        return progression(node.args[0])
    if name == "arange":
        return _arange(node)
    if name == "mul" and len(node.args) == 2:
        for steps, factor in (node.args, reversed(node.args)):
            found, by = progression(steps), size_of(factor)
            if found is not None and by is not None:
                return found[0], sympy.expand(found[1] * by)
    if name == "pad":
        return _padded_sum(node)
    return None


def _arange(node: fx.Node) -> tuple[Size, Size] | None:
    given = list(node.args)
    start = given[0] if len(given) > 1 else node.kwargs.get("start", 0)
    end = given[1] if len(given) > 1 else given[0] if given else node.kwargs.get("end")
    step = given[2] if len(given) > 2 else node.kwargs.get("step", 1)
    first, last, by = (size_of(entry) for entry in (start, end, step))
    if first is None or last is None or by is None or first != 0:
        return None
    for extra in (0, 1):
        # Up to n d, or one further, as in arange(0, R L + 1, L).
        count, denominator = sympy.fraction(sympy.cancel((last - extra) / by))
        if denominator == 1:
            return sympy.expand(count + extra), by
    return None


def _padded_sum(node: fx.Node) -> tuple[Size, Size] | None:
    """pad(cumsum(full(n, d)), (1, 0)): 0, d, ... n d."""
    fill = argument(node, 3, "value", None)
    if tuple(argument(node, 1, "pad", ())) != (1, 0) or fill not in (None, 0):  # type: ignore[arg-type]
        return None
    summed = _unwritten(node.args[0], "cumsum")
    filled = None if summed is None else _unwritten(summed.args[0], "full")
    if filled is None:
        return None
    shape, value = filled.args[0], size_of(argument(filled, 1, "fill_value"))
    count = size_of(shape[0]) if isinstance(shape, (tuple, list)) and len(shape) == 1 else size_of(shape)
    return None if count is None or value is None else (sympy.expand(count + 1), value)


def _unwritten(node: object, name: str) -> fx.Node | None:
    """The node of this operator behind casts, if nothing writes to its memory."""
    while isinstance(node, fx.Node) and operator_name(node) in CASTS and node.args and _holds_integers(node):
        node = node.args[0]
    if not isinstance(node, fx.Node) or operator_name(node) != name or not _holds_integers(node):
        return None
    return None if memory_of(node) in written(node.graph.nodes) else node


def _holds_integers(node: fx.Node) -> bool:
    """Whether no length is rounded: half precision would, and small integers overflow."""
    return dtype_of(node) in (torch.int32, torch.int64)
