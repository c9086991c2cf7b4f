"""Pass `token_gather`: past the depth a block computes K tokens: gather, block, scatter, all by one index."""

from __future__ import annotations

from ..options import Options
from ..runtime.gates import ScaleDepthGate, TokenGate
from .attention_entropy import reads_entropy
from .context import PassContext
from .rows import GatherAt, RowPlan
from .step import PassRecord, PassResult, Step


def token_gather(step: Step, options: Options, context: PassContext) -> PassResult:
    """Make the late side of every depth gate a `TokenGate`.

    Requires: `scale_depth_gate`. Ensures: with all tokens kept, in any order, the dense result.
    """
    record = PassRecord("token_gather")
    modules = {}
    gathers = options.prune_tokens or options.keep is not None
    for site in step.sites if gathers else ():
        gate = step.module(site)
        if not isinstance(gate, ScaleDepthGate):
            continue
        where = GatherAt.BLOCK_INPUT if options.pruned_kv == "drop" else GatherAt.QUERY
        plan = RowPlan(where, restored=options.restore == "cache")
        tapped = None
        if reads_entropy(options) and options.entropy_source in ("previous_layer", "previous_scale"):
            scale_keys = options.entropy_keys == "scale"
            tapped = context.arm(site.block, RowPlan(where, plan.restored, entropy=True, scale_keys=scale_keys))
        late = TokenGate(
            site.layer,
            len(step.sites),
            options,
            gate.dense,
            gate.late,
            context.arm(site.block, plan),
            tapped,
            context.check,
        )
        modules[site.name] = gate.like(ScaleDepthGate, gate.early, late)
        record.sites.append(site.layer)
    record.modified = bool(modules)
    return PassResult(step.with_modules(modules) if modules else step, record)
