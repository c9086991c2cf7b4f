"""Choosing rows in a graph that is being written: every value that meets the kept tokens, by one index."""

from __future__ import annotations

import operator

import sympy
import torch
from torch import fx

from ..analysis.shapes import shape_of
from ..analysis.transfers import Axes


class RowGather:
    """Gathers rows of values by the keep set; a value is gathered once for all that meet it.

    Args:
        graph: the graph that is being written.

    Attributes:
        keep: the keep set [R, K], to be set before anything is gathered.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.keep: fx.Node | None = None
        self._graph = graph
        self._gathered: dict[tuple[fx.Node, int, int], fx.Node] = {}
        self._spread: dict[int, fx.Node] = {}

    def table(self, operand: fx.Node, value: fx.Node, axes: Axes, rank: int) -> fx.Node:
        """As `rows`, for a value that may have fewer dimensions than `rank`: they are added in front."""
        missing = rank - len(shape_of(operand))
        if missing:
            value = self._graph.call_function(operator.getitem, (value, (None,) * missing))
        return self.rows(operand, value, axes, rank)

    def rows(self, operand: fx.Node, value: fx.Node, axes: Axes, rank: int, again: bool = False) -> fx.Node:
        """Rows `keep` of a value; one without batch rows gets one copy per row of `keep`.

        Args:
            operand: the node of the block.
            value: what holds it in the new graph, with `rank` dimensions.
            axes: where its batch rows are, and the rows to choose.
            rank: number of dimensions.
            again: `value` is the result of another gather of `operand`, along another dimension.
        """
        key = (operand, rank, axes.token)
        if key not in self._gathered:
            own = shape_of(operand)
            shape = (sympy.Integer(1),) * (rank - len(own)) + own
            index = self.index(axes)
            if shape[axes.batch] == 1 and not again:
                rows = self._graph.call_method("size", (index, 0))
                sizes = tuple(rows if at == axes.batch else -1 for at in range(rank))
                value = self._graph.call_method("expand", (value, *sizes))
            chosen = (axes.batch, axes.token)
            places = tuple(slice(None) if at in chosen else None for at in range(rank))
            wanted = self._graph.call_function(operator.getitem, (index, places))
            spread: list[int | fx.Node] = []
            for at in range(rank):
                if at in chosen:
                    spread.append(-1)
                elif shape[at].is_Integer and not again:
                    spread.append(int(shape[at]))
                else:
                    spread.append(self._graph.call_method("size", (value, at)))
            wanted = self._graph.call_method("expand", (wanted, *spread))
            self._gathered[key] = self._graph.call_function(torch.gather, (value, axes.token, wanted))
        return self._gathered[key]

    def index(self, axes: Axes) -> fx.Node:
        """The keep set with a row per entry of the batch dimension."""
        assert self.keep is not None
        if axes.spread == 1:
            return self.keep
        if axes.spread not in self._spread:
            repeated = self._graph.call_method("repeat_interleave", (self.keep, axes.spread, 0))
            self._spread[axes.spread] = repeated
        return self._spread[axes.spread]
