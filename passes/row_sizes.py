"""Numbers of rows in a graph that is being written: K or L, and the operators that state them as sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx

from ..analysis.operators import dimension, operator_name, states_length
from ..analysis.shapes import Size, same, shape_of, size_of
from ..analysis.transfers import Axes, input_shape
from .block_draft import BlockDraft


class RowSizes:
    """Puts the number of rows that are left where a block states the number of all.

    Args:
        draft: the graph that is being written.
    """

    def __init__(self, draft: BlockDraft) -> None:
        self._draft = draft
        self._counts: dict[bool, fx.Node] = {}

    def count(self, kept: bool) -> fx.Node:
        """Number of rows written or computed: K or L."""
        draft = self._draft
        if kept not in self._counts:
            tensor = draft.gather.keep if kept else draft.mapped[draft.facts.hidden]
            self._counts[kept] = draft.graph.call_method("size", (tensor, 1))
        return self._counts[kept]

    def resize(self, node: fx.Node, copied: fx.Node) -> None:
        """Put the tokens and keys that are left in place of the traced ones among a node's size arguments."""
        facts = self._draft.facts
        if node in facts.keyed:
            self._resize_by_axis(node, copied)
        elif node in self._draft.kept and states_length(node, facts.length):
            copied.args = self._kept_sizes(node, copied.args)

    def _resize_by_axis(self, node: fx.Node, copied: fx.Node) -> None:
        """As `resize`, where tokens and keys may be equally many: the sizes' places tell which is which."""
        if operator_name(node) not in ("view", "reshape", "expand"):
            return
        listed = isinstance(node.args[1], (tuple, list))
        sizes = list(copied.args[1] if listed else copied.args[1:])  # type: ignore[arg-type]
        if len(sizes) != len(shape_of(node)):
            return
        facts = self._draft.facts
        with self._draft.graph.inserting_before(copied):
            if node in facts.axes and node in self._draft.kept:
                sizes[facts.axes[node].token] = self._size(node, facts.axes)
            sizes[facts.keyed[node].token] = self._size(node, facts.keyed)
        copied.args = (copied.args[0], tuple(sizes)) if listed else (copied.args[0], *sizes)

    def _size(self, node: fx.Node, axes: Mapping[fx.Node, Axes]) -> fx.Node:
        """Rows that the operand of a view has in the graph that is being written."""
        operand = next(operand for operand in node.all_input_nodes if operand in axes)
        return self._draft.graph.call_method("size", (self._draft.mapped[operand], axes[operand].token))

    def _kept_sizes(self, node: fx.Node, after: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments `after` of a copied node, with K where the size of the token axis is stated.

        The place tells, not the number: other sizes may be equal to a token count that is a constant.
        """
        facts, first = self._draft.facts, 1
        axis = facts.axes[node].token
        if operator_name(node) == "unflatten":
            axis, first = axis - dimension(node, 1, len(input_shape(node))), 2
        listed = isinstance(after[first], (tuple, list))
        sizes = list(after[first] if listed else after[first:])
        given = node.args[first] if listed else node.args[first:]
        if 0 <= axis < len(sizes) and _states(given[axis], facts.length):  # type: ignore[index]
            sizes[axis] = self.count(kept=True)
        return (*after[:first], type(after[first])(sizes)) if listed else (*after[:first], *sizes)


def _states(entry: object, length: Size) -> bool:
    size = size_of(entry)
    return size is not None and same(size, length)
