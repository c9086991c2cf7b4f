"""Rewrites a block graph so that it writes nothing: new cache rows are outputs, as `torch.cond` needs."""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from torch import fx

from ..analysis.block_facts import BlockFacts
from ..analysis.caches import CacheRead, CacheWrite
from ..analysis.flex import is_flex
from ..analysis.graph_sizes import spec_of
from ..analysis.reasons import Reason, Unsupported
from ..analysis.shapes import same, shape_of, size_of, value_of
from ..input_specs import OFFSET, InputSpec
from ..ops import attend_rows  # noqa: F401 - registers the operator called here
from .rows import Rewriter


def refuse_indirect(facts: BlockFacts) -> None:
    """Refuse a block whose cache is not read by its attention as `[rows, heads, tokens, width]` directly.

    Raises:
        Unsupported: `GATE_ON_HOST`.
    """
    read = {entry.node: entry.cache for entry in facts.reads}
    call = facts.attention
    assert call is not None
    flex = next((node for node in facts.hidden.graph.nodes if is_flex(node)), None)
    if flex is not None:
        raise Unsupported(Reason.GATE_ON_HOST, flex, "FlexAttention inside a branch")
    if facts.writes and not (
        call.node is call.entry and call.mask is None and call.heads_first and not call.grouped
    ):
        raise Unsupported(Reason.GATE_ON_HOST, call.node, "its attention is not one plain call")
    for operand in (call.key, call.value) if facts.writes else ():
        if operand not in read:
            raise Unsupported(Reason.GATE_ON_HOST, call.node, "its keys are not a slice of the cache")
    if len(facts.writes) not in (0, 2):
        raise Unsupported(Reason.GATE_ON_HOST, call.node, f"{len(facts.writes)} caches are written")
    for write in facts.writes:
        first = size_of(write.start)
        if first is not None and first.is_Integer and not facts.length.is_Integer:
            raise Unsupported(Reason.GATE_ON_HOST, write.node, "its cache may begin anew at every scale")
        cache, rows = shape_of(write.cache), shape_of(write.rows)
        others = [at for at in range(len(cache)) if at != write.axis]
        if spec_of(write.cache).dtype != getattr(value_of(write.rows), "dtype", None):
            raise Unsupported(Reason.GATE_ON_HOST, write.node, "the cache has another dtype than its rows")
        if len(cache) != 4 or write.axis != 2 or not all(same(cache[at], rows[at]) for at in others):
            raise Unsupported(Reason.GATE_ON_HOST, write.node, "the tokens are not on axis 2 of 4")


class FunctionalRewriter(Rewriter):
    """Copies a block graph under a plan that leaves the caches alone.

    In place of `offset` its graphs take `filled`, int64 [], the cache rows that count, and `most`, an upper
    bound of it. Behind the other outputs they return the new rows of the key and of the value cache.
    """

    def _cache_inputs(self) -> None:
        device = self.own[0].meta["toprovar_spec"].device
        scalar = InputSpec(shape=(), stride=(), dtype=torch.int64, device=device)
        self.filled = self._input("filled", scalar)
        self.most = self._input("most", InputSpec(value=OFFSET))
        self.rows: dict[fx.Node, fx.Node] = {}

    def _copy_write(self, write: CacheWrite) -> None:
        self.rows[write.cache] = self.mapped[write.rows]
        self.mapped[write.node] = self.mapped[write.cache]

    def _copy_read(self, read: CacheRead) -> None:
        self.mapped[read.node] = self.mapped[read.cache]

    def _caches(self) -> list[fx.Node]:
        """The key and the value cache in the source graph."""
        read = {entry.node: entry.cache for entry in self.facts.reads}
        call = self.facts.attention
        assert call is not None
        return [read[call.key], read[call.value]]

    def _attend(self, node: fx.Node, value_of_operand: Callable[[fx.Node], fx.Node]) -> None:
        call = self.facts.attention
        if not self.facts.writes:
            super()._attend(node, value_of_operand)
            return
        if call is None or node is not call.entry:
            return
        caches = self._caches()
        both = self.graph.call_function(
            torch.ops.toprovar.attend_rows.default,
            (
                value_of_operand(call.query),
                *(self.mapped[cache] for cache in caches),
                *(self.rows[cache] for cache in caches),
                self.filled,
                self.most,
                call.scale,
                self.plan.entropy,
                self.plan.scale_keys,
            ),
        )
        if self.plan.entropy:
            self.entropy = self.graph.call_function(operator.getitem, (both, 1))
        self.mapped[node] = self.graph.call_function(operator.getitem, (both, 0))

    def _new_rows(self) -> list[fx.Node]:
        return [self.rows[cache] for cache in self._caches()] if self.facts.writes else []
