"""Where batch rows meet: each may keep other tokens, so no pruned block may lie around such a place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from .shapes import Size, as_size, is_tensor, same, shape_of, value_of


def before_mixed_rows(
    graph: fx.Graph, attention: fx.Node, cuts: Sequence[fx.Node], leave: fx.Node, order: dict[fx.Node, int]
) -> fx.Node:
    """The last cut of a block before batch rows are mixed, as guidance between two layers does.

    What comes behind it runs on all tokens, whatever each row kept; `leave` where no rows are mixed or no cut
    lies before that.
    """
    rows = shape_of(leave)
    for node in graph.nodes:
        if order[attention] < order[node] <= order[leave] and _takes_rows(node, rows):
            before = [cut for cut in cuts if cut.op != "placeholder" and order[cut] < order[node]]
            if before and order[before[-1]] > order[attention]:
                return before[-1]
            return leave
    return leave


def _takes_rows(node: fx.Node, whole: tuple[Size, ...]) -> bool:
    """Whether a node cuts hidden states of this shape along the batch."""
    source = node.args[0] if node.args else None
    if not is_tensor(source) or not _equal(shape_of(source), whole):  # type: ignore[arg-type]
        return False
    value = value_of(node)
    part = value[0] if isinstance(value, (tuple, list)) and value else value
    if not isinstance(part, torch.Tensor):
        return False
    sizes = tuple(map(as_size, part.shape))
    return len(sizes) == len(whole) and not same(sizes[0], whole[0]) and _equal(sizes[1:], whole[1:])


def _equal(left: tuple[Size, ...], right: tuple[Size, ...]) -> bool:
    return len(left) == len(right) and all(map(same, left, right))
