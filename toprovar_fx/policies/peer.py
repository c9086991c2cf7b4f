"""What the policies of other methods share: no entropies, and constants that no preset shines through."""

from __future__ import annotations

from collections.abc import Mapping

# Every option that a preset sets. A peer names those that differ.
_NEUTRAL: dict[str, object] = {
    "prune_scales": False,
    "prune_layers": False,
    "prune_tokens": True,
    "depth": "off",
    "layer_scope": "off",
    "min_scale": -3,
    "scale_exit": None,
    "budget_order": "even",
    "keep": None,
    "beta": 0.02,
    "protected_layers_first": 0,
    "protected_layers_last": 0,
    "score": "random",
    "normalise": "mean",
    "sampling": "topk",
    "entropy_source": "dense_layer",
    "ranking_depth": None,
    "restore": "cache",
    "pruned_kv": "drop",
    "cfg_rows": "shared",
}


def constants(**published: object) -> Mapping[str, object]:
    """The option values of a peer: what it published, and neutral values for the rest."""
    return {**_NEUTRAL, **published}
