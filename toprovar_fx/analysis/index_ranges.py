"""Index tensors that are known to be consecutive numbers: `arange`, moved and reshaped.

An index that comes in from outside may hold anything; one that the graph counts itself is a slice in other
words, and only slices are understood as cache writes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import fx

from .operators import argument, dimension, operator_name
from .shapes import dtype_of, same, shape_of, size_of
from .writes import is_written

# An int or an int-valued node.
Term = object

_SAME_VALUES = frozenset({"to", "long", "int", "contiguous", "clone", "detach", "type"})


@dataclass(frozen=True)
class IndexRange:
    """Values `start, start + 1, ...` along one axis, equal along all others.

    Attributes:
        start: ints and int-valued nodes whose sum is the first value.
        axis: the axis along which the values count up; all other axes repeat them.
    """

    start: tuple[Term, ...]
    axis: int


def index_range(value: object) -> IndexRange | None:
    """What an index tensor counts, or None where that is not certain."""
    if not isinstance(value, fx.Node) or value.op not in ("call_function", "call_method"):
        return None
    if dtype_of(value) not in (torch.int32, torch.int64) or is_written(value):
        return None
    name = operator_name(value)
    if name == "arange":
        return _arange(value)
    if name in ("add", "radd"):
        return _shifted(value)
    inner = index_range(value.args[0] if value.args else None)
    if inner is None:
        return None
    if name in _SAME_VALUES:
        return inner
    before, after = shape_of(value.args[0]), shape_of(value)  # type: ignore[arg-type]
    if name == "unsqueeze":
        at = dimension(value, 1, len(after))
        return replace(inner, axis=inner.axis + (at <= inner.axis))
    if name in ("expand", "expand_as"):
        return replace(inner, axis=inner.axis + len(after) - len(before))
    if name in ("view", "reshape"):
        return _viewed(inner, before, after)
    if name == "getitem":
        return _indexed(value, inner, len(before))
    return None


def _arange(node: fx.Node) -> IndexRange | None:
    if set(node.kwargs) - {"device", "dtype", "start", "end"} or len(node.args) > 2:
        return None
    first = node.args[0] if len(node.args) == 2 else node.kwargs.get("start", 0)
    return None if size_of(first) is None else IndexRange((first,), 0)


def _shifted(node: fx.Node) -> IndexRange | None:
    left, right = argument(node, 0, "input"), argument(node, 1, "other")
    if node.kwargs.keys() - {"input", "other"}:
        return None
    if size_of(left) is not None:
        left, right = right, left
    inner = index_range(left)
    if inner is None or size_of(right) is None:
        return None
    return replace(inner, start=(*inner.start, right))


def _viewed(inner: IndexRange, before: tuple[object, ...], after: tuple[object, ...]) -> IndexRange | None:
    """Dimensions of size 1 come and go; anything else is not followed."""
    if any(not same(size, 1) for at, size in enumerate(before) if at != inner.axis):
        return None
    places = [at for at, size in enumerate(after) if not same(size, 1)]
    return replace(inner, axis=places[0]) if len(places) == 1 else None


def _indexed(node: fx.Node, inner: IndexRange, rank: int) -> IndexRange | None:
    """New axes and whole slices, or a slice of a plain list of numbers."""
    index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    if rank == 1 and len(index) == 1 and isinstance(index[0], slice):
        begin, step = index[0].start, index[0].step
        if step is not None or (isinstance(begin, int) and begin < 0):
            return None
        if begin is None:
            return inner
        return replace(inner, start=(*inner.start, begin)) if size_of(begin) is not None else None
    axis = source = 0
    for entry in index:
        if entry is None:
            axis += 1
        elif entry == slice(None):
            if source == inner.axis:
                return replace(inner, axis=axis)
            axis, source = axis + 1, source + 1
        else:
            return None
    return replace(inner, axis=axis + inner.axis - source)
