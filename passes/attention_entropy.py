"""Pass `attention_entropy`: blocks can return every query's attention entropy as a second output (eq. 2)."""

from __future__ import annotations

from ..analysis.reasons import Unsupported
from ..declaration import declare
from ..options import Options
from ..runtime.gates import DenseBlock, EntropyTap
from .context import PassContext
from .row_plan import RowPlan
from .step import PassRecord, PassResult, Step


def reads_entropy(options: Options) -> bool:
    """Whether any decision under these options depends on entropies."""
    if not options.prunes:
        return False
    online_depth = not options.explicit and options.prune_scales and options.depth == "online"
    # A budget shares its tokens out by R.
    online_scope = options.keep is None and options.prune_layers and options.layer_scope == "online"
    measured = online_scope and options.scope_of == "entropy_map"
    return online_depth or measured or options.scoring.reads_entropy


@declare(
    requires=("cache_offset",),
    rewrites="understood blocks: a second graph that also returns every query's entropy (`EntropyTap`)",
    ensures="the hidden states are unchanged; nothing is computed where no tap is asked for",
    price="one product of queries and keys where it is asked for; one more graph to compile",
    when="a decision reads entropies: `depth='online'`, `layer_scope='online'`, or the score",
    active=reads_entropy,
)
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
                try:
                    tapped = context.arm(site.block, plan)
                except Unsupported as verdict:
                    record.fallbacks.append(verdict.at(site.layer))
                    continue
                tap = EntropyTap(site.layer, len(step.sites), options, dense.dense, dense, tapped)
                modules[site.name] = tap
                record.sites.append(site.layer)
    record.modified = bool(modules)
    return PassResult(step.with_modules(modules) if modules else step, record)
