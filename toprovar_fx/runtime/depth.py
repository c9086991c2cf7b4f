"""The scale axis of one generation: the depth D, and the scales that are not run at all."""

from __future__ import annotations

import torch
from torch import Tensor

from ..criteria.depth import depth_from_ratios, join_depths, low_entropy_ratio
from ..criteria.rows import Rule, join_cfg_rows
from ..option_sizes import refuse_other_scales, resolve_index
from ..options import Options
from ..readback import Reading, ReadingPart
from .ledger import Ledger
from .recorded_function import RecordedFunction


def watched_layers(options: Options, layers: int) -> frozenset[int]:
    """Layers whose entropies make rho, out of `layers`."""
    return frozenset(options.layers_for_depth(layers))


def rho_of_maps(maps: Tensor, images: int, rule: Rule) -> tuple[Tensor, Tensor]:
    """Rho of the entropy maps [R, N, L] of N layers: by layer, [N, B] or [N, R], and its mean over them."""
    ratios = low_entropy_ratio(join_cfg_rows(maps, images, rule)).mT.contiguous()
    return ratios, ratios.mean(0)


class DepthTracker:
    """Finds D (eq. 3) as the scales run, or takes the one that is set.

    rho_s exists only after scale s has run, so a depth found at s holds for the scales after it. It is read
    when somebody asks for D, not before: until then the host runs ahead of the device.

    Args:
        options: the settings.
        scales: S.
        images: B.
        ledger: takes rho and D.

    Attributes:
        first: first scale at which D may fire, or D where it is set.
        measure: `rho_of_maps`, recorded where the device can: it is many small kernels.
    """

    def __init__(self, options: Options, scales: int, images: int, ledger: Ledger) -> None:
        self.options, self._images, self._ledger = options, images, ledger
        refuse_other_scales(options, scales)
        # From the end, a short schedule simply starts at its first scale.
        self.first = options.min_scale if options.min_scale >= 0 else max(0, scales + options.min_scale)
        self._depth: int | None = None
        if options.depth == "fixed" and options.depth_scale is not None:
            self._depth = resolve_index("depth_scale", options.depth_scale, scales)
            self.first = self._depth if options.prune_scales else self.first
        wanted = options.scale_exit
        self._exit = resolve_index("scale_exit", wanted, scales) if isinstance(wanted, int) else None
        self._online = options.depth == "online" and options.prune_scales
        # Where keep ratios are given, D could only end the scales; reading rho would make the host wait.
        self._decides = not options.explicit or options.scale_exit == "depth"
        self._watched: frozenset[int] = frozenset()
        self._maps: list[Tensor] = []
        self._rho_by_scale: dict[int, list[float]] = {}
        self._arriving: tuple[int, Reading | ReadingPart] | None = None
        self._told: ReadingPart | None = None
        self.measure = RecordedFunction(rho_of_maps, None)
        ledger.depth = self._depth

    def adopt(self, layers: int) -> None:
        """Learn the number of layers."""
        self._watched = watched_layers(self.options, layers)

    @property
    def depth(self) -> int | None:
        """D, or None as long as it is not known; waits for the scale that ran last."""
        self._arrive()
        return self._depth

    @property
    def waits(self) -> bool:
        """Whether who asks for D has to wait for the device."""
        return self._arriving is not None and not self._arriving[1].arrived

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

    def _rho(self) -> tuple[Tensor, ...]:
        """`rho_of_maps` of the layers at the scale that ran."""
        maps = {"maps": torch.stack(self._maps, dim=1)}
        return self.measure(maps, images=self._images, rule=self.options.cfg_rows)

    def hear(self, rho: ReadingPart) -> None:
        """Take the rho of the scale that runs, of every image or row, from who worked it out already."""
        self._told = rho

    def end_scale(self, scale: int) -> None:
        """Make rho of the maps of the scale that ran; `depth` sees whether the depth is reached."""
        if (self._maps or self._told) and self.undecided:
            self._arriving = scale, self._told or Reading(self._rho()[1])
        self._maps, self._told = [], None

    def settle(self) -> None:
        """Read, after the last scale, what nobody has asked for."""
        self._arrive()

    def _arrive(self) -> None:
        if self._arriving is not None:
            (scale, reading), self._arriving = self._arriving, None
            self._take(scale, reading.tolist())

    def _take(self, scale: int, rho: list[float]) -> None:
        self._rho_by_scale[scale] = rho
        self._depth = join_depths([self._depth_of(image, scale) for image in range(len(rho))])
        self._ledger.rho[scale] = sum(rho) / len(rho)
        self._ledger.depth = self._depth

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
        depth = self.depth
        if depth is None:
            return False
        return scale > depth if self.options.prune_from == "after" else scale >= depth

    def exits_for_certain(self, scale: int) -> bool:
        """Whether `scale` is not run, whatever the entropies say."""
        return self._exit is not None and scale >= self._exit

    def exits(self, scale: int) -> bool:
        """Whether `scale` and all later ones are not run."""
        return self.exits_for_certain(scale) or (self.options.scale_exit == "depth" and self.beyond(scale))
