"""The scale axis of one generation: the depth D, and the scales that are not run at all."""

from __future__ import annotations

import torch
from torch import Tensor

from ..criteria.depth import depth_from_ratios, join_depths, low_entropy_ratio
from ..criteria.rows import join_cfg_rows
from ..options import Options, resolve_index
from .ledger import Ledger


def watched_layers(options: Options, layers: int) -> frozenset[int]:
    """Layers whose entropies make rho, out of `layers`."""
    return frozenset(options.layers_for_depth(layers))


class DepthTracker:
    """Finds D (eq. 3) as the scales run, or takes the one that is set.

    rho_s exists only after scale s has run, so a depth found at s holds for the scales after it.

    Args:
        options: the settings.
        scales: S.
        images: B.
        ledger: takes rho and D.

    Attributes:
        depth: D, or None as long as it is not known.
        first: first scale at which D may fire, or D where it is set.
    """

    def __init__(self, options: Options, scales: int, images: int, ledger: Ledger) -> None:
        self.options, self._images, self._ledger = options, images, ledger
        # From the end, a short schedule simply starts at its first scale.
        self.first = options.min_scale if options.min_scale >= 0 else max(0, scales + options.min_scale)
        self.depth: int | None = None
        if options.depth == "fixed" and options.depth_scale is not None:
            self.depth = resolve_index("depth_scale", options.depth_scale, scales)
            self.first = self.depth if options.prune_scales else self.first
        wanted = options.scale_exit
        self._exit = resolve_index("scale_exit", wanted, scales) if isinstance(wanted, int) else None
        self._online = options.depth == "online" and options.prune_scales
        # Where keep ratios are given, D could only end the scales; reading rho would make the host wait.
        self._decides = not options.explicit or options.scale_exit == "depth"
        self._watched: frozenset[int] = frozenset()
        self._maps: list[Tensor] = []
        self._rho_by_scale: dict[int, list[float]] = {}
        ledger.depth = self.depth

    def adopt(self, layers: int) -> None:
        """Learn the number of layers."""
        self._watched = watched_layers(self.options, layers)

    @property
    def undecided(self) -> bool:
        """Whether D is still to be found."""
        return self._online and self.depth is None

    def wants(self, layer: int, scale: int) -> bool:
        """Whether rho of this scale needs the entropies of `layer`."""
        undecided = self.undecided and not self.options.explicit
        return undecided and scale >= self.first and layer in self._watched

    def observe(self, layer: int, scale: int, entropy: Tensor) -> None:
        """Take the entropies [R, L] of a layer."""
        if self._decides and layer in self._watched and scale >= self.first:
            self._maps.append(entropy)

    def _ratios(self) -> Tensor:
        """Rho of the layers at the scale that ran, [layers, B] or [layers, R], all computed at once."""
        joined = join_cfg_rows(torch.stack(self._maps, dim=1), self._images, self.options.cfg_rows)
        return low_entropy_ratio(joined).mT.contiguous()

    def end_scale(self, scale: int) -> None:
        """Make rho of the maps of the scale that ran, and see whether the depth is reached."""
        if self._maps and self.undecided:
            self._take(scale, self._ratios().mean(0).tolist())
        self._maps = []

    def _take(self, scale: int, rho: list[float]) -> None:
        self._rho_by_scale[scale] = rho
        self.depth = join_depths([self._depth_of(image, scale) for image in range(len(rho))])
        self._ledger.rho[scale] = sum(rho) / len(rho)
        self._ledger.depth = self.depth

    def _depth_of(self, image: int, scale: int) -> int | None:
        options = self.options
        never = 2.0 if options.depth_compare == "le" else -1.0
        known = {seen: rho[image] for seen, rho in self._rho_by_scale.items()}
        history = [known.get(seen, never) for seen in range(scale + 1)]
        return depth_from_ratios(history, options.tau, options.depth_compare, self.first)

    def beyond(self, scale: int) -> bool:
        """Whether `scale` lies past the depth, so that its layers may be pruned."""
        if not self.options.prune_scales:
            return self.options.prunes and scale >= self.first
        if self.depth is None:
            return False
        return scale > self.depth if self.options.prune_from == "after" else scale >= self.depth

    def exits_for_certain(self, scale: int) -> bool:
        """Whether `scale` is not run, whatever the entropies say."""
        return self._exit is not None and scale >= self._exit

    def exits(self, scale: int) -> bool:
        """Whether `scale` and all later ones are not run."""
        return self.exits_for_certain(scale) or (self.options.scale_exit == "depth" and self.beyond(scale))
