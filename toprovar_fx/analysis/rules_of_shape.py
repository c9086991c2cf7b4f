"""Rules of operators that rearrange: views, permutations, indexing, cutting and joining."""

from __future__ import annotations

from collections.abc import Sequence

import sympy
from torch import fx

from .operators import argument, dimension, operator_name
from .reasons import Reason, Unsupported
from .shapes import Size, product, same, shape_of, value_of
from .transfers import Axes, Rule, Tagged, Transfer, input_shape, main_axes


def view(node: fx.Node, tagged: Tagged, length: Size) -> Transfer:
    """An axis keeps its meaning where its size and the product of the sizes before it are unchanged.

    Batch rows may be merged with the heads that follow them, as for `bmm`, and parted from them again.
    """
    axes, before, after = main_axes(node, tagged), input_shape(node), shape_of(node)

    def place(axis: int, sizes: Sequence[Size]) -> int | None:
        left = product(before[:axis])
        for candidate, size in enumerate(after):
            if same(product(after[:candidate]), left) and any(same(size, wanted) for wanted in sizes):
                return candidate
        return None

    rows, token = before[axes.batch], place(axes.token, [length])
    # Parted first: with one batch row, the heads that it is parted from are as many as rows and heads were.
    batch, spread = place(axes.batch, [rows / axes.spread]), 1
    if batch is None and axes.spread > 1:
        batch, spread = place(axes.batch, [rows]), axes.spread
    elif batch is None:
        for stop in range(axes.batch + 2, axes.token + 1):
            heads = product(before[axes.batch + 1 : stop])
            if batch is None and heads.is_Integer:
                batch, spread = place(axes.batch, [heads * rows]), int(heads)
    if batch is None or token is None:
        raise Unsupported(Reason.RESHAPED_TOKENS, node, f"{list(before)} becomes {list(after)}")
    return Transfer(Axes(batch, token, spread))


def permute(node: fx.Node, tagged: Tagged, length: Size) -> Transfer:
    """Dimensions in another order, given as a list or one by one."""
    axes, rank = main_axes(node, tagged), len(input_shape(node))
    listed = argument(node, 1, "dims")
    order = listed if isinstance(listed, (tuple, list)) else node.args[1:]
    places = [dim % rank for dim in order if isinstance(dim, int)]
    return Transfer(axes.moved(places.index))


def transpose(node: fx.Node, tagged: Tagged, length: Size) -> Transfer:
    """Two dimensions change places."""
    axes, rank = main_axes(node, tagged), len(input_shape(node))
    first, second = (dimension(node, at, rank, f"dim{at - 1}") for at in (1, 2))
    swap = {first: second, second: first}
    return Transfer(axes.moved(lambda axis: swap.get(axis, axis)))


def unsqueeze(node: fx.Node, tagged: Tagged, length: Size) -> Transfer:
    """A new dimension of size 1."""
    axes, at = main_axes(node, tagged), dimension(node, 1, len(shape_of(node)))
    return Transfer(axes.moved(lambda axis: axis + (axis >= at)))


def squeeze(node: fx.Node, tagged: Tagged, length: Size) -> Transfer:
    """One dimension less, if its size is 1."""
    axes, rank = main_axes(node, tagged), len(input_shape(node))
    if not isinstance(argument(node, 1, "dim"), int):
        raise Unsupported(Reason.RESHAPED_TOKENS, node, "squeeze without a dimension")
    at = dimension(node, 1, rank)
    gone = int(len(shape_of(node)) < rank)
    return Transfer(axes.moved(lambda axis: axis - (gone if axis > at else 0)))


def bundle(position: int, drops: bool, default: int) -> Rule:
    """`chunk`, `split`, `unbind`: a tuple of slices along a dimension without tokens."""

    def rule(node: fx.Node, tagged: Tagged, length: Size) -> Transfer:
        axes, rank = main_axes(node, tagged), len(input_shape(node))
        at = dimension(node, position, rank, default=default)
        if at == axes.batch:
            raise Unsupported(Reason.BATCH_ROWS, node, "it cuts the batch axis")
        if at == axes.token:
            raise Unsupported(Reason.TOKEN_MIXING, node, "it cuts the token axis")
        if not drops:
            return Transfer(axes)
        return Transfer(axes.moved(lambda axis: axis - (at < axis)))

    return rule


def getitem(node: fx.Node, tagged: Tagged, length: Size) -> Transfer:
    """Indexing that leaves the token and the batch axis whole; an element of a bundle keeps its axes."""
    axes = main_axes(node, tagged)
    source = node.args[0]
    assert isinstance(source, fx.Node)
    if isinstance(value_of(source), (tuple, list)):
        return Transfer(axes)
    index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    rank = len(shape_of(source))
    if Ellipsis in index:
        at = index.index(Ellipsis)
        taken = sum(entry is not None and entry is not Ellipsis for entry in index)
        index = index[:at] + (slice(None),) * (rank - taken) + index[at + 1 :]
    moved: dict[int, int] = {}
    source_axis = result = 0
    for entry in index:
        if entry is None:
            result += 1
        elif isinstance(entry, slice):
            if source_axis == axes.batch and entry != slice(None):
                raise Unsupported(Reason.BATCH_ROWS, node, "it slices the batch axis")
            if source_axis == axes.token and entry != slice(None):
                raise Unsupported(Reason.TOKEN_MIXING, node, "it slices the token axis")
            moved[source_axis] = result
            source_axis, result = source_axis + 1, result + 1
        elif isinstance(entry, int):
            if source_axis == axes.batch:
                raise Unsupported(Reason.BATCH_ROWS, node, "it picks one batch row")
            if source_axis == axes.token:
                raise Unsupported(Reason.TOKEN_MIXING, node, "it picks one token")
            source_axis += 1
        else:
            raise Unsupported(Reason.UNKNOWN_OPERATOR, node, "indexing by a tensor")
    for rest in range(source_axis, rank):
        moved[rest] = result + rest - source_axis
    return Transfer(axes.moved(moved.__getitem__))


def join(stacked: bool) -> Rule:
    """`cat` and `stack` along a dimension without tokens."""

    def rule(node: fx.Node, tagged: Tagged, length: Size) -> Transfer:
        parts = argument(node, 0, "tensors")
        assert isinstance(parts, (tuple, list))
        found = {tagged[part] for part in parts if part in tagged}
        if len(found) != 1 or any(part not in tagged for part in parts):
            raise Unsupported(Reason.TOKEN_MIXING, node, "it joins token rows with something else")
        axes, rank = found.pop(), len(shape_of(node))
        at = dimension(node, 1, rank, default=0)
        if stacked:
            return Transfer(axes.moved(lambda axis: axis + (axis >= at)))
        if at == axes.batch:
            raise Unsupported(Reason.BATCH_ROWS, node, "it joins along the batch axis")
        if at == axes.token:
            raise Unsupported(Reason.TOKEN_MIXING, node, "it joins along the token axis")
        return Transfer(axes)

    return rule


def repeat(node: fx.Node, tagged: Tagged, length: Size) -> Transfer:
    """`repeat` along dimensions without tokens and batch rows, as for key heads that query heads share."""
    axes, before, after = main_axes(node, tagged), input_shape(node), shape_of(node)
    axes = axes.shifted(len(after) - len(before))
    return _unrepeated(node, axes, (sympy.Integer(1),) * (len(after) - len(before)) + before)


def repeat_interleave(node: fx.Node, tagged: Tagged, length: Size) -> Transfer:
    """`repeat_interleave` by a number, along a dimension without tokens and batch rows."""
    axes, before = main_axes(node, tagged), input_shape(node)
    if not isinstance(argument(node, 1, "repeats"), int) or argument(node, 2, "dim") is None:
        raise Unsupported(Reason.TOKEN_MIXING, node, "repeats that are not a number along a dimension")
    return _unrepeated(node, axes, before)


def _unrepeated(node: fx.Node, axes: Axes, before: Sequence[Size]) -> Transfer:
    after = shape_of(node)
    if not all(same(before[axis], after[axis]) for axis in (axes.batch, axes.token)):
        raise Unsupported(Reason.TOKEN_MIXING, node, "it repeats tokens or batch rows")
    return Transfer(axes)


def expand(node: fx.Node, tagged: Tagged, length: Size) -> Transfer:
    """Broadcasting to more dimensions in front."""
    axes = main_axes(node, tagged)
    return Transfer(axes.shifted(len(shape_of(node)) - len(input_shape(node))))


def as_pairs(node: fx.Node, tagged: Tagged, length: Size) -> Transfer:
    """`view_as_complex` and `view_as_real`: the last dimension, of two numbers each, goes or comes."""
    axes, rank = main_axes(node, tagged), len(input_shape(node))
    if operator_name(node) == "view_as_complex" and rank - 1 in (axes.token, axes.batch):
        raise Unsupported(Reason.RESHAPED_TOKENS, node, "the tokens are pairs of numbers")
    return Transfer(axes)
