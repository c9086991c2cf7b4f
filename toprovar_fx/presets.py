"""Named sets of option values.

A preset lists only what differs from the field defaults of :class:`toprovar_fx.options.Options`; options
that a caller names override the preset. ``balanced`` is the default; ``criterion`` is the bare fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

DEFAULT_PRESET = "balanced"

# Settings of `toprovar tune`, which makes no layer dense for its place.
_TUNED: dict[str, object] = {"protected_layers_first": 0, "protected_layers_last": 0}

_PRESETS: dict[str, dict[str, object]] = {
    # The compiled model computes what the eager model computes: no axis is pruned.
    "lossless": {
        "prune_scales": False,
        "prune_layers": False,
        "prune_tokens": False,
        "depth": "off",
        "layer_scope": "off",
    },
    # All three axes with the repaired formulas: the bare field defaults, a base for settings of one's own.
    "criterion": {},
    # `toprovar tune --target 3x` on the demo model (docs/results.md): the two largest scales compute their
    # salient tokens, ranked by the entropies of one middle layer, of the scale before.
    "balanced": {
        **_TUNED,
        "keep": {-2: 0.5416, -1: 0.1083},
        "ranking_depth": 0.615,
    },
    # `toprovar tune --target 5x`: the last scale is not run, the one before computes the tokens furthest from
    # the map's mean.
    "fast": {**_TUNED, "keep": {-2: 0.1596}, "scale_exit": -1, "score": "frequency"},
    # The printed formulas: with a saliency that sums to 1 the token choice is nearly uniform.
    "literal": {
        "min_scale": 1,
        "beta": 1.0,
        "protected_layers_first": 0,
        "protected_layers_last": 0,
        "normalise": "literal",
        "sampling": "bernoulli",
        "restore": "residual",
        "cfg_rows": "per_row",
    },
}

PRESETS: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {name: MappingProxyType(values) for name, values in _PRESETS.items()}
)
