"""What `gate="graph"` comes to under these options: tokens or branches chosen in the graph, or why not."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..options import Options


class GraphGates(enum.Enum):
    """What a layer's graph decides by itself.

    TOKENS: which K tokens it keeps; K is known before it runs (`keep`).
    BRANCHES: whether it runs whole, on K tokens or not at all (`torch.cond`), and which tokens.
    NOTHING: nothing is left to decide: no gates, or a graph that ranks by its own entropies anyway.
    """

    TOKENS = enum.auto()
    BRANCHES = enum.auto()
    NOTHING = enum.auto()


def graph_gates(options: Options) -> GraphGates | str:
    """What graphs decide under `options` with `gate="graph"`, or why the host has to.

    Shapes inside a graph are fixed before it runs, so one layer and scale must have one count K.
    """
    if not options.prunes or not (options.explicit or options.prune_tokens or options.layer_skip_below > 0):
        return GraphGates.NOTHING
    return _why_not(options) or _granted(options)


def _granted(options: Options) -> GraphGates:
    if not options.explicit:
        return GraphGates.BRANCHES
    return GraphGates.NOTHING if options.entropy_source == "same_layer" else GraphGates.TOKENS


def _why_not(options: Options) -> str | None:
    if not options.by_criterion:
        return f"policy={options.policy!r} is asked on the host"
    if options.compacts:
        return f"cache_policy={options.cache_policy!r} chooses cached rows on the host"
    if options.budget is not None:
        return "a budget solves K from R, which it reads back"
    if options.sampling != "topk":
        return f"sampling={options.sampling!r} draws on the host"
    if options.score not in ("entropy", "frequency"):
        return f"score={options.score!r} is computed on the host"
    return None if options.explicit else _why_no_branches(options)


def _why_no_branches(options: Options) -> str | None:
    several = [bucket for bucket in options.buckets if bucket < 1]
    if options.prune_tokens and len(several) > 1:
        return f"K depends on data: {len(several)} buckets below 1, expected one"
    if options.guidance_until is not None:
        return "guidance_until changes the rows between scales"
    if options.scale_exit == "depth":
        return "scale_exit='depth' makes D decide which scales the host runs"
    if options.score == "frequency":
        return None
    if options.entropy_source != "dense_layer":
        source = f"entropy_source={options.entropy_source!r}"
        return f"{source} ranks by a map that depends on earlier branches, expected 'dense_layer'"
    if options.protected_layers_first < 1:
        return "the ranking map has to come from a layer that is never pruned (protected_layers_first >= 1)"
    return None
