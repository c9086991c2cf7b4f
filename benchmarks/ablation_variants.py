"""The rows of the quality tables: named option sets, grouped by the question that they answer."""

from __future__ import annotations

from collections.abc import Mapping

Row = Mapping[str, object]

# The budget at which rankings and restorations are compared: the last scale keeps 20% of its tokens, the one
# before 50%, in all layers but the first two and the last.
BUDGET: Row = {"preset": "criterion", "keep": {-1: 0.2, -2: 0.5}}
# The three axes: D from the last scale but two, tokens ranked by one middle layer's map of the scale before.
BASE: Row = {"preset": "criterion", "entropy_source": "previous_scale", "ranking_depth": 0.615, "beta": 0.005}
RANKED: Row = {"entropy_source": "previous_scale", "ranking_depth": 0.615}
OPEN: Row = {"preset": "criterion", "protected_layers_first": 0, "protected_layers_last": 0}
ONE_LAYER: Mapping[str, Row] = {
    "entropy": {**OPEN, **RANKED},
    "frequency": {**OPEN, "score": "frequency"},
    "random": {**OPEN, "score": "random"},
}

GROUPS: Mapping[str, Mapping[str, Row]] = {
    "presets": {name: {"preset": name} for name in ("lossless", "balanced", "fast", "criterion", "literal")},
    "scales": {
        "last scale not run": {"preset": "lossless", "scale_exit": -1},
        "last two not run": {"preset": "lossless", "scale_exit": -2},
        "last three not run": {"preset": "lossless", "scale_exit": -3},
    },
    "axes": {
        "scale": {**BASE, "prune_layers": False, "prune_tokens": False, "scale_exit": "depth"},
        "scale + token": {**BASE, "prune_layers": False},
        "scale + layer": {**BASE, "prune_tokens": False, "layer_skip_below": 0.5},
        "scale + layer + token": BASE,
    },
    "ranking": {
        "low entropy": {**BUDGET},
        "high entropy": {**BUDGET, "keep_low": False},
        "frequency": {**BUDGET, "score": "frequency"},
        "random": {**BUDGET, "score": "random"},
    },
    "sources": {
        "previous layer": {**BUDGET, "entropy_source": "previous_layer"},
        "previous scale": {**BUDGET, "entropy_source": "previous_scale"},
        "same layer": {**BUDGET, "entropy_source": "same_layer"},
        "one middle layer, previous scale": {**BUDGET, **RANKED},
        "entropy over own scale": {**BUDGET, "entropy_keys": "scale"},
        "late dense layer": {**BUDGET, "protected_layers_first": 5},
        "random, 5 first layers dense": {**BUDGET, "protected_layers_first": 5, "score": "random"},
        "frequency, 5 first layers dense": {**BUDGET, "protected_layers_first": 5, "score": "frequency"},
    },
    "restoration": {
        "low entropy, residual": {**BUDGET, "restore": "residual"},
        "frequency, residual": {**BUDGET, "score": "frequency", "restore": "residual"},
        "low entropy, K/V kept": {**BUDGET, "pruned_kv": "keep"},
        "frequency, K/V kept": {**BUDGET, "score": "frequency", "pruned_kv": "keep"},
    },
    "rows": {
        "conditional row decides": {**BUDGET, "cfg_rows": "cond"},
        "each row its own": {**BUDGET, "cfg_rows": "per_row"},
        "each row its own, frequency": {**BUDGET, "cfg_rows": "per_row", "score": "frequency"},
    },
    "last scale only": {
        f"{score}, {share:.0%}": {**ONE_LAYER[score], "keep": {-1: share}}
        for share in (0.5, 0.2, 0.1)
        for score in ("entropy", "frequency", "random")
    },
    "last scale exit, one before pruned": {
        f"{score}, {share:.0%}": {**ONE_LAYER[score], "keep": {-2: share}, "scale_exit": -1}
        for share in (0.5, 0.25)
        for score in ("entropy", "frequency", "random")
    },
    # Tried while choosing `fast`; `docs/results.md` lists all of them, the bad ones too.
    "fast tried": {
        "frequency": {"preset": "fast", "score": "frequency"},
        "middle layer 10": {"preset": "fast", "ranking_depth": 0.77},
        "own maps": {"preset": "fast", "ranking_depth": None},
        "own maps, layers skipped": {"preset": "fast", "ranking_depth": None, "layer_skip_below": 0.3},
        "one scale earlier": {"preset": "fast", "min_scale": -4},
        "earlier, own maps": {"preset": "fast", "ranking_depth": None, "min_scale": -4},
        "earlier, frequency": {"preset": "fast", "min_scale": -4, "score": "frequency"},
        "earlier, random": {"preset": "fast", "min_scale": -4, "score": "random"},
        "explicit 30%, 60%": {"preset": "fast", "keep": {-2: 0.3, -3: 0.6}},
        "explicit 40%, 75%": {"preset": "fast", "keep": {-2: 0.4, -3: 0.75}},
    },
    "criterion": {
        "rank": {**BASE, "normalise": "rank"},
        "min-max": {**BASE, "normalise": "minmax"},
        "centred map": {**BASE, "scope_centre": True, "beta": 1.0},
        "token matrix": {**BASE, "scope_of": "tokens", "beta": 0.2},
        "rho <= tau": {**BASE, "depth_compare": "le", "tau": 0.45},
        "bernoulli": {**BASE, "sampling": "bernoulli"},
    },
}


def rows(groups: list[str] | None = None) -> dict[str, Row]:
    """All rows of the named groups as "group: row", or of all groups."""
    chosen = groups or list(GROUPS)
    return {f"{group}: {name}": row for group in chosen for name, row in GROUPS[group].items()}
