"""Named sets of option values.

A preset lists only what differs from the field defaults of :class:`toprovar_fx.options.Options`; options
that a caller names override the preset. ``balanced`` is the default; ``criterion`` is the bare fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

DEFAULT_PRESET = "balanced"

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
    # The scales after D are not run; D is read from the late layers at the last scale but one.
    "balanced": {
        "min_scale": -2,
        "scale_exit": "depth",
        "prune_layers": False,
        "prune_tokens": False,
    },
    # The last scale is not run; the one before keeps what the entropies of its predecessor find salient.
    "fast": {
        "min_scale": -3,
        "scale_exit": -1,
        "protected_layers_first": 0,
        "protected_layers_last": 0,
        "entropy_source": "previous_scale",
        "ranking_depth": 0.615,
        "beta": 0.005,
        "alpha_min": 0.45,
        "alpha_max": 1.0,
        "min_keep": 0.2,
        "buckets": (0.2, 0.3, 0.4, 0.5),
    },
    # The printed formulas: with a saliency that sums to 1 the token choice is nearly uniform.
    "literal": {
        "min_scale": 1,
        "beta": 1.0,
        "protected_layers_first": 0,
        "protected_layers_last": 0,
        "normalise": "literal",
        "sampling": "bernoulli",
        "entropy_source": "previous_scale",
        "restore": "residual",
        "cfg_rows": "per_row",
    },
}

PRESETS: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {name: MappingProxyType(values) for name, values in _PRESETS.items()}
)
