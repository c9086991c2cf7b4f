"""What happens to cached keys and values between the cache and attention.

A cache holds the rows of all scales, and after pruning fewer than were traced. So whatever lies between the
read and attention must treat each row alone, as for tokens (`rules.py`), and may pair no row with a position:
which token a cached row belongs to is not known in the graph.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from .operators import flat_arguments, states_length, writes_in_place
from .reasons import Reason, Unsupported
from .rules import transfer
from .shapes import Size, shape_of, size_of
from .transfers import Axes


def follow(node: fx.Node, cached: Mapping[fx.Node, Axes], tokens: Mapping[fx.Node, Axes]) -> Axes:
    """Where the result of an operator on cached rows has its batch rows and its cached rows.

    Args:
        node: an operator other than attention, with an operand in `cached`.
        cached: axes of values with one row per cached token.
        tokens: axes of values with one row per token of the scale.

    Raises:
        Unsupported: the rows are mixed, paired with something by position, or changed in the cache itself.
    """
    operands = [operand for operand in node.all_input_nodes if operand in cached]
    if any(operand in tokens for operand in node.all_input_nodes):
        raise Unsupported(Reason.TOKEN_MIXING, node, "a cached value is used outside attention")
    if writes_in_place(node):
        raise Unsupported(Reason.CACHE_LAYOUT, node, "cached rows are overwritten")
    length = rows_of(operands[0], cached)
    try:
        result = transfer(node, cached, length)
    except Unsupported as verdict:
        detail = f"on cached rows: {verdict.fallback.detail}"
        raise Unsupported(verdict.fallback.reason, node, detail) from None
    if result.tables:
        raise Unsupported(Reason.CACHE_LAYOUT, node, "cached rows meet a table of positions")
    if not states_length(node, length):
        sizes = [size_of(entry) for entry in flat_arguments(node) if not isinstance(entry, int)]
        if any(size is not None and size.free_symbols & length.free_symbols for size in sizes):
            raise Unsupported(Reason.LENGTH_IN_ARITHMETIC, node, "the number of cached rows")
    return result.axes


def rows_of(node: fx.Node, cached: Mapping[fx.Node, Axes]) -> Size:
    """The traced number of cached rows of a value (of each part of a bundle's source)."""
    return shape_of(node)[cached[node].token]
