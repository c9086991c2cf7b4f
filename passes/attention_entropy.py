"""Pass `attention_entropy`: blocks can return every query's attention entropy as a second output (eq. 2)."""

from __future__ import annotations

from ..options import Options
from ..runtime.gates import DenseBlock, EntropyTap
from .context import PassContext
from .rows import RowPlan
from .step import PassRecord, PassResult, Step


def attention_entropy(step: Step, options: Options, context: PassContext) -> PassResult:
    """Put an `EntropyTap` around every dense block whose entropies the options can ask for.

    Requires: `cache_offset`. Ensures: the hidden states are unchanged; nothing is computed where no tap is
        asked for.
    """
    record = PassRecord("attention_entropy")
    modules = {}
    if reads_entropy(options):
        plan = RowPlan(entropy=True, scale_keys=options.entropy_keys == "scale")
        for site in step.sites:
            dense = step.module(site)
            if isinstance(dense, DenseBlock):
                tap = EntropyTap(
                    site.layer, len(step.sites), options, dense.dense, dense, context.arm(site.block, plan)
                )
                modules[site.name] = tap
                record.sites.append(site.layer)
    record.modified = bool(modules)
    return PassResult(step.with_modules(modules) if modules else step, record)


def reads_entropy(options: Options) -> bool:
    """Whether any decision under these options depends on entropies."""
    if not options.prunes:
        return False
    criterion = options.keep is None
    online_depth = criterion and options.prune_scales and options.depth == "online"
    online_scope = criterion and options.prune_layers and options.layer_scope == "online"
    return online_depth or (online_scope and options.scope_of == "entropy_map") or options.score == "entropy"
