"""Who measures entropies so that tokens can be ranked: asked while a scale runs, and when one is priced."""

from __future__ import annotations

from collections.abc import Callable

from ..options import Options


def ranking_layer(options: Options, layers: int) -> int:
    """The one layer whose map ranks the tokens of all, with `ranking_depth`."""
    return round((options.ranking_depth or 0.0) * (layers - 1))


def ranks_others(
    options: Options,
    layer: int,
    layers: int,
    prunes: Callable[[int], bool],
    may_prune_next: Callable[[int], bool],
) -> bool:
    """Whether the entropies of `layer` at a scale rank the tokens of some layer.

    Args:
        options: the settings.
        layer: 0-based, out of `layers`.
        layers: number of layers of the model.
        prunes: whether a layer is pruned at this scale.
        may_prune_next: whether a layer may be pruned at the next scale.
    """
    if not options.scoring.reads_entropy:
        return False
    source = options.entropy_source
    if source == "previous_scale" and options.ranking_depth is None:
        return may_prune_next(layer)
    if source == "previous_scale":
        return layer == ranking_layer(options, layers) and any(map(may_prune_next, range(layers)))
    if source == "same_layer" or not any(prunes(later) for later in range(layer + 1, layers)):
        return False
    return source == "previous_layer" or (not prunes(layer) and prunes(layer + 1))


def ranking_taps(
    options: Options,
    scale: int,
    layers: int,
    prunes: Callable[[int], bool],
    may_prune_next: Callable[[int], bool],
) -> frozenset[int]:
    """Layers whose entropies rank tokens at a scale; none at the first, which has one token."""
    every = range(layers if scale else 0)
    return frozenset(layer for layer in every if ranks_others(options, layer, layers, prunes, may_prune_next))
