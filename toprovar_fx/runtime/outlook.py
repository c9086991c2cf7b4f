"""Which layers prune at the scale that runs, and which may at the next, as far as this one can know.

Causality decides what may be used: rho_s exists only after scale s has run, a layer's entropies only after
that layer's attention. So depth is decided for the scales after the one it was read at, and a pruned layer is
ranked by a map that is already there (`entropy_source`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..options import Options
from .deciders import Deciders
from .layer_memory import LayerMemory
from .rations import Rations
from .taps import ranks_others

if TYPE_CHECKING:
    from .generation import Generation


class Outlook:
    """Answers from the options, what decides, and what a budget leaves.

    Args:
        options: the settings.
        generation: the scale that runs.
        deciders: the policy, D and R.
        rations: what the budget leaves every layer; None without a budget.
        left: what layers left for tokens that they do not compute.
    """

    def __init__(
        self,
        options: Options,
        generation: Generation,
        deciders: Deciders,
        rations: Rations | None,
        left: LayerMemory,
    ) -> None:
        self._options, self._generation, self._deciders = options, generation, deciders
        self._rations, self._left = rations, left
        self._able: tuple[int, int, frozenset[int]] = (-1, 0, frozenset())

    def ratio(self, layer: int) -> float | None:
        """The explicit keep ratio of `layer` at this scale, given or solved for, or None."""
        if self._rations is not None:
            return self._rations.ratio(layer)
        return self._deciders.policy.keep_ratio(self._generation.scale, layer)

    def prunes(self, layer: int) -> bool:
        """Whether `layer` may compute fewer tokens at this scale."""
        return bool(self.pruning([layer]))

    def pruning(self, layers: Iterable[int]) -> list[int]:
        """Those of `layers` that may compute fewer tokens at this scale."""
        if self._options.by_entropies:
            pruned = self._pruned_here()
            return [layer for layer in layers if layer in pruned]
        able = [layer for layer in layers if self._is_able(layer)]
        ratios = [self.ratio(layer) for layer in able]
        others = None in ratios and self._deciders.policy.prunes(self._generation.scale)
        return [
            layer
            for layer, ratio in zip(able, ratios, strict=True)
            if (others if ratio is None else ratio < 1)
        ]

    def _is_able(self, layer: int) -> bool:
        """Whether a layer may be pruned, and left what tokens get that it does not compute."""
        restores = self._options.restore == "cache"
        return self._deciders.policy.is_open(layer) and (not restores or layer in self._left.updates)

    def _pruned_here(self) -> frozenset[int]:
        """Those that may be pruned at this scale, where no ratio is given; asked for again and again."""
        return self.able_here() if self._deciders.policy.prunes(self._generation.scale) else frozenset()

    def able_here(self) -> frozenset[int]:
        """Those that may be pruned at this scale if it is past the depth, which need not be known yet."""
        scale, layers = self._generation.scale, self._deciders.layers
        if self._able[:2] != (scale, layers):
            self._able = scale, layers, frozenset(filter(self._is_able, range(layers)))
        return self._able[2]

    def part_from(self, begin: int) -> range:
        """The layers from `begin` on whose K is known before any of them runs; most often all that follow.

        K of a layer behind one that is measured at this scale, to rank it, is known once that one has run.
        """
        options, layers = self._options, self._deciders.layers
        waits = options.ranks_by_dense_layer and options.by_entropies
        # Where all are measured, every layer is ranked by the one before it.
        if not waits or self._deciders.scope.wants_entropy(self._generation.scale):
            return range(begin, layers)
        pruned = self._pruned_here()
        ends = (layer for layer in range(begin + 1, layers) if layer in pruned and layer - 1 not in pruned)
        return range(begin, next(ends, layers))

    def taps(self, layer: int) -> bool:
        """Whether somebody needs the entropies of `layer` at this scale."""
        options, deciders, scale = self._options, self._deciders, self._generation.scale
        if not options.prunes or scale < 1:
            return False
        if deciders.depth.wants(layer, scale) or deciders.scope.wants_entropy(scale):
            return True
        return ranks_others(options, layer, deciders.layers, self.prunes, self.may_prune_next)

    def needs_update(self, layer: int) -> bool:
        """Whether the next scale may give the update of `layer` to tokens that it does not compute."""
        options = self._options
        shrinks = options.explicit or options.prune_tokens or options.layer_skip_below > 0
        wanted = options.prunes and shrinks and options.restore == "cache"
        return wanted and self.may_prune_next(layer)

    def may_prune_next(self, layer: int) -> bool:
        """Whether `layer` may be pruned at the next scale, as far as this scale can know."""
        policy, scale = self._deciders.policy, self._generation.scale
        coming = scale + 1
        beyond = coming >= len(self._generation.schedule)
        if beyond or self._deciders.depth.exits_for_certain(coming) or not policy.is_open(layer):
            return False
        if self._options.explicit:
            return self._may_be_explicit(coming, layer)
        return policy.may_prune(coming, scale)

    def _may_be_explicit(self, scale: int, layer: int) -> bool:
        """Whether a keep ratio below 1 is given, or may be solved for, at another scale."""
        if self._rations is not None:
            return self._rations.allows(scale, layer)
        ratio = self._deciders.policy.keep_ratio(scale, layer)
        return ratio is not None and ratio < 1
