"""Rewrites a block graph so that it computes chosen token rows only; every block-level pass is a use of this.

The rewriter copies the graph node by node and keeps, for every value, whether its token axis still holds all
L rows or only the K kept ones. Where a kept value meets a full one (the residual stream, a position table),
the full one is gathered with the same index, so that row i of one always meets row i of the other.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import fx

from ..analysis.block_facts import BlockFacts
from ..analysis.caches import CacheRead, CacheWrite
from ..analysis.contractions import read_contraction
from ..analysis.operators import one_slice, states_length
from ..analysis.shapes import shape_of, value_of
from ..analysis.transfers import Axes
from .block_draft import BlockDraft
from .row_plan import BlockArm, GatherAt, RowPlan
from .row_sizes import RowSizes
from .score_mods import keep_positions
from .step import BlockGraph
from .taps import attend_and_measure, measure_logits, measure_operands, measure_scores


def rewrite_rows(block: BlockGraph, plan: RowPlan) -> BlockArm:
    """Apply `plan` to a block that the analysis understood."""
    assert block.facts is not None
    return Rewriter(block.graph.graph, block.facts, plan).run()


class Rewriter(BlockDraft):
    """Copies a block graph under a plan; the caches are written in place."""

    def __init__(self, source: fx.Graph, facts: BlockFacts, plan: RowPlan) -> None:
        super().__init__(source, facts, plan)
        self.sizes = RowSizes(self)
        self.writes = {write.node: write for write in facts.writes}
        self.reads = {read.node: read for read in facts.reads}
        self.ends: dict[bool, fx.Node] = {}

    def run(self) -> BlockArm:
        """The rewritten block."""
        self._begin()
        for node in self.source.nodes:
            if node.op not in ("placeholder", "output"):
                self._copy(node)
        return self._finish()

    def _copy(self, node: fx.Node) -> None:
        if node in self.writes:
            self._copy_write(self.writes[node])
        elif node in self.reads:
            self._copy_read(self.reads[node])
        elif node in self.facts.axes:
            self._copy_row_node(node)
        else:
            self.mapped[node] = self.graph.node_copy(node, self._map)
            if node in self.facts.keyed:
                self.sizes.resize(node, self.mapped[node])

    def _map(self, operand: fx.Node) -> fx.Node:
        return self.mapped[operand]

    def _copy_row_node(self, node: fx.Node) -> None:
        facts, call = self.facts, self.facts.attention
        # Keys and values pair with no row by position: kept or full, they stay as they are.
        paired = facts.operands.get(node, tuple(node.all_input_nodes))
        operands = [operand for operand in paired if operand in facts.axes]
        replaced: dict[fx.Node, fx.Node] = {}
        if call is not None and node is call.entry and self._gathers(GatherAt.QUERY, call.query):
            replaced[call.query] = self._gather(call.query, facts.axes[call.query])
        elif self._gathers(GatherAt.BLOCK_INPUT, *operands):
            replaced[self.facts.hidden] = self._gather(self.facts.hidden, self.facts.axes[self.facts.hidden])
        if any(operand in self.kept for operand in operands) or replaced:
            self.kept.add(node)
            for operand in operands:
                if operand not in self.kept and operand not in replaced:
                    replaced[operand] = self._gather(operand, self.facts.axes[operand])
            for operand, _ in facts.transfers[node].tables:
                replaced[operand] = self._gather_table(operand, *self._frame(node))
        if call is not None and call.key in self.kept:
            self._gather_columns(node, replaced)

        def value_of_operand(operand: fx.Node) -> fx.Node:
            return replaced.get(operand, self.mapped[operand])

        if node in facts.unread:
            self._replace_unread(node, replaced, value_of_operand)
        # What a number of rows is read from comes before the node that states it.
        if node in self.kept and states_length(node, facts.length):
            self._count(kept=True)
        copied = self.graph.node_copy(node, value_of_operand)
        self.sizes.resize(node, copied)
        if node in facts.score_mods:
            keep_positions(self, node, copied)
        self.mapped[node] = copied
        self._attend(node, value_of_operand)
        if call is not None and node is call.node and self.plan.gather_at is GatherAt.ATTENTION_OUTPUT:
            self.mapped[node] = self._gather(node, facts.axes[node])
            self.kept.add(node)

    def _frame(self, node: fx.Node) -> tuple[Axes, int]:
        """Axes that a node's tables are aligned with, and the rank that these count in."""
        rank = len(shape_of(node)) if isinstance(value_of(node), torch.Tensor) else 0
        return self.facts.transfers[node].frame or (self.facts.axes[node], rank)

    def _gather_columns(self, node: fx.Node, replaced: dict[fx.Node, fx.Node]) -> None:
        """Choose the columns of what pairs with the keys, where these are the kept tokens of the scale."""
        for operand, dimension in self.facts.key_tables.get(node, ()):
            rows, rank = self._frame(node)
            columns = replace(rows, token=dimension + rank - len(shape_of(operand)))
            if operand in replaced:
                replaced[operand] = self.gather.rows(operand, replaced[operand], columns, rank, again=True)
            else:
                replaced[operand] = self._gather_table(operand, columns, rank)

    def _replace_unread(
        self, node: fx.Node, replaced: dict[fx.Node, fx.Node], value_of_operand: Callable[[fx.Node], fx.Node]
    ) -> None:
        """A summand of the product's new shape, where its values do not count (`baddbmm` with beta=0)."""
        product = read_contraction(node)
        assert product is not None and product.summand is not None
        left, right = (value_of_operand(operand) for operand in product.operands)
        sizes = [(left, 0), (left, 1), (right, 2)]
        shape = tuple(self.graph.call_method("size", (operand, at)) for operand, at in sizes)
        replaced[product.summand] = self.graph.call_method("new_empty", (left, shape))

    def _gathers(self, where: GatherAt, *operands: fx.Node) -> bool:
        if self.plan.gather_at is not where:
            return False
        return where is GatherAt.QUERY or self.facts.hidden in operands

    def _count(self, kept: bool) -> fx.Node:
        return self.sizes.count(kept)

    def _gather(self, operand: fx.Node, axes: Axes) -> fx.Node:
        return self.gather.rows(operand, self.mapped[operand], axes, len(shape_of(operand)))

    def _gather_table(self, operand: fx.Node, axes: Axes, rank: int) -> fx.Node:
        return self.gather.table(operand, self.mapped[operand], axes, rank)

    def _end(self, kept: bool) -> fx.Node:
        if kept not in self.ends:
            self.ends[kept] = self.graph.call_function(operator.add, (self.offset, self._count(kept)))
        return self.ends[kept]

    def _copy_write(self, write: CacheWrite) -> None:
        rows_kept = write.rows in self.kept
        index = one_slice(len(shape_of(write.cache)), write.axis, slice(self.offset, self._end(rows_kept)))
        args = (self.mapped[write.cache], index, self.mapped[write.rows])
        self.mapped[write.node] = self.graph.call_function(operator.setitem, args)
        self._written_kept = rows_kept

    def _copy_read(self, read: CacheRead) -> None:
        index = one_slice(len(shape_of(read.cache)), read.axis, slice(None, self._end(self._written_kept)))
        self.mapped[read.node] = self.graph.call_function(operator.getitem, (self.mapped[read.cache], index))

    def _attend(self, node: fx.Node, value_of_operand: Callable[[fx.Node], fx.Node]) -> None:
        """What is done to the self-attention among the row nodes, `node` being any of them."""
        call = self.facts.attention
        if self.plan.queries and call is not None and node is call.entry:
            query = value_of_operand(call.query)
            self.queries = query if call.heads_first else self.graph.call_method("transpose", (query, 1, 2))
        if self.plan.entropy:
            self._tap(node, value_of_operand)

    def _tap(self, node: fx.Node, value_of_operand: Callable[[fx.Node], fx.Node]) -> None:
        """Add the entropies where `node` is the place to take them, the attention or its softmax."""
        call, facts = self.facts.attention, self.facts
        assert call is not None, "no entropies without attention: the options refuse them"
        first = self.offset if self.plan.scale_keys and self.offset is not None else 0
        if call.logits is not None:
            if node is not call.logits:
                return
            self.entropy = measure_logits(self.graph, facts, self.mapped[node], first)
        elif node is not call.entry:
            return
        elif call.score_mod is not None:
            self.entropy = measure_scores(self.graph, self.mapped[node], first)
        else:
            query = value_of_operand(call.query)
            both = attend_and_measure(self.graph, call, query, value_of_operand, first)
            if both is not None:
                self.mapped[node], self.entropy = both
            else:
                mask = None if call.mask is None else value_of_operand(call.mask)
                axes = facts.axes[call.query]
                self.entropy = measure_operands(self.graph, call, query, axes, self._map, mask, first)
        if self.wanted is not None and self.gather.keep is None:
            self.gather.keep = self._select(self.entropy)
