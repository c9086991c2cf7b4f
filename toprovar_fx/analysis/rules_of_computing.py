"""Rules of operators that compute: pointwise ones, contractions, normalisations and reductions."""

from __future__ import annotations

from torch import fx

from .operators import argument, value_operands
from .reasons import Reason, Unsupported
from .shapes import Size, is_tensor, same, shape_of
from .transfers import Axes, Rule, Tagged, Transfer, input_shape, main_axes


def pointwise(node: fx.Node, tagged: Tagged, length: Size) -> Transfer:
    """Broadcasting: axes count from the right; an untagged operand with L rows there is a position table."""
    rank = len(shape_of(node))
    found: Axes | None = None
    operands = [operand for operand in value_operands(node) if is_tensor(operand)]
    for operand in operands:
        if operand in tagged:
            axes = tagged[operand].shifted(rank - len(shape_of(operand)))
            if found not in (None, axes):
                raise Unsupported(Reason.TOKEN_MIXING, node, "operands have their tokens on different axes")
            found = axes
    if found is None:
        raise Unsupported(Reason.UNKNOWN_OPERATOR, node, "no token-tagged tensor operand")
    tables = []
    for operand in operands:
        if operand in tagged:
            continue
        shape = shape_of(operand)
        dimension = found.token - (rank - len(shape))
        if dimension >= 0 and shape[dimension] != 1:
            if not same(shape[dimension], length):
                raise Unsupported(
                    Reason.RESHAPED_TOKENS, node, f"operand {operand.name} of shape {list(shape)}"
                )
            tables.append((operand, dimension))
    return Transfer(found, tuple(tables))


def linear(node: fx.Node, tagged: Tagged, length: Size) -> Transfer:
    """A contraction of the last dimension."""
    axes = main_axes(node, tagged)
    if axes.token == len(input_shape(node)) - 1:
        raise Unsupported(Reason.TOKEN_MIXING, node, "the contraction runs over the tokens")
    return Transfer(axes)


def rows_of_first(node: fx.Node, tagged: Tagged, length: Size) -> Transfer:
    """An operator of [rows, tokens, width] that treats each token of its first operand alone."""
    axes = main_axes(node, tagged)
    if axes != Axes(0, 1):
        raise Unsupported(Reason.RESHAPED_TOKENS, node, "its first operand is not [rows, tokens, width]")
    return Transfer(axes)


def dropout(node: fx.Node, tagged: Tagged, length: Size) -> Transfer:
    """Pointwise, as long as it drops nothing."""
    training = node.kwargs.get("train", argument(node, 2, "training", True))
    if training is not False and argument(node, 1, "p", 0.5) != 0:
        raise Unsupported(Reason.RANDOM, node, "dropout in training mode")
    return pointwise(node, tagged, length)


def layer_norm(node: fx.Node, tagged: Tagged, length: Size) -> Transfer:
    """Statistics over the last dimensions, as many as `normalized_shape` names."""
    axes = main_axes(node, tagged)
    normalised = argument(node, 1, "normalized_shape")
    count = len(normalised) if isinstance(normalised, (tuple, list)) else 1
    if axes.token >= len(input_shape(node)) - count:
        raise Unsupported(Reason.TOKEN_MIXING, node, "the statistics run over the tokens")
    return Transfer(axes)


def along(position: int, default: object, drops: bool) -> Rule:
    """A reduction or normalisation along given dimensions, which must not hold tokens or batch rows."""

    def rule(node: fx.Node, tagged: Tagged, length: Size) -> Transfer:
        axes, rank = main_axes(node, tagged), len(input_shape(node))
        wanted = argument(node, position, "dim", default)
        dims = wanted if isinstance(wanted, (tuple, list)) else (wanted,)
        if not all(isinstance(dim, int) for dim in dims):
            raise Unsupported(Reason.TOKEN_MIXING, node, "it reduces over all dimensions")
        places = {dim % rank for dim in dims}
        if axes.token in places:
            raise Unsupported(Reason.TOKEN_MIXING, node, "it reduces over the tokens")
        if axes.batch in places:
            raise Unsupported(Reason.BATCH_ROWS, node, "it reduces over the batch rows")
        if not drops or len(shape_of(node)) == rank:
            return Transfer(axes)
        return Transfer(axes.moved(lambda axis: axis - sum(place < axis for place in places)))

    return rule
