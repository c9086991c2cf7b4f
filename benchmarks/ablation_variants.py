"""The rows of the quality tables: named option sets, grouped by the question that they answer."""

from __future__ import annotations

from collections.abc import Mapping

Row = Mapping[str, object]

# The budget at which rankings and restorations are compared: the last scale keeps 20% of its tokens, the one
# before 50%, in all layers but the first two and the last; the second of them ranks.
DENSE: Row = {"entropy_source": "dense_layer"}
BUDGET: Row = {"preset": "criterion", **DENSE, "keep": {-1: 0.2, -2: 0.5}}
# The three axes: D from the last scale but two, tokens ranked by one middle layer's map of the scale before.
BASE: Row = {"preset": "criterion", "entropy_source": "previous_scale", "ranking_depth": 0.615, "beta": 0.005}
RANKED: Row = {"entropy_source": "previous_scale", "ranking_depth": 0.615}
OPEN: Row = {"preset": "criterion", "protected_layers_first": 0, "protected_layers_last": 0}
ONE_LAYER: Mapping[str, Row] = {
    "entropy": {**OPEN, **RANKED},
    "frequency": {**OPEN, "score": "frequency"},
    "random": {**OPEN, "score": "random"},
}

# Candidates for the presets `balanced` and `fast`, compared on the split "tune". All of them are listed in
# docs/results.md, the bad ones too.
RANKERS: Mapping[str, Row] = {
    **{
        f"entropy of layer {layer}": {**OPEN, **RANKED, "ranking_depth": layer / 13}
        for layer in (6, 8, 9, 10, 12)
    },
    "own entropy": {**OPEN, "entropy_source": "previous_scale"},
    "frequency": {**OPEN, "score": "frequency"},
    "random": {**OPEN, "score": "random"},
}
FEW = {name: RANKERS[name] for name in ("entropy of layer 8", "frequency", "random")}
BUDGETS: Mapping[str, Row] = {
    "24x24 at 30%": {"keep": {-2: 0.3}, "scale_exit": -1},
    "24x24 at 20%": {"keep": {-2: 0.2}, "scale_exit": -1},
    "24x24 at 15%": {"keep": {-2: 0.15}, "scale_exit": -1},
    "24x24 at 10%": {"keep": {-2: 0.1}, "scale_exit": -1},
    "24x24 at 30%, 16x16 at 75%": {"keep": {-3: 0.75, -2: 0.3}, "scale_exit": -1},
    "24x24 at 20%, 16x16 at 60%": {"keep": {-3: 0.6, -2: 0.2}, "scale_exit": -1},
    "32x32 at 5%, 24x24 at 20%": {"keep": {-2: 0.2, -1: 0.05}},
    "32x32 at 10%": {"keep": {-1: 0.1}},
    "32x32 at 5%": {"keep": {-1: 0.05}},
    "32x32 at 10%, 24x24 at 50%": {"keep": {-1: 0.1, -2: 0.5}},
    "32x32 at 10%, 24x24 at 75%": {"keep": {-1: 0.1, -2: 0.75}},
    "32x32 at 5%, 24x24 at 75%": {"keep": {-1: 0.05, -2: 0.75}},
}
CANDIDATES: Mapping[str, Row] = {
    **{
        f"{budget}, {ranker}": {**row, **BUDGETS[budget]} for budget in BUDGETS for ranker, row in FEW.items()
    },
    **{
        f"24x24 at 30%, {ranker}": {**row, **BUDGETS["24x24 at 30%"]}
        for ranker, row in RANKERS.items()
        if ranker not in FEW
    },
    "24x24 skipped": {**FEW["random"], "keep": {-2: 0.0}, "scale_exit": -1},
    "32x32 skipped": {**FEW["random"], "keep": {-1: 0.0}},
    "24x24 at 30%, residual": {**FEW["entropy of layer 8"], **BUDGETS["24x24 at 30%"], "restore": "residual"},
    "24x24 at 30%, high": {**FEW["entropy of layer 8"], **BUDGETS["24x24 at 30%"], "keep_low": False},
    "24x24 at 30%, K/V kept": {**FEW["entropy of layer 8"], **BUDGETS["24x24 at 30%"], "pruned_kv": "keep"},
    "24x24 at 50% in every other layer": {
        **FEW["entropy of layer 8"],
        "keep": {-2: {layer: 0.5 * (layer % 2) for layer in range(14)}},
        "scale_exit": -1,
    },
}

# Tokens, cached rows and guidance rows at equal FLOPs: what one axis saves, the budget spends on tokens.
AXES: Mapping[str, Row] = {
    "tokens": {},
    "tokens, hack": {"cache_policy": "hack"},
    "tokens, scalekv": {"cache_policy": "scalekv"},
    "tokens, guidance": {"guidance_until": -2},
    "tokens, hack, guidance": {"cache_policy": "hack", "guidance_until": -2},
    "tokens, scalekv, guidance": {"cache_policy": "scalekv", "guidance_until": -2},
}
ALONE: Mapping[str, Row] = {
    "hack": {"preset": "lossless", "cache_policy": "hack"},
    "scalekv": {"preset": "lossless", "cache_policy": "scalekv"},
    "guidance, last scale": {"preset": "lossless", "guidance_until": -1},
    "guidance, last two": {"preset": "lossless", "guidance_until": -2},
    "scalekv, guidance": {"preset": "lossless", "cache_policy": "scalekv", "guidance_until": -2},
}
COMBINATION: Mapping[str, Row] = {
    **ALONE,
    **{
        f"{axes} at {budget:g}x": {**OPEN, **FEW["random"], **row, "budget": budget}
        for budget in (1.5, 2.0, 3.0, 4.0)
        for axes, row in AXES.items()
    },
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
    "online": {
        "last dense layer": {"preset": "criterion", **DENSE},
        "own layer, scale before": {"preset": "criterion", "entropy_source": "previous_scale"},
        "random": {"preset": "criterion", "policy": "random"},
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
    "last scale exit and one before pruned": {
        f"{score}, {share:.0%}": {**ONE_LAYER[score], "keep": {-2: share}, "scale_exit": -1}
        for share in (0.5, 0.25)
        for score in ("entropy", "frequency", "random")
    },
    "candidates": CANDIDATES,
    "combination": COMBINATION,
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
    """All rows of the named groups as "group: row", or of all groups but the candidates."""
    chosen = groups or [name for name in GROUPS if name != "candidates"]
    return {f"{group}: {name}": row for group in chosen for name, row in GROUPS[group].items()}
