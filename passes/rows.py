"""Rewrites a block graph so that it computes chosen token rows only; every block-level pass is a use of this.

The rewriter copies the graph node by node and keeps, for every value, whether its token axis still holds all
L rows or only the K kept ones. Where a kept value meets a full one (the residual stream, a position table),
the full one is gathered with the same index, so that row i of one always meets row i of the other.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import sympy
import torch
from torch import fx

from ..analysis.block_facts import BlockFacts
from ..analysis.caches import CacheRead, CacheWrite
from ..analysis.contexts import is_context
from ..analysis.contractions import read_contraction
from ..analysis.flex import given_to_flex
from ..analysis.operators import operator_name, states_length
from ..analysis.shapes import same, shape_of, size_of, value_of
from ..analysis.transfers import Axes
from ..criteria.scores import frequency_score
from ..lowering.sizes import IMAGES, KEPT, OFFSET, InputSpec, spec_of, tensor_spec
from ..ops import select_tokens  # noqa: F401 - registers the operator called here
from .gathering import RowGather
from .row_plan import BlockArm, GatherAt, RowPlan
from .score_mods import by_kept_positions
from .step import BlockGraph
from .taps import attend_and_measure, measure_logits, measure_operands, measure_scores


def rewrite_rows(block: BlockGraph, plan: RowPlan) -> BlockArm:
    """Apply `plan` to a block that the analysis understood."""
    assert block.facts is not None
    return Rewriter(block.graph.graph, block.facts, plan).run()


class Rewriter:
    """Copies a block graph under a plan; the caches are written in place."""

    def __init__(self, source: fx.Graph, facts: BlockFacts, plan: RowPlan) -> None:
        self.source, self.facts, self.plan = source, facts, plan
        self.graph = fx.Graph()
        self.mapped: dict[fx.Node, fx.Node] = {}
        self.kept: set[fx.Node] = set()
        self.gather = RowGather(self.graph)
        self.modules: dict[str, fx.GraphModule] = {}
        self.writes = {write.node: write for write in facts.writes}
        self.reads = {read.node: read for read in facts.reads}
        self.select: list[int] = []
        self.offset: fx.Node | None = None
        self.restored: fx.Node | None = None
        self.entropy: fx.Node | None = None
        self.queries: fx.Node | None = None
        self.wanted: tuple[fx.Node, fx.Node] | None = None
        self.ends: dict[bool, fx.Node] = {}
        self.counts: dict[bool, fx.Node] = {}

    def run(self) -> BlockArm:
        """The rewritten block."""
        start = self._placeholders()
        for node in self.source.nodes:
            if node.op not in ("placeholder", "output"):
                self._copy(node)
        self._output()
        self.graph.eliminate_dead_code(is_impure_node=_is_impure)
        self._drop_unused_inputs()
        self.graph.lint()
        graph = fx.GraphModule(self._attributes(), self.graph, class_name="Block")
        return BlockArm(graph, tuple(self.select), start)

    def _attributes(self) -> dict[str, Any]:
        """What the graph fetches: constants and graphs of the module that was traced, and those made here."""
        names = {str(node.target) for node in self.graph.nodes if node.op == "get_attr"}
        owner = self.source.owning_module
        return {
            name: self.modules[name] if name in self.modules else operator.attrgetter(name)(owner)
            for name in names
        }

    def _placeholders(self) -> int | tuple[int] | None:
        sources = [node for node in self.source.nodes if node.op == "placeholder"]
        growing = {write.cache: write.axis for write in self.facts.writes}
        for at, node in enumerate(sources):
            holder = self.mapped[node] = self.graph.placeholder(str(node.target))
            holder.meta = {"toprovar_spec": _with_own_slots(spec_of(node), growing.get(node), at)}
        self.own = [self.mapped[node] for node in sources]
        hidden = spec_of(self.facts.hidden)
        assert hidden.shape is not None and hidden.dtype is not None and hidden.device is not None
        if self.facts.writes:
            self._cache_inputs()
        ranking: fx.Node | None = self.mapped[self.facts.hidden]
        if self.plan.ranking == "given":
            ranking = self._input("ranking", tensor_spec(hidden.shape[:2], torch.float32, hidden.device))
        if self.plan.gather_at is not None:
            if self.plan.select is None:
                self.gather.keep = self._input(
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
        if self.plan.ranking == "frequency":
            ranking = self.graph.call_function(frequency_score, (ranking,))
        if self.plan.ranking is not None:
            self.gather.keep = self._select(ranking)
        if not self.facts.writes:
            return None
        begin = self.facts.writes[0].start
        return sources.index(begin) if isinstance(begin, fx.Node) else (int(begin),)  # type: ignore[call-overload]

    def _cache_inputs(self) -> None:
        self.offset = self._input("offset", InputSpec(value=OFFSET))

    def _input(self, name: str, spec: InputSpec) -> fx.Node:
        holder = self.graph.placeholder(name)
        holder.meta = {"toprovar_spec": spec}
        return holder

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
                self._resize(node, self.mapped[node])

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
            for operand, dimension in facts.transfers[node].tables:
                replaced[operand] = self._gather_table(operand, dimension, *self._frame(node))
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
        self._resize(node, copied)
        if node in facts.score_mods:
            self._keep_positions(node, copied)
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
                replaced[operand] = self._gather_table(operand, dimension, columns, rank)

    def _keep_positions(self, node: fx.Node, copied: fx.Node) -> None:
        """Let a score_mod see the positions that its queries and keys had among all tokens."""
        mod, call = self.facts.score_mods[node], self.facts.attention
        keys_kept = call is not None and node is call.entry and call.key in self.kept
        if not (mod.by_query and node in self.kept) and not (mod.by_key and keys_kept):
            return
        name = f"kept_score_mod_{len(self.modules)}"
        self.modules[name] = by_kept_positions(mod, node in self.kept, keys_kept)
        given = given_to_flex(copied)
        with self.graph.inserting_before(copied):
            given["score_mod"] = self.graph.get_attr(name)
            keep = self.gather.index(self.facts.axes[node])
        given["score_mod_other_buffers"] = (*given["score_mod_other_buffers"], keep)  # type: ignore[misc]
        copied.args, copied.kwargs = tuple(given.values()), {}  # type: ignore[arg-type]

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

    def _resize(self, node: fx.Node, copied: fx.Node) -> None:
        """Put the tokens and keys that are left in place of the traced ones among a node's size arguments."""
        if node in self.facts.keyed:
            self._resize_by_axis(node, copied)
        elif node in self.kept and states_length(node, self.facts.length):
            copied.args = self._kept_sizes(node.args, copied.args)

    def _resize_by_axis(self, node: fx.Node, copied: fx.Node) -> None:
        """As `_resize`, where tokens and keys may be equally many: the sizes' places tell which is which."""
        if operator_name(node) not in ("view", "reshape", "expand"):
            return
        listed = isinstance(node.args[1], (tuple, list))
        sizes = list(copied.args[1] if listed else copied.args[1:])  # type: ignore[arg-type]
        if len(sizes) != len(shape_of(node)):
            return
        with self.graph.inserting_before(copied):
            if node in self.facts.axes and node in self.kept:
                sizes[self.facts.axes[node].token] = self._size(node, self.facts.axes)
            sizes[self.facts.keyed[node].token] = self._size(node, self.facts.keyed)
        copied.args = (copied.args[0], tuple(sizes)) if listed else (copied.args[0], *sizes)

    def _size(self, node: fx.Node, axes: Mapping[fx.Node, Axes]) -> fx.Node:
        """Rows that the operand of a view has in the graph that is being written."""
        operand = next(operand for operand in node.all_input_nodes if operand in axes)
        return self.graph.call_method("size", (self.mapped[operand], axes[operand].token))

    def _kept_sizes(self, before: Any, after: Any) -> Any:
        """Replace the token count among size arguments by the number of kept tokens."""
        if isinstance(before, (tuple, list)):
            return type(before)(self._kept_sizes(b, a) for b, a in zip(before, after, strict=True))
        size = size_of(before)
        return self._count(kept=True) if size is not None and same(size, self.facts.length) else after

    def _count(self, kept: bool) -> fx.Node:
        """Number of rows written or computed: K or L."""
        if kept not in self.counts:
            tensor = self.gather.keep if kept else self.mapped[self.facts.hidden]
            self.counts[kept] = self.graph.call_method("size", (tensor, 1))
        return self.counts[kept]

    def _gather(self, operand: fx.Node, axes: Axes) -> fx.Node:
        return self.gather.rows(operand, self.mapped[operand], axes, len(shape_of(operand)))

    def _gather_table(self, operand: fx.Node, dimension: int, axes: Axes, rank: int) -> fx.Node:
        return self.gather.table(operand, self.mapped[operand], axes, rank)

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

    def _attend(self, node: fx.Node, value_of_operand: Callable[[fx.Node], fx.Node]) -> None:
        """What is done to the self-attention among the row nodes, `node` being any of them."""
        call = self.facts.attention
        if self.plan.queries and call is not None and node is call.entry:
            query = value_of_operand(call.query)
            self.queries = query if call.heads_first else self.graph.call_method("transpose", (query, 1, 2))
        if self.plan.entropy:
            self._tap(node, value_of_operand)

    def _select(self, statistic: fx.Node | None) -> fx.Node:
        assert self.wanted is not None and self.plan.select is not None
        return self.graph.call_function(
            torch.ops.toprovar.select_tokens.default, (statistic, *self.wanted, *self.plan.select)
        )

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

    def _output(self) -> None:
        result = self.mapped[self.facts.exit]
        if self.facts.exit in self.kept:
            hidden = self.mapped[self.facts.hidden]
            if self.restored is not None:
                base = self.graph.call_function(operator.add, (hidden, self.restored))
            else:
                base = hidden
            index = self.graph.call_method("unsqueeze", (self.gather.keep, -1))
            index = self.graph.call_method("expand", (index, -1, -1, int(shape_of(self.facts.hidden)[-1])))
            result = self.graph.call_function(torch.scatter, (base, 1, index, result))
        keep = self.gather.keep if self.wanted else None
        extra = [value for value in (self.entropy, keep, self.queries) if value is not None]
        extra += self._new_rows()
        self.graph.output((result, *extra) if extra else result)

    def _new_rows(self) -> list[fx.Node]:
        """Rows for the caches that the graph returns instead of writing them."""
        return []

    def _drop_unused_inputs(self) -> None:
        for at, holder in enumerate(self.own):
            if holder.users or at == 0:
                self.select.append(at)
            else:
                self.graph.erase_node(holder)


def _with_own_slots(spec: InputSpec, axis: int | None, at: int) -> InputSpec:
    """The spec of a cache whose length is a sum of sizes, with a symbol of its own for that length."""
    if axis is None or spec.shape is None or spec.shape[axis].is_Integer or spec.shape[axis].is_Symbol:
        return spec
    assert spec.dtype is not None and spec.device is not None
    slots = sympy.Symbol(f"slots_{at}", integer=True, positive=True)
    shape = (*spec.shape[:axis], slots, *spec.shape[axis + 1 :])
    return tensor_spec(shape, spec.dtype, spec.device)


def _slices(rank: int, axis: int, entry: slice) -> tuple[slice, ...]:
    return tuple(entry if at == axis else slice(None) for at in range(rank))


def _is_impure(node: fx.Node) -> bool:
    if node.op in ("placeholder", "output") or node.target is operator.setitem:
        return True
    return is_context(node) or node.is_impure()
