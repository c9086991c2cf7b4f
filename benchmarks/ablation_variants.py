"""The rows of the quality tables: named option sets, grouped by the question that they answer."""

from __future__ import annotations

from collections.abc import Mapping

Row = Mapping[str, object]

# The budget at which rankings and restorations are compared: the last scale keeps 20% of its tokens, the one
# before 50%, in all layers but the first two and the last.
BUDGET: Row = {"keep": {-1: 0.2, -2: 0.5}}
ALL_LAYERS: Row = {"layer_scope": "off", "prune_layers": False}

GROUPS: Mapping[str, Mapping[str, Row]] = {
    "presets": {name: {"preset": name} for name in ("lossless", "balanced", "fast", "literal")},
    "scales": {
        "last scale not run": {"preset": "lossless", "scale_exit": -1},
        "last two not run": {"preset": "lossless", "scale_exit": -2},
        "last three not run": {"preset": "lossless", "scale_exit": -3},
        "not run after online D": {"scale_exit": "depth", "prune_tokens": False, "prune_layers": False},
    },
    "axes": {
        "scale": {"prune_layers": False, "prune_tokens": False, "scale_exit": "depth"},
        "scale + token": {"prune_layers": False},
        "scale + layer": {"prune_tokens": False, "layer_skip_below": 0.5},
        "scale + layer + token": {},
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
        f"{score}, {share:.0%}": {"keep": {-1: share}, "score": score}
        for share in (0.5, 0.2, 0.1)
        for score in ("entropy", "frequency", "random")
    },
    "last scale exit, one before pruned": {
        f"{score}, {share:.0%}": {"keep": {-2: share}, "score": score, "scale_exit": -1}
        for share in (0.5, 0.25)
        for score in ("entropy", "frequency", "random")
    },
    "criterion": {
        "rank": {"normalise": "rank"},
        "min-max": {"normalise": "minmax"},
        "centred map": {"scope_centre": True, "beta": 1.0},
        "token matrix": {"scope_of": "tokens", "beta": 0.2},
        "rho <= tau": {"depth_compare": "le", "tau": 0.45},
        "bernoulli": {"sampling": "bernoulli"},
    },
}


def rows(groups: list[str] | None = None) -> dict[str, Row]:
    """All rows of the named groups as "group: row", or of all groups."""
    chosen = groups or list(GROUPS)
    return {f"{group}: {name}": row for group in chosen for name, row in GROUPS[group].items()}
