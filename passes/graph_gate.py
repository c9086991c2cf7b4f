"""Pass `graph_gate`: with `gate="graph"`, what the gates of a layer decide moves into its graph."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from ..analysis.reasons import Fallback, Reason, Unsupported
from ..criteria.decision import DecisionRule
from ..declaration import declare
from ..options import Options
from ..policies.graph_support import GraphGates, graph_gates
from ..runtime.depth import watched_layers
from ..runtime.gates import LayerSkipGate, ScaleDepthGate
from ..runtime.graph_gate import GraphGate
from ..runtime.selecting_gate import SelectingGate
from ..runtime.token_gates import TokenGate
from .branch_graph import BranchPlan
from .context import PassContext
from .functional_rows import refuse_indirect
from .row_plan import GatherAt, RowPlan
from .step import PassRecord, PassResult, Site, Step


def decides_in_graph(options: Options) -> bool:
    """Whether a graph is to decide something that the host would decide otherwise."""
    granted = graph_gates(options)
    return options.gate == "graph" and isinstance(granted, GraphGates) and granted is not GraphGates.NOTHING


@declare(
    requires=("scale_depth_gate",),
    rewrites="the gates of unprotected layers: the graph of a layer finds its K tokens (`SelectingGate`), or "
    "branches by `torch.cond` (`GraphGate`)",
    ensures="the same decisions and results as with the gates on the host",
    price="the selection in every graph that gathers; with branches a copy of the cached rows, and longer "
    "compilation",
    when="`gate='graph'`, and every layer and scale has one K",
    active=decides_in_graph,
)
def graph_gate(step: Step, options: Options, context: PassContext) -> PassResult:
    """Replace the gates that the options let a graph decide; say why where they do not.

    Requires: `scale_depth_gate`, and the gates that `token_gather` and `layer_skip` put on its late side.
    Ensures: the same decisions and results.
    """
    record = PassRecord("graph_gate")
    if options.gate == "host":
        return PassResult(step, record)
    granted = graph_gates(options)
    if not isinstance(granted, GraphGates):
        record.fallbacks.append(Fallback(Reason.GATE_ON_HOST, detail=granted))
        return PassResult(step, record)
    if granted is GraphGates.BRANCHES:
        record.fallbacks += _refused(step)
        if record.fallbacks:
            return PassResult(step, record)
    modules: dict[str, nn.Module] = {}
    for site in step.sites:
        gate = step.module(site)
        made = gate
        if granted is GraphGates.TOKENS and isinstance(gate, ScaleDepthGate):
            late = _selecting(gate.late, site, options, context)
            made = gate if late is gate.late else gate.like(ScaleDepthGate, gate.early, late)
        elif granted is GraphGates.BRANCHES and isinstance(gate, ScaleDepthGate):
            made = _branching(gate, site, options, context)
        if made is not gate:
            modules[site.name] = made
            record.sites.append(site.layer)
    record.modified = bool(modules)
    return PassResult(step.with_modules(modules) if modules else step, record)


def _selecting(late: nn.Module, site: Site, options: Options, context: PassContext) -> nn.Module:
    """The late side with its token gate replaced."""
    if isinstance(late, LayerSkipGate):
        kept = _selecting(late.kept, site, options, context)
        return late if kept is late.kept else late.like(LayerSkipGate, kept)
    if type(late) is not TokenGate:
        return late
    plan = selecting_plan(options)
    tapped = None
    if late.tapped is not None:
        telling = replace(plan, entropy=True, scale_keys=options.entropy_keys == "scale")
        tapped = context.arm(site.block, telling)
    place = (late.layer, late.layers, options, late.dense, late.whole, late.pruned, late.check)
    selecting = context.arm(site.block, plan)
    return SelectingGate(*place, tapped=late.tapped, selecting=selecting, selecting_tapped=tapped)


def _refused(step: Step) -> list[Fallback]:
    """Layers whose graphs cannot branch; one is enough to leave all decisions to the host."""
    found = []
    for site in step.sites:
        if site.block.facts is not None and isinstance(step.module(site), ScaleDepthGate):
            try:
                refuse_indirect(site.block.facts)
            except Unsupported as verdict:
                found.append(replace(verdict.fallback, layer=site.layer))
    return found


def _branching(gate: ScaleDepthGate, site: Site, options: Options, context: PassContext) -> GraphGate:
    own_keys = options.entropy_keys == "scale"
    watched = options.prune_scales and options.depth == "online"
    watched = watched and site.layer in watched_layers(options, gate.layers)
    prunes = options.prune_tokens and options.buckets[0] < 1
    rows = selecting_plan(options)
    plan = BranchPlan(
        rule=_rule(options),
        whole=RowPlan(entropy=watched, scale_keys=own_keys and watched),
        pruned=replace(rows, ranking="given") if prunes else None,
        skips=options.layer_skip_below > 0,
        restored=rows.restored,
        score=options.score,
        keeps_rows=options.pruned_kv == "keep",
    )
    given = context.arm(site.block, replace(rows, select=None, ranking=None)) if prunes else None
    place = (site.layer, gate.layers, options, gate.dense)
    return GraphGate(*place, gate.early, gate, given, context.check, context.branched(site.block, plan))


def _rule(options: Options) -> DecisionRule:
    return DecisionRule(options.tau, options.depth_compare, options.layer_skip_below, options.weighing)


def selecting_plan(options: Options) -> RowPlan:
    """Rows of a graph that finds its K tokens itself."""
    where = GatherAt.BLOCK_INPUT if options.pruned_kv == "drop" else GatherAt.QUERY
    scoring = options.scoring
    ranking = "given" if scoring.reads_entropy else "frequency"
    rule = (options.cfg_rows, scoring.keeps_low(options.keep_low))
    return RowPlan(where, restored=options.restore == "cache", select=rule, ranking=ranking)
