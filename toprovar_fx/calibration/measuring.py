"""Options under which a model runs dense and every layer tells its entropies at every scale."""

from __future__ import annotations

from ..options import Options

# A depth that is never reached, and neither tokens nor layers to drop: every layer is tapped, none is pruned.
MEASURING: dict[str, object] = {
    "profile": None,
    "prune_scales": True,
    "prune_layers": True,
    "prune_tokens": False,
    "layer_skip_below": 0.0,
    "keep": None,
    "budget": None,
    "scale_exit": None,
    "depth": "online",
    "depth_scale": None,
    "depth_layers": "all",
    "depth_compare": "ge",
    "tau": 1.0,
    "min_scale": 1,
    "layer_scope": "online",
    "scope_values": None,
}


def measuring(options: Options) -> Options:
    """The same settings, with everything measured and nothing pruned."""
    return Options.parse({**options.as_dict(), **MEASURING})
