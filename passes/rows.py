"""Rewrites a block graph so that it computes chosen token rows only; every block-level pass is a use of this.

The rewriter copies the graph node by node and keeps, for every value, whether its token axis still holds all
L rows or only the K kept ones. Where a kept value meets a full one (the residual stream, a position table),
the full one is gathered with the same index, so that row i of one always meets row i of the other.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import sympy
import torch
from torch import fx

from ..analysis.attention import AttentionCall
from ..analysis.block_facts import BlockFacts
from ..analysis.caches import CacheRead, CacheWrite
from ..analysis.operators import states_length
from ..analysis.shapes import same, shape_of, size_of, value_of
from ..analysis.transfers import Axes
from ..lowering.sizes import IMAGES, KEPT, OFFSET, InputSpec, spec_of, tensor_spec
from ..ops import attention_with_entropy, select_tokens  # noqa: F401 - registers the operators called here
from .step import BlockGraph


class GatherAt(Enum):
    """Where rows are dropped; the value says what is then not computed for pruned tokens."""

    BLOCK_INPUT = "everything, keys and values included"
    QUERY = "attention output and all after it; keys and values are computed for all tokens"
    ATTENTION_OUTPUT = "cross-attention and feed-forward; self-attention runs whole"


@dataclass(frozen=True)
class BlockArm:
    """A rewritten block graph.

    Attributes:
        graph: inputs are the selected inputs of the block, then `offset` (if the block has a cache), then
            `keep` [R, K] int64 (if rows are gathered; or K and B where the graph selects them itself), then
            `restored` [R, L, C] (if asked for). Outputs: the hidden state [R, L, C]; the entropy [R, L]
            float32 in nats (if asked for); the keep set [R, K] (if the graph selects it).
        select: positions among the block's own inputs of those that the graph still uses.
        start: position, among the block's own inputs, of the first cache row of this scale; an int constant
            as a one-element tuple; None without a cache.
    """

    graph: fx.GraphModule
    select: tuple[int, ...]
    start: int | tuple[int] | None


@dataclass(frozen=True)
class RowPlan:
    """What to do with a block's rows.

    Attributes:
        gather_at: where to drop rows, or None to keep all.
        restored: whether pruned rows get an update passed in (`hidden + restored`) instead of nothing.
        entropy: add the attention entropy of every query as an output.
        scale_keys: entropy over this scale's keys only instead of all cached ones.
        select: None, or the rule ("shared", "cond", "per_row") and the sign (keep low) by which the graph
            itself selects the tokens from the entropies; only with `GatherAt.ATTENTION_OUTPUT` and `entropy`.
    """

    gather_at: GatherAt | None = None
    restored: bool = False
    entropy: bool = False
    scale_keys: bool = False
    select: tuple[str, bool] | None = None

    def __str__(self) -> str:
        rows = "all tokens" if self.gather_at is None else f"K tokens from {self.gather_at.name.lower()} on"
        return rows + ("" if not self.entropy else ", entropies")


def rewrite_rows(block: BlockGraph, plan: RowPlan) -> BlockArm:
    """Apply `plan` to a block that the analysis understood."""
    assert block.facts is not None
    return _Rewriter(block.graph.graph, block.facts, plan).run()


class _Rewriter:
    def __init__(self, source: fx.Graph, facts: BlockFacts, plan: RowPlan) -> None:
        self.source, self.facts, self.plan = source, facts, plan
        self.graph = fx.Graph()
        self.mapped: dict[fx.Node, fx.Node] = {}
        self.kept: set[fx.Node] = set()
        self.gathered: dict[tuple[fx.Node, int], fx.Node] = {}
        self.writes = {write.node: write for write in facts.writes}
        self.reads = {read.node: read for read in facts.reads}
        self.select: list[int] = []
        self.offset: fx.Node | None = None
        self.keep: fx.Node | None = None
        self.restored: fx.Node | None = None
        self.entropy: fx.Node | None = None
        self.wanted: tuple[fx.Node, fx.Node] | None = None
        self.ends: dict[bool, fx.Node] = {}
        self.counts: dict[bool, fx.Node] = {}

    def run(self) -> BlockArm:
        start = self._placeholders()
        for node in self.source.nodes:
            if node.op not in ("placeholder", "output"):
                self._copy(node)
        self._output()
        self.graph.eliminate_dead_code(is_impure_node=_is_impure)
        self._drop_unused_inputs()
        self.graph.lint()
        return BlockArm(fx.GraphModule({}, self.graph, class_name="Block"), tuple(self.select), start)

    def _placeholders(self) -> int | tuple[int] | None:
        sources = [node for node in self.source.nodes if node.op == "placeholder"]
        for node in sources:
            holder = self.mapped[node] = self.graph.placeholder(str(node.target))
            holder.meta = {"toprovar_spec": spec_of(node)}
        self.own = [self.mapped[node] for node in sources]
        hidden = spec_of(self.facts.hidden)
        assert hidden.shape is not None and hidden.dtype is not None and hidden.device is not None
        if self.facts.writes:
            self.offset = self._input("offset", InputSpec(value=OFFSET))
        if self.plan.gather_at is not None:
            if self.plan.select is None:
                self.keep = self._input(
                    "keep", tensor_spec((hidden.shape[0], KEPT), torch.int64, hidden.device)
                )
            else:
                self.wanted = (
                    self._input("count", InputSpec(value=KEPT)),
                    self._input("images", InputSpec(value=IMAGES)),
                )
            if self.plan.restored:
                self.restored = self._input(
                    "restored", tensor_spec(hidden.shape, hidden.dtype, hidden.device)
                )
        if not self.facts.writes:
            return None
        begin = self.facts.writes[0].start
        return sources.index(begin) if isinstance(begin, fx.Node) else (int(begin),)  # type: ignore[call-overload]

    def _input(self, name: str, spec: InputSpec) -> fx.Node:
        holder = self.graph.placeholder(name)
        holder.meta = {"toprovar_spec": spec}
        return holder

    def _copy(self, node: fx.Node) -> None:
        if node in self.writes:
            self._copy_write(self.writes[node])
        elif node in self.reads:
            self._copy_read(self.reads[node])
        elif node not in self.facts.axes:
            self.mapped[node] = self.graph.node_copy(node, self._map)
        else:
            self._copy_row_node(node)

    def _map(self, operand: fx.Node) -> fx.Node:
        return self.mapped[operand]

    def _copy_row_node(self, node: fx.Node) -> None:
        operands = [operand for operand in node.all_input_nodes if operand in self.facts.axes]
        replaced: dict[fx.Node, fx.Node] = {}
        attention = self.facts.attention
        call = attention if attention is not None and attention.node is node else None
        if call is not None:
            # Keys and values pair with nothing by position: kept or full, they stay as they are.
            operands = [call.query]
            if self._gathers(GatherAt.QUERY, operands[0]):
                replaced[operands[0]] = self._gather(operands[0], self.facts.axes[operands[0]])
        elif self._gathers(GatherAt.BLOCK_INPUT, *operands):
            replaced[self.facts.hidden] = self._gather(self.facts.hidden, self.facts.axes[self.facts.hidden])
        if any(operand in self.kept for operand in operands) or replaced:
            self.kept.add(node)
            for operand in operands:
                if operand not in self.kept and operand not in replaced:
                    replaced[operand] = self._gather(operand, self.facts.axes[operand])
            rank = len(shape_of(node)) if isinstance(value_of(node), torch.Tensor) else 0
            for operand, dimension in self.facts.transfers[node].tables:
                replaced[operand] = self._gather_table(operand, dimension, self.facts.axes[node], rank)
        resized = node in self.kept and states_length(node, self.facts.length)
        if resized:
            self._count(kept=True)
        copied = self.graph.node_copy(node, lambda operand: replaced.get(operand, self.mapped[operand]))
        if resized:
            copied.args = self._kept_sizes(node.args, copied.args)
        if call is not None and self.plan.entropy:
            copied = self._tap(call, replaced.get(call.query, self.mapped[call.query]))
        self.mapped[node] = copied
        if call is not None and self.plan.gather_at is GatherAt.ATTENTION_OUTPUT:
            self.mapped[node] = self._gather(node, self.facts.axes[node])
            self.kept.add(node)

    def _gathers(self, where: GatherAt, *operands: fx.Node) -> bool:
        if self.plan.gather_at is not where:
            return False
        return where is GatherAt.QUERY or self.facts.hidden in operands

    def _kept_sizes(self, before: Any, after: Any) -> Any:
        """Replace the token count among size arguments by the number of kept tokens."""
        if isinstance(before, (tuple, list)):
            return type(before)(self._kept_sizes(b, a) for b, a in zip(before, after, strict=True))
        size = size_of(before)
        return self._count(kept=True) if size is not None and same(size, self.facts.length) else after

    def _count(self, kept: bool) -> fx.Node:
        """Number of rows written or computed: K or L."""
        if kept not in self.counts:
            tensor = self.keep if kept else self.mapped[self.facts.hidden]
            self.counts[kept] = self.graph.call_method("size", (tensor, 1))
        return self.counts[kept]

    def _gather(self, operand: fx.Node, axes: Axes) -> fx.Node:
        return self._take(operand, self.mapped[operand], axes, len(shape_of(operand)))

    def _gather_table(self, operand: fx.Node, dimension: int, axes: Axes, rank: int) -> fx.Node:
        missing = rank - len(shape_of(operand))
        value = self.mapped[operand]
        if missing:
            value = self.graph.call_function(operator.getitem, (value, (None,) * missing))
        return self._take(operand, value, axes, rank)

    def _take(self, operand: fx.Node, value: fx.Node, axes: Axes, rank: int) -> fx.Node:
        """Rows `keep` of a value of this rank; a value without batch rows gets one copy per row of `keep`."""
        key = (operand, rank)
        if key not in self.gathered:
            own = shape_of(operand)
            shape = (sympy.Integer(1),) * (rank - len(own)) + own
            if shape[axes.batch] == 1:
                rows = self.graph.call_method("size", (self.keep, 0))
                sizes = tuple(rows if at == axes.batch else -1 for at in range(rank))
                value = self.graph.call_method("expand", (value, *sizes))
            index = tuple(slice(None) if at in (axes.batch, axes.token) else None for at in range(rank))
            wanted = self.graph.call_function(operator.getitem, (self.keep, index))
            spread = tuple(-1 if at in (axes.batch, axes.token) else int(shape[at]) for at in range(rank))
            wanted = self.graph.call_method("expand", (wanted, *spread))
            self.gathered[key] = self.graph.call_function(torch.gather, (value, axes.token, wanted))
        return self.gathered[key]

    def _end(self, kept: bool) -> fx.Node:
        if kept not in self.ends:
            self.ends[kept] = self.graph.call_function(operator.add, (self.offset, self._count(kept)))
        return self.ends[kept]

    def _copy_write(self, write: CacheWrite) -> None:
        rows_kept = write.rows in self.kept
        index = _slices(len(shape_of(write.cache)), write.axis, slice(self.offset, self._end(rows_kept)))
        args = (self.mapped[write.cache], index, self.mapped[write.rows])
        self.mapped[write.node] = self.graph.call_function(operator.setitem, args)
        self._written_kept = rows_kept

    def _copy_read(self, read: CacheRead) -> None:
        index = _slices(len(shape_of(read.cache)), read.axis, slice(None, self._end(self._written_kept)))
        self.mapped[read.node] = self.graph.call_function(operator.getitem, (self.mapped[read.cache], index))

    def _tap(self, call: AttentionCall, query: fx.Node) -> fx.Node:
        """Attention by the operator that also returns the entropies."""
        first = self.offset if self.plan.scale_keys and self.offset is not None else 0
        both = self.graph.call_function(
            torch.ops.toprovar.attention_with_entropy.default,
            (query, self.mapped[call.key], self.mapped[call.value], call.scale, True, first),
        )
        self.entropy = self.graph.call_function(operator.getitem, (both, 1))
        if self.wanted is not None and self.plan.select is not None:
            self.keep = self.graph.call_function(
                torch.ops.toprovar.select_tokens.default, (self.entropy, *self.wanted, *self.plan.select)
            )
        return self.graph.call_function(operator.getitem, (both, 0))

    def _output(self) -> None:
        result = self.mapped[self.facts.exit]
        if self.facts.exit in self.kept:
            hidden = self.mapped[self.facts.hidden]
            if self.restored is not None:
                base = self.graph.call_function(operator.add, (hidden, self.restored))
            else:
                base = hidden
            index = self.graph.call_method("unsqueeze", (self.keep, -1))
            index = self.graph.call_method("expand", (index, -1, -1, int(shape_of(self.facts.hidden)[-1])))
            result = self.graph.call_function(torch.scatter, (base, 1, index, result))
        extra = [value for value in (self.entropy, self.keep if self.wanted else None) if value is not None]
        self.graph.output((result, *extra) if extra else result)

    def _drop_unused_inputs(self) -> None:
        for at, holder in enumerate(self.own):
            if holder.users or at == 0:
                self.select.append(at)
            else:
                self.graph.erase_node(holder)


def _slices(rank: int, axis: int, entry: slice) -> tuple[slice, ...]:
    return tuple(entry if at == axis else slice(None) for at in range(rank))


def _is_impure(node: fx.Node) -> bool:
    return node.op in ("placeholder", "output") or node.target is operator.setitem or node.is_impure()
