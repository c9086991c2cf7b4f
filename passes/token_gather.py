"""Pass `token_gather`: past the depth a block computes K tokens: gather, block, scatter, all by one index."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from ..analysis.reasons import Fallback, Reason, Unsupported, fallback_at
from ..declaration import declare
from ..options import Options
from ..runtime.gates import ScaleDepthGate
from ..runtime.token_gates import OwnEntropyGate, TokenGate
from .attention_entropy import reads_entropy
from .context import PassContext
from .row_plan import GatherAt, RowPlan
from .step import PassRecord, PassResult, Site, Step


def gathers_tokens(options: Options) -> bool:
    """Whether a layer may keep some of its tokens."""
    return options.prune_tokens or options.explicit


@declare(
    requires=("scale_depth_gate",),
    rewrites="the late side of depth gates: gather K tokens, block, scatter (`TokenGate`, `OwnEntropyGate`)",
    ensures="with all tokens kept, in any order, the dense result (checked when a graph first runs)",
    price="two copies of the K rows and one of all rows; one more graph to compile",
    when="`prune_tokens`, or `keep` is given",
    active=gathers_tokens,
)
def token_gather(step: Step, options: Options, context: PassContext) -> PassResult:
    """Make the late side of every depth gate a `TokenGate` (or an `OwnEntropyGate`).

    Requires: `scale_depth_gate`. Ensures: with all tokens kept, in any order, the dense result.
    """
    record = PassRecord("token_gather")
    modules: dict[str, nn.Module] = {}
    for site in step.sites if gathers_tokens(options) else ():
        gate = step.module(site)
        if not isinstance(gate, ScaleDepthGate):
            continue
        refusal = short_cache(site, "dropped tokens") if _drops_keys(options) else None
        if refusal is not None:
            record.fallbacks.append(refusal)
            continue
        rewrite = _own_entropy if _ranks_itself(options) else _known_tokens
        try:
            late = rewrite(gate, site, options, context)
        except Unsupported as verdict:
            record.fallbacks.append(verdict.at(site.layer))
            continue
        modules[site.name] = gate.like(ScaleDepthGate, gate.early, late)
        record.sites.append(site.layer)
    record.modified = bool(modules)
    return PassResult(step.with_modules(modules) if modules else step, record)


def short_cache(site: Site, what: str) -> Fallback | None:
    """Why this layer's cache may not be shortened: something pairs with the cached keys by position."""
    facts = site.block.facts
    node = None if facts is None else facts.position_of_keys
    if node is None:
        return None
    return fallback_at(Reason.MASKED_ATTENTION, node, f"{what} leave no keys for its columns", site.layer)


def _drops_keys(options: Options) -> bool:
    return options.pruned_kv == "drop" and not _ranks_itself(options)


def _ranks_itself(options: Options) -> bool:
    return options.score == "entropy" and options.entropy_source == "same_layer"


def _known_tokens(gate: ScaleDepthGate, site: Site, options: Options, context: PassContext) -> nn.Module:
    attends = site.block.facts is not None and site.block.facts.attention is not None
    where = GatherAt.QUERY if attends and options.pruned_kv == "keep" else GatherAt.BLOCK_INPUT
    plan = RowPlan(where, restored=options.restore == "cache")
    tapped = None
    if reads_entropy(options) and options.entropy_source in ("previous_layer", "previous_scale"):
        scale_keys = options.entropy_keys == "scale"
        tapped = context.arm(site.block, replace(plan, entropy=True, scale_keys=scale_keys))
    pruned = context.arm(site.block, plan)
    place = (site.layer, gate.layers, options, gate.dense, gate.late, pruned, context.check)
    return TokenGate(*place, tapped=tapped)


def _own_entropy(gate: ScaleDepthGate, site: Site, options: Options, context: PassContext) -> nn.Module:
    plan = RowPlan(GatherAt.ATTENTION_OUTPUT, restored=options.restore == "cache")
    rule = (options.cfg_rows, options.keep_low)
    selecting = replace(plan, entropy=True, scale_keys=options.entropy_keys == "scale", select=rule)
    pruned = context.arm(site.block, plan)
    place = (site.layer, gate.layers, options, gate.dense, gate.late, pruned, context.check)
    return OwnEntropyGate(*place, selecting=context.arm(site.block, selecting))
