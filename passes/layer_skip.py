"""Pass `layer_skip`: past the depth a layer that keeps no token (K = 0) does not run at all."""

from __future__ import annotations

from ..declaration import declare
from ..options import Options
from ..runtime.gates import LayerSkipGate, ScaleDepthGate
from .context import PassContext
from .scale_depth_gate import gates_depth
from .step import PassRecord, PassResult, Step
from .token_gather import short_cache


def skips_layers(options: Options) -> bool:
    """Whether a layer may keep no token at all."""
    if options.layer_skip_below > 0:
        return gates_depth(options)
    ratios = [ratio for _, ratio in options.keep or ()]
    return any(ratio == 0 or (isinstance(ratio, tuple) and any(r == 0 for _, r in ratio)) for ratio in ratios)


@declare(
    requires=("scale_depth_gate",),
    rewrites="the late side of depth gates: a layer with K = 0 does not run (`LayerSkipGate`)",
    ensures="no change for a layer that keeps at least one token",
    price="one addition, or a copy, of the hidden state",
    when="`layer_skip_below` is above 0, or `keep` holds a 0",
    active=skips_layers,
)
def layer_skip(step: Step, options: Options, context: PassContext) -> PassResult:
    """Put a `LayerSkipGate` around the late side of every depth gate where the options allow K = 0.

    Requires: `scale_depth_gate`. Ensures: no change for a layer that keeps at least one token.
    """
    record = PassRecord("layer_skip")
    modules = {}
    for site in step.sites if skips_layers(options) else ():
        gate = step.module(site)
        refusal = short_cache(site, "skipped layers")
        if isinstance(gate, ScaleDepthGate) and refusal is not None:
            record.fallbacks.append(refusal)
        elif isinstance(gate, ScaleDepthGate):
            modules[site.name] = gate.like(ScaleDepthGate, gate.early, gate.like(LayerSkipGate, gate.late))
            record.sites.append(site.layer)
    record.modified = bool(modules)
    return PassResult(step.with_modules(modules) if modules else step, record)
