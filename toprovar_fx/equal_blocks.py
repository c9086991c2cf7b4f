"""A step that stays dense, with the blocks that are alike compiled once for all layers.

Compiled whole, the step of one token takes Inductor a second per layer, for code that says the same of each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from .analysis.reasons import Unsupported
from .lowering.constant_floats import hold_floats, with_constant_floats
from .lowering.hand_on_norms import hand_on_norms
from .lowering.region import Region
from .lowering.region_calls import RegionCalls
from .lowering.rest import RegionCall, lower_calls
from .options import Options
from .passes.outline_blocks import outline_unread_blocks
from .runtime.failures import on_failure


def by_equal_blocks(
    gm: fx.GraphModule, options: Options, lowering: str
) -> tuple[Callable[..., Any], list[Region]] | None:
    """The graph as calls of its blocks and of what lies behind them; None if no two blocks are alike.

    Args:
        gm: Dynamo's graph; where the result is used, the values of its floats are guarded.
        options: settings.
        lowering: of the blocks, "eager" or "inductor".

    Returns:
        A function that takes and returns what `gm` does, and the regions that it calls.
    """
    try:
        step = outline_unread_blocks(with_constant_floats(gm))
    except Unsupported:
        return None
    graphs = {site.name: site.block.graph for site in step.sites}
    if len({id(graph) for graph in graphs.values()}) == len(graphs):
        return None
    hold_floats(gm)
    static, failed = options.step_sizes == "static", on_failure(options)

    def lower(name: str, graph: fx.GraphModule) -> Region:
        what = "block, dense" if name in graphs else f"outside the blocks: {name}"
        return Region(graph, lowering, name=what, static=static, on_failure=failed)

    regions = lower_calls(step.graph, lower, RegionCall)
    _hand_on_norms(step.graph)
    parts = [variant for region in dict.fromkeys(regions) for variant in region.variants]
    return step.graph.forward, parts


def _hand_on_norms(step: fx.GraphModule) -> None:
    def region_of(node: fx.Node) -> Region | None:
        module = getattr(step, str(node.target)) if node.op == "call_module" else None
        return module.region if isinstance(module, RegionCall) else None

    def name_of(region: Region) -> str:
        name = f"region_{id(region)}"
        if not hasattr(step, name):
            setattr(step, name, RegionCall(region))
        return name

    if hand_on_norms(RegionCalls(step.graph, region_of, name_of)):
        step.recompile()
