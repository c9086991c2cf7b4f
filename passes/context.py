"""What a pass may use to turn a rewritten block graph into something that runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from ..analysis.cache_layout import CacheLayout, read_cache_layout
from ..analysis.reasons import Fallback, Unsupported
from ..analysis.shapes import Size
from ..lowering.region import Region
from ..runtime.arms import Arm
from ..runtime.graph_gate import BranchedArm
from ..runtime.verify import PermutationCheck
from .branch_graph import BranchPlan, branch_graph
from .row_plan import RowPlan
from .rows import rewrite_rows
from .shape_proof import prove_shapes
from .step import BlockGraph


@dataclass
class PassContext:
    """Makes arms, one per block graph and plan, so that layers of equal structure share compiled code.

    Attributes:
        lowering: "eager" or "inductor".
        hints: sizes that code generation is tuned for: "L", "K" and "offset".
        check: the permutation check of pruned graphs.
        static: compile for every size apart.
        compacts: whether a cache policy looks at the queries of every block whose cache it understands.
        on_failure: what a region does that could not be compiled (`lowering/region.py`).
    """

    lowering: str
    check: PermutationCheck
    hints: Mapping[str, int] = field(default_factory=dict)
    static: bool = False
    compacts: bool = False
    on_failure: Callable[[Fallback], None] | None = None
    _layouts: dict[int, CacheLayout | Fallback | None] = field(default_factory=dict)
    _arms: dict[tuple[int, RowPlan], Arm] = field(default_factory=dict)
    _branched: dict[tuple[int, BranchPlan], BranchedArm] = field(default_factory=dict)

    def arm(self, block: BlockGraph, plan: RowPlan) -> Arm:
        """The callable of `block` under `plan`.

        Raises:
            Unsupported: the shapes of the rewritten block could not be proven.
        """
        layout = self.cache_layout(block)
        watched = layout if isinstance(layout, CacheLayout) else None
        proven = plan != RowPlan()
        plan = replace(plan, queries=watched is not None)
        key = (id(block), plan)
        if key not in self._arms:
            assert block.facts is not None
            rewritten = rewrite_rows(block, plan)
            if proven:
                prove_shapes(block.graph.graph, block.facts, rewritten, plan)
            hints = self.named_hints(block.facts.length)
            region = Region(
                rewritten.graph, self.lowering, hints, f"block: {plan}", self.static, self.on_failure
            )
            self._arms[key] = Arm(region, rewritten.select, rewritten.start, layout=watched)
        return self._arms[key]

    def cache_layout(self, block: BlockGraph) -> CacheLayout | Fallback | None:
        """Where `block` caches, or why its cache stays whole; None where nothing is to be compacted."""
        if not self.compacts or block.facts is None or block.facts.attention is None:
            return None
        if id(block) not in self._layouts:
            try:
                self._layouts[id(block)] = read_cache_layout(block.graph.graph, block.facts)
            except Unsupported as verdict:
                self._layouts[id(block)] = verdict.fallback
        return self._layouts[id(block)]

    def branched(self, block: BlockGraph, plan: BranchPlan) -> BranchedArm:
        """The callable of `block` that decides itself under `plan`."""
        key = (id(block), plan)
        if key not in self._branched:
            assert block.facts is not None
            made = branch_graph(block, plan)
            hints = self.named_hints(block.facts.length)
            region = Region(made.graph, self.lowering, hints, f"block: {plan}", self.static, self.on_failure)
            ranks, keeps, rho = plan.score == "entropy", plan.pruned is not None, plan.whole.entropy
            self._branched[key] = BranchedArm(region, made.select, made.start, ranks, keeps, rho)
        return self._branched[key]

    def named_hints(self, length: Size) -> dict[str, int]:
        """The hints with the token count under the name that the trace gave it.

        A graph of one token count runs at one scale: code is tuned for that, not for the largest.
        """
        if length.is_Integer:
            return {"K": max(2, int(length) // 2)} if self.hints else {}
        return {str(length) if name == "L" else name: value for name, value in self.hints.items()}

    @property
    def regions(self) -> list[Region]:
        """Every region made so far."""
        return [arm.region for arm in (*self._arms.values(), *self._branched.values())]
