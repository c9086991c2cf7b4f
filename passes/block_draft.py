"""A block graph in the making: its inputs, what stands in it for every value of the block, its outputs."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

import sympy
import torch
from torch import fx

from .._torch_private import graph_to_read
from ..analysis.block_facts import BlockFacts
from ..analysis.contexts import is_context
from ..analysis.graph_sizes import spec_of
from ..analysis.shapes import shape_of
from ..analysis.writes import written
from ..criteria.scores import frequency_score
from ..input_specs import IMAGES, KEPT, OFFSET, InputSpec, tensor_spec
from ..ops import select_tokens  # noqa: F401 - registers the operator called here
from .gathering import RowGather
from .row_plan import BlockArm, RowPlan


class BlockDraft:
    """The new graph of a block; what fills it between `_begin` and `_finish` is the subclass's.

    Args:
        source: graph of the block.
        facts: what the analysis found in it.
        plan: what becomes of its rows.

    Attributes:
        graph: the new graph.
        mapped: what stands in it for each node of the source.
        kept: nodes of the source for which that holds the K kept rows only, not all L.
        gather: chooses rows in the new graph.
        modules: graphs that it fetches and the source does not have, by name.
        own: its inputs that are inputs of the source, in their order.
        offset: the input with the first cache row of the scale; None without a cache.
        restored: the update of pruned rows, if the plan has one.
        entropy: the entropies, once they are measured.
        queries: the self-attention's queries, once they are there.
        wanted: numbers of tokens and images, where the graph selects the tokens.
    """

    def __init__(self, source: fx.Graph, facts: BlockFacts, plan: RowPlan) -> None:
        self.source, self.facts, self.plan = source, facts, plan
        self.graph = fx.Graph()
        self.mapped: dict[fx.Node, fx.Node] = {}
        self.kept: set[fx.Node] = set()
        self.gather = RowGather(self.graph)
        self.modules: dict[str, fx.GraphModule] = {}
        self.own: list[fx.Node] = []
        self.offset: fx.Node | None = None
        self.restored: fx.Node | None = None
        self.entropy: fx.Node | None = None
        self.queries: fx.Node | None = None
        self.wanted: tuple[fx.Node, fx.Node] | None = None

    def _begin(self) -> None:
        """Write the inputs: the source's, then the plan's."""
        self._own_inputs()
        if self.facts.writes:
            self._cache_inputs()
        self._row_inputs()

    def _finish(self) -> BlockArm:
        """Write the outputs, and drop what nothing reads."""
        self._output()
        self.graph.eliminate_dead_code(is_impure_node=_is_impure)
        select = self._drop_unused_inputs()
        self.graph.lint()
        graph = graph_to_read(self._attributes(), self.graph, "Block")
        return BlockArm(graph, select, self._start())

    def _own_inputs(self) -> None:
        growing = {write.cache: write.axis for write in self.facts.writes}
        for at, node in enumerate(self._sources()):
            holder = self.mapped[node] = self.graph.placeholder(str(node.target))
            holder.meta = {"toprovar_spec": _with_own_slots(spec_of(node), growing.get(node), at)}
            self.own.append(holder)

    def _cache_inputs(self) -> None:
        self.offset = self._input("offset", InputSpec(value=OFFSET))

    def _row_inputs(self) -> None:
        hidden = spec_of(self.facts.hidden)
        assert hidden.shape is not None and hidden.dtype is not None and hidden.device is not None
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

    def _input(self, name: str, spec: InputSpec) -> fx.Node:
        holder = self.graph.placeholder(name)
        holder.meta = {"toprovar_spec": spec}
        return holder

    def _sources(self) -> list[fx.Node]:
        return [node for node in self.source.nodes if node.op == "placeholder"]

    def _start(self) -> int | tuple[int] | None:
        """Where the block is told its first cache row (`BlockArm.start`)."""
        if not self.facts.writes:
            return None
        begin = self.facts.writes[0].start
        return self._sources().index(begin) if isinstance(begin, fx.Node) else (int(begin),)  # type: ignore[call-overload]

    def _select(self, statistic: fx.Node | None) -> fx.Node:
        assert self.wanted is not None and self.plan.select is not None
        return self.graph.call_function(
            torch.ops.toprovar.select_tokens.default, (statistic, *self.wanted, *self.plan.select)
        )

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

    def _drop_unused_inputs(self) -> tuple[int, ...]:
        """Positions of the own inputs that stay."""
        used = tuple(at for at, holder in enumerate(self.own) if holder.users or at == 0)
        for at, holder in enumerate(self.own):
            if at not in used:
                self.graph.erase_node(holder)
        return used

    def _attributes(self) -> dict[str, Any]:
        """What the graph fetches: constants and graphs of the module that was traced, and those made here."""
        names = {str(node.target) for node in self.graph.nodes if node.op == "get_attr"}
        owner = self.source.owning_module
        return {
            name: self.modules[name] if name in self.modules else operator.attrgetter(name)(owner)
            for name in names
        }


def _with_own_slots(spec: InputSpec, axis: int | None, at: int) -> InputSpec:
    """The spec of a cache whose length is a sum of sizes, with a symbol of its own for that length."""
    if axis is None or spec.shape is None or spec.shape[axis].is_Integer or spec.shape[axis].is_Symbol:
        return spec
    assert spec.dtype is not None and spec.device is not None
    slots = sympy.Symbol(f"slots_{at}", integer=True, positive=True)
    shape = (*spec.shape[:axis], slots, *spec.shape[axis + 1 :])
    return replace(tensor_spec(shape, spec.dtype, spec.device), renamed=((slots, spec.shape[axis]),))


def _is_impure(node: fx.Node) -> bool:
    if node.op in ("placeholder", "output") or node.target is operator.setitem:
        return True
    return is_context(node) or node.is_impure() or bool(written([node]))
