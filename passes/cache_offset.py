"""Pass `cache_offset`: every block takes the first cache row it writes as an input of its own.

The traced graph derives it from the token counts of the schedule. After pruning, layers hold different
numbers of rows, so the runtime passes each layer its own offset; without pruning it passes the traced one.
With a cache policy, blocks also return their queries, and the record says whose caches stay whole.
"""

from __future__ import annotations

from dataclasses import replace

from ..analysis.reasons import Fallback
from ..declaration import declare
from ..options import Options
from ..runtime.gates import DenseBlock
from .context import PassContext
from .row_plan import RowPlan
from .step import PassRecord, PassResult, Step


@declare(
    requires=("outline_blocks",),
    rewrites="understood blocks: the first cache row to write becomes an input (`DenseBlock`)",
    ensures="equal results as long as the traced offset is passed",
    price="one integer input per block; with a cache policy, its queries as a result",
    when="always",
)
def cache_offset(step: Step, options: Options, context: PassContext) -> PassResult:
    """Replace the understood blocks by `DenseBlock`.

    Requires: outlined blocks. Ensures: equal results as long as the traced offset is passed.
    """
    record = PassRecord("cache_offset")
    modules = {}
    for site in step.sites:
        if site.block.facts is not None:
            arm = context.arm(site.block, RowPlan())
            modules[site.name] = DenseBlock(site.layer, len(step.sites), options, arm)
            record.sites.append(site.layer)
            layout = context.cache_layout(site.block)
            if isinstance(layout, Fallback):
                record.fallbacks.append(replace(layout, layer=site.layer))
    record.modified = bool(modules)
    return PassResult(step.with_modules(modules) if modules else step, record)
