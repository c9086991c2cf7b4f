"""Pass `scale_depth_gate`: a block asks whether its scale is past the depth D (eq. 3) before it runs."""

from __future__ import annotations

from ..declaration import declare
from ..options import Options
from ..runtime.gates import Gate, ScaleDepthGate
from .context import PassContext
from .step import PassRecord, PassResult, Step


def gates_depth(options: Options) -> bool:
    """Whether any layer may compute fewer than all tokens."""
    fewer = options.prune_tokens or options.layer_skip_below > 0 or options.explicit
    return options.prunes and fewer


@declare(
    requires=("cache_offset",),
    rewrites="unprotected layers: what runs past the depth D may differ from what runs before it "
    "(`ScaleDepthGate`)",
    ensures="equal results until another pass changes the late side",
    price="one question to the controller per layer and scale, on the host",
    when="tokens or layers may be pruned, or `keep` is given",
    active=gates_depth,
)
def scale_depth_gate(step: Step, options: Options, context: PassContext) -> PassResult:
    """Put a `ScaleDepthGate` around every block that may be pruned; both of its sides are the block so far.

    Requires: `cache_offset`. Ensures: equal results until another pass changes the late side.
    """
    record = PassRecord("scale_depth_gate")
    modules = {}
    if gates_depth(options):
        first = options.protected_layers_first * step.parts
        end = len(step.sites) - options.protected_layers_last * step.parts
        for site in step.sites[first:]:
            module = step.module(site)
            if site.layer < end and isinstance(module, Gate):
                modules[site.name] = module.like(ScaleDepthGate, module, module)
                record.sites.append(site.layer)
    record.modified = bool(modules)
    return PassResult(step.with_modules(modules) if modules else step, record)
