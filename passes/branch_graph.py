"""Builds the graph of a layer that decides itself: decide, `torch.cond`, write the caches."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from .._torch_private import clone_graph, cond
from ..analysis.graph_sizes import spec_of
from ..criteria.decision import Decision, DecisionRule, decide
from ..criteria.scores import frequency_score
from ..input_specs import IMAGES, KEPT, OFFSET, InputSpec, tensor_spec
from .branches import Branch, BranchLayout, OtherwiseBranch, PrunedBranch, SkippedBranch, WholeBranch
from .functional_rows import FunctionalRewriter
from .row_plan import BlockArm, RowPlan
from .step import BlockGraph


@dataclass(frozen=True)
class BranchPlan:
    """What a layer may do.

    Attributes:
        rule: what decides.
        whole: rows and entropies of the branch that runs all tokens.
        pruned: of the one that runs K; None if tokens are not pruned. Its `ranking` is "given".
        skips: whether there is a branch that runs nothing.
        restored: whether tokens that are not computed get an update that is passed in.
        score: "entropy", then the map [R, L] that ranks is an input, or "frequency".
        keeps_rows: whether pruned tokens leave keys and values.
    """

    rule: DecisionRule
    whole: RowPlan
    pruned: RowPlan | None
    skips: bool
    restored: bool
    score: str
    keeps_rows: bool

    def __str__(self) -> str:
        branches = [
            "all tokens",
            *(["K tokens"] if self.pruned else []),
            *(["skipped"] if self.skips else []),
        ]
        return " or ".join(branches) + (", entropies" if self.whole.entropy else "")


class Decide(nn.Module):
    """`decide` as a module, with the rule as its constant."""

    def __init__(self, rule: DecisionRule) -> None:
        super().__init__()
        self.rule = rule

    def forward(self, best_rho: Tensor, statistic: Tensor, rate: Tensor, most: Tensor, images: int) -> Any:
        """past, skip, prune."""
        made: Decision = decide(self.rule, best_rho, statistic, rate, most, images)
        return made.past, made.skip, made.prune


def branch_graph(block: BlockGraph, plan: BranchPlan) -> BlockArm:
    """The graph of `block` that decides itself.

    Inputs: the selected inputs of the block; `filled` and `most` (with a cache); `best_rho`, `ranking` (with
    score "entropy"), `rate`, `wanted_most`; `count` (if tokens are pruned); `images`; `restored` (if asked
    for). Outputs: hidden [R, L, C]; the branch, int64 [] (`runtime/branching.py`); rows missing in the cache,
    int64 []; the keep set [R, K] (if tokens are pruned); rho (if entropies are measured).
    """
    return _Builder(block, plan).run()


class _Builder:
    def __init__(self, block: BlockGraph, plan: BranchPlan) -> None:
        assert block.facts is not None
        self.plan, self.facts = plan, block.facts
        self.source = [node for node in block.graph.graph.nodes if node.op == "placeholder"]
        plans = [plan.whole] if plan.pruned is None else [plan.whole, plan.pruned]
        self.arms = [FunctionalRewriter(block.graph.graph, block.facts, rows).run() for rows in plans]
        self.select = tuple(sorted({at for arm in self.arms for at in arm.select}))
        self.graph = fx.Graph()
        self.inputs: dict[str, fx.Node] = {}

    def run(self) -> BlockArm:
        self._placeholders()
        hidden = self.inputs[str(self.facts.hidden.target)]
        ranking = self.inputs.get("ranking") or self.graph.call_function(frequency_score, (hidden,))
        wanted = ("best_rho", "rate", "wanted_most", "images")
        best, rate, most, images = (self.inputs[name] for name in wanted)
        decision = self.graph.call_module("decide", (best, ranking, rate, most, images))
        past, skip, prune = (self.graph.call_function(operator.getitem, (decision, at)) for at in range(3))
        deciding = ("best_rho", "rate", "wanted_most")
        operands = {name: node for name, node in self.inputs.items() if name not in deciding}
        operands |= {"ranking": ranking, "skip": skip}
        layout = self._layout(tuple(operands))
        found = self._branch(layout, tuple(operands.values()), prune, skip)
        made = [self.graph.call_function(operator.getitem, (found, at)) for at in range(self._count(layout))]
        self._write(layout, hidden, made[-len(layout.caches) :] if layout.caches else [])
        count = self.inputs.get("count", hidden)
        told = self.graph.call_function(_told, (past, skip, prune, hidden, count, self.plan.keeps_rows))
        branch, missing = (self.graph.call_function(operator.getitem, (told, at)) for at in range(2))
        ends = len(made) - len(layout.caches)
        self.graph.output((made[0], branch, missing, *made[1:ends]))
        self.graph.lint()
        modules = {"decide": Decide(self.plan.rule), **self.modules}
        module = fx.GraphModule(modules, self.graph, class_name="BranchedBlock")
        return BlockArm(module, self.select, self.arms[0].start)

    def _placeholders(self) -> None:
        for at in self.select:
            self._input(str(self.source[at].target), spec_of(self.source[at]))
        hidden = spec_of(self.facts.hidden)
        assert hidden.shape is not None and hidden.dtype is not None and hidden.device is not None
        device = hidden.device

        def scalar(dtype: torch.dtype) -> InputSpec:
            return tensor_spec((), dtype, device)

        if self.facts.writes:
            self._input("filled", scalar(torch.int64))
            self._input("most", InputSpec(value=OFFSET))
        deciding = (hidden.shape[0],) if self.plan.rule.weighing.cfg_rows == "per_row" else (IMAGES,)
        self._input("best_rho", tensor_spec(deciding, torch.float32, device))
        if self.plan.score == "entropy":
            self._input("ranking", tensor_spec(hidden.shape[:2], torch.float32, device))
        self._input("rate", scalar(torch.float64))
        self._input("wanted_most", scalar(torch.float64))
        if self.plan.pruned is not None:
            self._input("count", InputSpec(value=KEPT))
        self._input("images", InputSpec(value=IMAGES))
        if self.plan.restored:
            self._input("restored", tensor_spec(hidden.shape, hidden.dtype, device))

    def _input(self, name: str, spec: InputSpec) -> None:
        self.inputs[name] = self.graph.placeholder(name)
        self.inputs[name].meta = {"toprovar_spec": spec}

    def _layout(self, operands: tuple[str, ...]) -> BranchLayout:
        read = {entry.node: entry.cache for entry in self.facts.reads}
        call = self.facts.attention
        assert call is not None
        caches = tuple(str(read[node].target) for node in (call.key, call.value)) if self.facts.writes else ()
        rho_of = self.plan.rule.weighing.cfg_rows if self.plan.whole.entropy else None
        return BranchLayout(
            operands, str(self.facts.hidden.target), caches, self.plan.pruned is not None, rho_of
        )

    @staticmethod
    def _count(layout: BranchLayout) -> int:
        return 1 + layout.keeps + (layout.rho_of is not None) + len(layout.caches)

    def _branch(
        self, layout: BranchLayout, operands: tuple[fx.Node, ...], prune: fx.Node, skip: fx.Node
    ) -> fx.Node:
        whole = WholeBranch(layout, clone_graph(self.arms[0].graph))
        skipped = SkippedBranch(layout, None)
        branches: tuple[Branch, Branch]
        if self.plan.pruned is None:
            chosen, branches = skip, (skipped, whole)
        else:
            otherwise = OtherwiseBranch(layout, skipped, whole) if self.plan.skips else whole
            chosen, branches = prune, (PrunedBranch(layout, clone_graph(self.arms[1].graph)), otherwise)
        self.modules = dict(zip(("chosen", "otherwise"), branches, strict=True))
        nodes = [self.graph.get_attr(name) for name in self.modules]
        return self.graph.call_function(cond, (chosen, *nodes, operands))

    def _write(self, layout: BranchLayout, hidden: fx.Node, rows: list[fx.Node]) -> None:
        if not rows:
            return
        slots = self.graph.call_function(_slots, (self.inputs["filled"], hidden))
        for name, new in zip(layout.caches, rows, strict=True):
            index = (slice(None), slice(None), slots)
            self.graph.call_function(operator.setitem, (self.inputs[name], index, new))


def _slots(filled: Tensor, hidden: Tensor) -> Tensor:
    """The cache rows of this scale, int64 [L]."""
    return filled + torch.arange(hidden.shape[1], device=hidden.device)


def _told(
    past: Tensor, skip: Tensor, prune: Tensor, hidden: Tensor, count: int | Tensor, keeps_rows: bool
) -> tuple[Tensor, Tensor]:
    """The branch that ran, and how many of the L rows its cache does not get; int64 [] each."""
    length = hidden.shape[1]
    kept = length if keeps_rows or isinstance(count, Tensor) else count
    branch = prune.long() + 2 * skip.long() + 3 * (~past).long()
    return branch, prune.long() * (length - kept) + skip.long() * length
